"""Records: written and read back without loss, and committed exactly once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import sgi2v.retry
from pipeline.output.catalog import Catalog
from pipeline.output.lease import LeaseError, acquire, check_epoch
from pipeline.output.records import RECORD_SCHEMA, SampleRecord, baseline_key, commit, record_key
from pipeline.output.storage import Storage
from sgi2v.metrics.objmc import Fidelity
from tests.pipeline.output.outputs import committed, failed, video_of


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


@pytest.mark.parametrize("record", [committed("a"), failed("b"), committed("c", metrics={}, loss_first=None)])
def test_a_record_is_read_back_as_written(record: SampleRecord) -> None:
    assert SampleRecord.from_json(record.to_json()) == record
    (row,) = pa.Table.from_pylist([record.row()], RECORD_SCHEMA).to_pylist()
    assert {name: row[name] for name in record.row()} == record.row()
    assert SampleRecord.from_row(row).row() == row


def test_the_schema_has_every_metric() -> None:
    fidelity = set(Fidelity.__dataclass_fields__)
    assert fidelity <= set(RECORD_SCHEMA.names)
    assert {f"{name}_per_box" for name in fidelity} <= set(RECORD_SCHEMA.names)


def test_a_sample_is_committed_once_and_the_slower_worker_leaves_nothing(storage: Storage) -> None:
    first, second = committed("a", "one"), committed("a", "two")
    assert commit(storage, first, b"video one") == first
    assert commit(storage, second, b"video two") == first
    assert storage.keys("videos") == [video_of("a")]
    assert storage.get(video_of("a")) == b"video one"
    assert commit(storage, failed("a"), None) == first
    assert Catalog(storage).get("a") == first


def with_baseline(sample_id: str, attempt: str = "one") -> SampleRecord:
    return committed(sample_id, attempt, baseline_file_name=baseline_key(video_of(sample_id, attempt)))


def test_a_baseline_is_committed_and_withdrawn_with_its_video(storage: Storage) -> None:
    commit(storage, with_baseline("a"), b"video one", baseline=b"baseline one")
    commit(storage, with_baseline("a", "two"), b"video two", baseline=b"baseline two")
    beside = baseline_key(video_of("a"))
    assert storage.keys("videos") == sorted([video_of("a"), beside])
    assert storage.get(beside) == b"baseline one"
    replaced = with_baseline("a", "two")
    commit(storage, replace(replaced, attempts=2), b"video two", baseline=b"baseline two")
    catalog = Catalog(storage)
    catalog.delete_superseded(1)
    assert storage.keys("videos") == sorted([video_of("a", "two"), str(replaced.baseline_file_name)])


def test_every_attempt_has_its_own_key() -> None:
    ids = ("a", "a.json", "attempt-2", "1")
    keys = [record_key(sample_id, attempts) for sample_id in ids for attempts in (1, 2, 3)]
    assert len(set(keys)) == len(keys)
    assert keys[:2] == ["records/a.json", "records/attempt-2/a.json"]


def test_a_run_that_loses_its_lease_during_an_upload_leaves_neither_video_nor_record(storage: Storage) -> None:
    lost = acquire(storage)

    class Slow(Storage):
        """Here another driver takes over during the upload."""

        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            if key == with_baseline("a").baseline_file_name:
                acquire(storage, take_over=True)

    slow = Slow(storage.url)
    with pytest.raises(LeaseError, match="taken over by another run"):
        commit(slow, with_baseline("a"), b"video", lambda: check_epoch(slow, lost.epoch), b"baseline")
    assert storage.keys("videos") == storage.keys("records") == []
    commit(storage, committed("a"), b"video", lambda: check_epoch(storage, lost.epoch + 1))
    assert Catalog(storage).get("a") == committed("a")


def test_a_video_is_kept_if_its_record_was_sealed_before_its_put_was_answered(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)
    attempts: list[str] = []

    class Unanswered(Storage):
        """Here the answer to the first put gets lost, and the record is sealed before the second one is compared."""

        def _create_local(self, key: str, data: bytes) -> None:
            attempts.append(key)
            try:
                super()._create_local(key, data)
            except FileExistsError:
                Catalog(storage).seal(1)
                raise
            if len(attempts) == 1:
                raise ConnectionResetError("reset by peer")

    assert commit(Unanswered(storage.url), committed("a"), b"video") == committed("a")
    assert len(attempts) == 3
    catalog = Catalog(storage)
    catalog.delete_superseded(1)
    assert storage.keys("records") == []
    assert storage.keys("videos") == [str(committed("a").file_name)]
    assert catalog.index["file_name"].to_pylist() == [committed("a").file_name]


def test_a_slower_worker_leaves_no_video_if_the_first_record_has_been_sealed(storage: Storage) -> None:
    commit(storage, committed("a"), b"video one")

    class Late(Storage):
        """Here the first record is sealed between the second one's put and the read of the first."""

        def put_new(self, key: str, data: bytes) -> bool:
            is_new = super().put_new(key, data)
            self.delete(record_key("a", 1))
            return is_new

    late = committed("a", "two")
    assert commit(Late(storage.url), late, b"video two") == late
    assert storage.keys("videos") == [video_of("a")]
