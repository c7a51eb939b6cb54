"""The plan: what is left to do, and when an output is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from manifests.images import resolve_uri
from manifests.schema import MANIFEST_SCHEMA, row_digest
from pipeline.cli.summary import print_status
from pipeline.config import ExecutionConfig, RunConfig, resolve
from pipeline.output.records import SampleRecord, Status, commit
from pipeline.output.run_file import RUN_FILE, check_output, claim_output, recorded_config, renew_manifest
from pipeline.output.storage import Storage
from pipeline.plan import check_dtype, make_plan
from sgi2v.errors import ConfigError, SampleError
from tests.pipeline.runs import row

IDS = ("a", "b", "c", "d")


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Storage:
    return Storage(f"memory://{request.node.name}")


def manifest(*ids: str, **changes: Any) -> pa.Table:
    return pa.Table.from_pylist([row(sample_id, **changes) for sample_id in ids], schema=MANIFEST_SCHEMA)


def finish(storage: Storage, *ids: str, status: Status = "committed", attempts: int = 1) -> None:
    for sample_id in ids:
        code = None if status == "committed" else "image_missing"
        record = SampleRecord(
            sample_id, status, attempts, row_digest(row(sample_id)), fingerprint="f", error_code=code, message=code
        )
        commit(storage, record, None)


def config(**sections: dict[str, Any]) -> RunConfig:
    return resolve("m.parquet", "out", {}, {"model": {"source": "embedded"}, **sections})[0]


def ids(table: pa.Table) -> Sequence[str]:
    return tuple(table["sample_id"].to_pylist())


def test_a_new_output_has_everything_to_do(storage: Storage) -> None:
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=None)
    assert ids(plan.todo) == IDS
    assert (plan.total, plan.done, plan.catalog.index.num_rows) == (4, 0, 0)


def test_what_is_finished_is_left_out_and_order_kept(storage: Storage) -> None:
    finish(storage, "c", "a")
    finish(storage, "elsewhere")
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=None)
    assert ids(plan.todo) == ("b", "d")
    assert (plan.total, plan.done) == (4, 2)


def test_failed_samples_are_left_alone_unless_asked_for(storage: Storage) -> None:
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


def test_a_failed_row_may_be_mended_before_it_is_tried_again(storage: Storage) -> None:
    finish(storage, "a", status="failed")
    mended = manifest("a", image="another.png")
    with pytest.raises(ConfigError, match="1 rows have changed since"):
        make_plan(mended, storage, retry_failed=False, limit=None)
    assert ids(make_plan(mended, storage, retry_failed=True, limit=None).todo) == ("a",)


def test_a_retry_leaves_failures_beyond_its_rows_alone(storage: Storage) -> None:
    finish(storage, "a", "d", status="failed")
    plan = make_plan(manifest(*IDS), storage, retry_failed=True, limit=2)
    assert ids(plan.todo) == ("a", "b")


def test_a_retry_counts_on_from_the_attempt_that_stands(storage: Storage) -> None:
    for attempts in (1, 2, 3):
        finish(storage, "a", status="failed", attempts=attempts)
        plan = make_plan(manifest(*IDS), storage, retry_failed=True, limit=None)
        assert plan.todo["_attempts"].to_pylist() == [attempts, 0, 0, 0]
        assert ids(make_plan(manifest(*IDS), storage, retry_failed=False, limit=None).todo) == ("b", "c", "d")
    finish(storage, "a", attempts=4)
    assert ids(make_plan(manifest(*IDS), storage, retry_failed=True, limit=None).todo) == ("b", "c", "d")


def test_rows_of_the_manifest_that_was_planned_last_are_not_digested_again(storage: Storage) -> None:
    finish(storage, *IDS)
    assert make_plan(manifest(*IDS, seed=1), storage, retry_failed=False, limit=None, unchanged=True).done == 4
    assert claim_output(storage, config(), "digest", 4) is False
    assert claim_output(storage, config(), "digest", 4) is True
    assert claim_output(storage, config(), "another digest", 4) is False


def test_a_changed_row_beyond_the_limit_is_refused_too(storage: Storage) -> None:
    finish(storage, *IDS)
    with pytest.raises(ConfigError, match="1 rows have changed"):
        make_plan(pa.concat_tables([manifest("a"), manifest("b", seed=1)]), storage, retry_failed=False, limit=1)


def test_a_limit_counts_rows_of_the_manifest_done_ones_too(storage: Storage) -> None:
    finish(storage, "a")
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=3)
    assert ids(plan.todo) == ("b", "c")
    assert (plan.total, plan.done) == (3, 1)


def test_rows_that_changed_after_they_were_made_are_refused(storage: Storage) -> None:
    finish(storage, *IDS)
    with pytest.raises(ConfigError, match=r"4 rows have changed since their samples were made: a, b, c, d\."):
        make_plan(manifest(*IDS, seed=1), storage, retry_failed=False, limit=None)
    same = manifest(*IDS).append_column("note", pa.array(["new"] * 4))
    assert make_plan(same, storage, retry_failed=False, limit=None).done == 4


def test_columns_that_ride_along_do_not_go_through_the_flow(storage: Storage) -> None:
    wide = manifest("a").append_column("_attempts", pa.array([7])).append_column("embedding", pa.array([[0.0] * 9]))
    plan = make_plan(wide, storage, retry_failed=False, limit=None)
    assert plan.todo.column_names == [*MANIFEST_SCHEMA.names, "_attempts"]
    assert plan.todo["_attempts"].to_pylist() == [0]


def test_an_output_is_claimed_once_and_known_again(storage: Storage) -> None:
    assert check_output(storage, config()) is None
    claim_output(storage, config(), "digest", 4)
    assert check_output(storage, config()) == json.loads(storage.get(RUN_FILE) or b"")
    claim_output(storage, config(run={"workers": 3}), "digest", 4)
    described = json.loads(storage.get(RUN_FILE) or b"")
    assert described["fingerprint"] == config().fingerprint
    assert described["rows"] == 4
    assert described["manifest_sha256"] == "digest"
    assert described["model_revision"] == config().model_revision
    assert {"python", "torch", "ray", "diffusers"} <= set(described["versions"])


def test_the_file_tells_no_secrets_and_is_found_the_same_again(storage: Storage) -> None:
    roots = ["https://user:hunt@er2@host/p", "https://host/p?sig=hunter2", "abfs://box@account.dfs.core.windows.net/p"]
    secretive = config(run={"untrusted": True, "roots": roots})
    claim_output(storage, secretive, "digest", 4)
    kept = storage.get(RUN_FILE) or b""
    assert b"er2" not in kept
    told = ["https://***@host/p", "https://host/p?***", "abfs://box@account.dfs.core.windows.net/p"]
    assert json.loads(kept)["execution"]["roots"] == told
    assert claim_output(storage, secretive, "digest", 4) is True
    renew_manifest(storage, secretive, "digest", 4, others=0)
    assert storage.get(RUN_FILE) == kept


def test_a_replay_is_bound_by_what_the_manifest_s_rows_might_name(storage: Storage) -> None:
    claim_output(storage, config(run={"untrusted": True, "roots": ["/data", "abfs://box@account/p"]}), "digest", 4)
    replayed = recorded_config(storage).execution.access
    resolve_uri("/data/a.png", "/set/m.parquet", replayed)
    with pytest.raises(SampleError, match="under no --root"):
        resolve_uri("/etc/passwd", "/set/m.parquet", replayed)


def test_a_replay_computes_as_the_run_did(storage: Storage) -> None:
    claim_output(storage, config(run={"compile": True, "threads_per_worker": 3, "workers": 7}), "digest", 4)
    assert recorded_config(storage).execution == ExecutionConfig(compile=True, threads_per_worker=3)


def test_a_manifest_that_has_grown_is_described_anew(storage: Storage) -> None:
    claim_output(storage, config(), "digest", 4)
    claim_output(storage, config(), "another digest", 6)
    renew_manifest(storage, config(), "another digest", 6, others=1)
    described = json.loads(storage.get(RUN_FILE) or b"")
    assert (described["rows"], described["manifest_sha256"], described["other_samples"]) == (6, "another digest", 1)


def test_what_is_left_is_counted_of_the_last_manifest(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    finish(storage, *IDS)
    both = manifest("a", "x", "y")
    claim_output(storage, config(), "digest", 3)
    renew_manifest(storage, config(), "digest", 3, make_plan(both, storage, retry_failed=False, limit=1).others)
    print_status(storage.url)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "4 made, 0 failed, 2 left, of 3 rows (and 3 samples of other manifests)"


def test_an_output_of_other_settings_is_refused_with_every_difference(storage: Storage) -> None:
    claim_output(storage, config(sampler={"steps": 5}), "digest", 4)
    kept = storage.get(RUN_FILE)
    with pytest.raises(ConfigError) as refused:
        claim_output(storage, config(sampler={"steps": 6}, run={"seed": 1}), "digest", 4)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{storage.url} belongs to a run with other settings, which are never mixed:"
    assert lines[1:3] == ["  sampler.steps: 5 there, 6 here", "  seed: 817 there, 1 here"]
    assert lines[3] == "Give the same settings, or another --output."
    assert storage.get(RUN_FILE) == kept


def test_an_automatic_dtype_does_not_mix_two_kinds_of_worker(storage: Storage) -> None:
    record = SampleRecord("a", "committed", 1, row_digest(row("a")), fingerprint="f", dtype="float32")
    commit(storage, record, None)
    plan = make_plan(manifest(*IDS), storage, retry_failed=False, limit=None)
    check_dtype(plan, config(), on_gpu=False)
    check_dtype(plan, config(model={"source": "embedded", "dtype": "float32"}), on_gpu=True)
    with pytest.raises(ConfigError, match=r"made in float32.*theirs in bfloat16 or float16.*--dtype float32"):
        check_dtype(plan, config(), on_gpu=True)


@pytest.mark.parametrize("data", [b"{}", b"[]", b"no json", b'{"deciding": 3}', b'{"deciding": {}}'])
def test_a_run_file_of_something_else_is_refused(storage: Storage, data: bytes) -> None:
    storage.put(RUN_FILE, data)
    for look in (lambda: check_output(storage, config()), lambda: print_status(storage.url)):
        with pytest.raises(ConfigError, match=r"run\.json is not a run of this program: use another --output"):
            look()
