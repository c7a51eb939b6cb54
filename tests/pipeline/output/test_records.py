"""Records: there and back, and committed once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import sgi2v.retry
from pipeline.output.catalog import Catalog
from pipeline.output.lease import LeaseError, acquire, check_epoch
from pipeline.output.records import RECORD_SCHEMA, SampleRecord, commit, record_key, video_key
from pipeline.output.storage import Storage
from sgi2v.metrics.objmc import Fidelity
from tests.pipeline.output.outputs import failed, made


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


@pytest.mark.parametrize("record", [made("a"), failed("b"), made("c", metrics={}, loss_first=None)])
def test_a_record_survives_its_file(record: SampleRecord) -> None:
    assert SampleRecord.from_json(record.to_json()) == record
    (line,) = pa.Table.from_pylist([record.row()], RECORD_SCHEMA).to_pylist()
    assert {name: line[name] for name in record.row()} == record.row()
    assert SampleRecord.from_row(line).row() == line


def test_the_schema_knows_every_metric() -> None:
    fidelity = set(Fidelity.__dataclass_fields__)
    assert fidelity <= set(RECORD_SCHEMA.names)
    assert {f"{name}_per_box" for name in fidelity} <= set(RECORD_SCHEMA.names)


def test_a_sample_is_committed_once_and_the_loser_leaves_nothing(storage: Storage) -> None:
    winner, loser = made("a", "one"), made("a", "two")
    assert commit(storage, winner, b"video one") == winner
    assert commit(storage, loser, b"video two") == winner
    assert storage.keys("videos") == ["videos/a.one.mp4"]
    assert storage.get("videos/a.one.mp4") == b"video one"
    assert commit(storage, failed("a"), None) == winner
    assert Catalog(storage).get("a") == winner


def test_every_attempt_has_a_key_of_its_own() -> None:
    ids = ("a", "a.json", "attempt-2", "1")
    keys = [record_key(sample_id, attempts) for sample_id in ids for attempts in (1, 2, 3)]
    assert len(set(keys)) == len(keys)
    assert keys[:2] == ["records/a.json", "records/attempt-2/a.json"]


def test_a_run_that_is_overtaken_while_a_video_goes_up_leaves_neither_it_nor_a_record(storage: Storage) -> None:
    overtaken = acquire(storage)

    class Slow(Storage):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            acquire(storage, take_over=True)

    slow = Slow(storage.url)
    with pytest.raises(LeaseError, match="taken over by another run"):
        commit(slow, made("a"), b"video", lambda: check_epoch(slow, overtaken.epoch))
    assert storage.keys("videos") == storage.keys("records") == []
    commit(storage, made("a"), b"video", lambda: check_epoch(storage, overtaken.epoch + 1))
    assert Catalog(storage).get("a") == made("a")


def test_a_video_stays_whose_record_was_sealed_before_its_put_was_answered(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)
    tries: list[str] = []

    class Unanswered(Storage):
        """Where the first answer gets lost, and the next driver seals the record as the second try meets it."""

        def _link(self, key: str, data: bytes) -> None:
            tries.append(key)
            try:
                super()._link(key, data)
            except FileExistsError:
                Catalog(storage).seal(1)
                raise
            if len(tries) == 1:
                raise ConnectionResetError("reset by peer")

    assert commit(Unanswered(storage.url), made("a"), b"video") == made("a")
    assert len(tries) == 3
    catalog = Catalog(storage)
    catalog.sweep(1)
    assert storage.keys("records") == []
    assert storage.keys("videos") == [str(made("a").file_name)]
    assert catalog.index["file_name"].to_pylist() == [made("a").file_name]


def test_a_loser_whose_winner_has_been_sealed_leaves_no_video(storage: Storage) -> None:
    commit(storage, made("a"), b"video one")

    class Late(Storage):
        """Where the winner's record goes between the put that is lost and the look at the winner."""

        def put_new(self, key: str, data: bytes) -> bool:
            is_new = super().put_new(key, data)
            self.delete(record_key("a", 1))
            return is_new

    late = made("a", "two")
    assert commit(Late(storage.url), late, b"video two") == late
    assert storage.keys("videos") == [video_key("a", "one")]
