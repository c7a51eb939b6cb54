"""What a run does before and after its dataflow, which does not use Ray here."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pipeline.run
from manifests.io import load_manifest
from pipeline.config import RunConfig
from pipeline.flow.commit import Commit
from pipeline.flow.load import Load
from pipeline.flow.pools import Pool, Pools
from pipeline.output.records import RECORDS, record_key
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, read_ids
from pipeline.run import RunResult, run
from sgi2v.errors import ClusterError, StorageError
from tests.pipeline.flow.test_stages import config_of
from tests.pipeline.runs import row, write_rows

ROWS = ("a", "b", "c")
ONE_ACTOR = Pool(1, 1, num_cpus=1.0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run whose rows all fail in `load`, so that it needs no generator."""

    @contextmanager
    def no_session(*_: object) -> Iterator[Pools]:
        yield Pools(ONE_ACTOR, ONE_ACTOR, ONE_ACTOR, "no Ray")

    monkeypatch.setattr(pipeline.run, "ray_session", no_session)
    return config_of(write_rows(tmp_path / "m.parquet", [row(name, image="none.png") for name in ROWS]))


def run_with_flow_of(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException | None = None
) -> RunResult:
    """A run whose dataflow ends after so many rows."""

    def flow(
        config: RunConfig, todo: pa.Table, pools: Pools, epoch: int, *_: object
    ) -> Generator[dict[str, Any], None, None]:
        load, commit = Load(config), Commit(config, epoch)
        for number in range(rows):
            yield from commit(load(todo.slice(number, 1))).to_pylist()
        if error is not None:
            raise error

    monkeypatch.setattr(pipeline.run, "flow", flow)
    return run(config, load_manifest(config.manifest))


def test_a_dataflow_that_ends_early_without_an_error_is_an_error(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError) as raised:
        run_with_flow_of(config, monkeypatch, 1)
    assert str(raised.value) == (
        "2 of 3 rows were never reported: the Ray pipeline ended early. Run the same command again"
    )
    storage = Storage(config.output)
    assert storage.keys(RECORDS) == [record_key("a", 1)]
    assert read_ids(storage, FAILURES) == {"a"}, "the tables are written"
    assert run_with_flow_of(config, monkeypatch, 2).finished["sample_id"].to_pylist() == ["b", "c"]
    assert run_with_flow_of(config, monkeypatch, 0).finished.num_rows == 0


def test_an_interrupted_dataflow_may_leave_rows(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_with_flow_of(config, monkeypatch, 1, KeyboardInterrupt())
    assert (result.interrupted, result.finished.num_rows) == (True, 1)


def test_a_store_that_cannot_list_uploads_does_not_end_the_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Storage, is_own: Callable[[str], bool]) -> int:
        raise StorageError("aborting the uploads failed: PermissionError: AccessDenied")

    monkeypatch.setattr(Storage, "abort_uploads", refuse)
    assert run_with_flow_of(config, monkeypatch, len(ROWS)).finished.num_rows == len(ROWS)
    storage = Storage(config.output)
    (key,) = storage.keys("logs")
    lines = [json.loads(line) for line in (storage.get(key) or b"").splitlines()]
    messages = [line["message"] for line in lines if line["event"] == "uploads_not_aborted"]
    assert messages == ["aborting the uploads failed: PermissionError: AccessDenied"]
