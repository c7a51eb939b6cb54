"""The plan: which rows are to do, and which outputs are refused."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest

from manifests.schema import MANIFEST_SCHEMA, row_digest
from pipeline.output.records import SampleRecord, commit
from pipeline.output.storage import Storage
from pipeline.plan import check_dtype, make_plan
from sgi2v.errors import ConfigError
from tests.pipeline.output.outputs import finish, manifest, settings
from tests.pipeline.runs import row

IDS = ("a", "b", "c", "d")


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Storage:
    return Storage(f"memory://{request.node.name}")


def ids(table: pa.Table) -> Sequence[str]:
    return tuple(table["sample_id"].to_pylist())


def test_every_row_of_a_new_output_is_to_do(storage: Storage) -> None:
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=None)
    assert ids(plan.todo) == IDS
    assert (plan.total, plan.done, plan.catalog.index.num_rows) == (4, 0, 0)


def test_finished_rows_are_left_out_and_the_order_is_kept(storage: Storage) -> None:
    finish(storage, "c", "a")
    finish(storage, "elsewhere")
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=None)
    assert ids(plan.todo) == ("b", "d")
    assert (plan.total, plan.done, plan.other_samples) == (4, 2, 1)


def test_failed_samples_are_retried_only_on_request(storage: Storage) -> None:
    finish(storage, "a")
    finish(storage, "b", status="failed", attempts=2)
    assert ids(make_plan(manifest(*IDS), storage, retry_failed=False, limit=None).todo) == ("c", "d")
    plan = make_plan(manifest(*IDS), storage, retry_failed=True, limit=None)
    assert ids(plan.todo) == ("b", "c", "d")
    assert plan.todo["_attempts"].to_pylist() == [2, 0, 0]
    assert plan.catalog.index.select(["sample_id", "status"]).to_pylist() == [
        {"sample_id": "a", "status": "committed"},
        {"sample_id": "b", "status": "failed"},
    ]


def test_a_failed_row_that_was_mended_is_to_be_retried(storage: Storage) -> None:
    finish(storage, "a", status="failed")
    changed = manifest("a", image="another.png")
    with pytest.raises(ConfigError) as refused:
        make_plan(changed, storage, retry_failed=False, limit=None)
    assert str(refused.value) == ("1 failed row changed in the manifest: a. Run failed rows again with --retry-failed.")
    for how in ({"retry_failed": True}, {"retry_failed": False, "redo_changed": True}):
        plan = make_plan(changed, storage, limit=None, **how)
        assert (ids(plan.todo), plan.todo["_attempts"].to_pylist(), plan.redone.num_rows) == (("a",), [1], 0)


def test_changed_rows_are_made_again_on_request_and_no_others(storage: Storage) -> None:
    finish(storage, *IDS)
    changed = pa.concat_tables([manifest("a", "c"), manifest("b", "d", seed=1), manifest("e")])
    plan = make_plan(changed, storage, retry_failed=False, limit=None, redo_changed=True)
    assert (ids(plan.todo), plan.todo["_attempts"].to_pylist()) == (("b", "d", "e"), [1, 1, 0])
    assert sorted(plan.redone["sample_id"].to_pylist()) == ["b", "d"]
    with pytest.raises(ConfigError, match=r"^1 changed row would not be made again: d\. Leave out --limit\.$"):
        make_plan(changed, storage, retry_failed=False, limit=3, redo_changed=True)


def test_failed_rows_beyond_the_limit_are_not_retried(storage: Storage) -> None:
    finish(storage, "a", "d", status="failed")
    plan = make_plan(manifest(*IDS), storage, retry_failed=True, limit=2)
    assert ids(plan.todo) == ("a", "b")


def test_a_retry_continues_the_count_of_attempts(storage: Storage) -> None:
    for attempts in (1, 2, 3):
        finish(storage, "a", status="failed", attempts=attempts)
        plan = make_plan(manifest(*IDS), storage, retry_failed=True, limit=None)
        assert plan.todo["_attempts"].to_pylist() == [attempts, 0, 0, 0]
        assert ids(make_plan(manifest(*IDS), storage, retry_failed=False, limit=None).todo) == ("b", "c", "d")
    finish(storage, "a", attempts=4)
    assert ids(make_plan(manifest(*IDS), storage, retry_failed=True, limit=None).todo) == ("b", "c", "d")


def test_rows_of_an_unchanged_manifest_are_not_digested_again(storage: Storage) -> None:
    finish(storage, *IDS)
    changed = manifest(*IDS, seed=1)
    assert make_plan(changed, storage, retry_failed=False, limit=None, manifest_unchanged=True).done == 4


def test_a_changed_row_beyond_the_limit_is_refused_too(storage: Storage) -> None:
    finish(storage, *IDS)
    with pytest.raises(ConfigError, match="1 finished row changed"):
        make_plan(pa.concat_tables([manifest("a"), manifest("b", seed=1)]), storage, retry_failed=False, limit=1)


def test_a_limit_counts_finished_rows_too(storage: Storage) -> None:
    finish(storage, "a")
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=3)
    assert ids(plan.todo) == ("b", "c")
    assert (plan.total, plan.done) == (3, 1)


def test_rows_that_changed_after_their_samples_were_made_are_refused(storage: Storage) -> None:
    many = [f"s{number}" for number in range(7)]
    finish(storage, *many)
    with pytest.raises(ConfigError, match=r"^7 finished rows changed in the manifest: s0, s1, s2, s3, s4 and 2 more\."):
        make_plan(manifest(*many, seed=1), storage, retry_failed=False, limit=None)
    with_own_column = manifest(*many, columns={"note": pa.array(["new"] * len(many))})
    assert make_plan(with_own_column, storage, retry_failed=False, limit=None).done == len(many)


def test_own_columns_do_not_travel_through_the_stages(storage: Storage) -> None:
    wide = manifest("a", columns={"_attempts": pa.array([7]), "embedding": pa.array([[0.0] * 9])})
    plan = make_plan(wide, storage, retry_failed=False, limit=None)
    assert plan.todo.column_names == [*MANIFEST_SCHEMA.names, "_attempts"]
    assert plan.todo["_attempts"].to_pylist() == [0]


def test_an_automatic_dtype_does_not_mix_two_kinds_of_worker(storage: Storage) -> None:
    record = SampleRecord("a", "committed", 1, row_digest(row("a")), fingerprint="f", dtype="float32")
    commit(storage, record, None)
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=None)
    check_dtype(plan, settings(), on_gpu=False)
    check_dtype(plan, settings(model={"source": "embedded", "dtype": "float32"}), on_gpu=True)
    with pytest.raises(ConfigError, match=r"made in float32.*theirs in bfloat16 or float16.*--dtype float32"):
        check_dtype(plan, settings(), on_gpu=True)
