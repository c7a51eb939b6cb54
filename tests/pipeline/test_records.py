"""Records: there and back, and committed once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.catalog import Catalog
from pipeline.records import RECORD_SCHEMA, SampleRecord, commit, record_key, video_key
from pipeline.storage import Storage
from sgi2v.metrics import Fidelity
from tests.pipeline.outputs import failed, made


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
