"""Records: there and back, committed once, and tables of one schema whatever is in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.schema import MANIFEST_SCHEMA
from pipeline.records import (
    FAILURE_COLUMNS,
    FAILURES,
    METADATA,
    RECORD_SCHEMA,
    SampleRecord,
    by_code,
    commit,
    mean_of,
    read_records,
    record_key,
    video_key,
    write_tables,
)
from pipeline.storage import Storage
from sgi2v.errors import ConfigError
from sgi2v.metrics import Fidelity
from tests.pipeline.runs import row

METRICS = {"objmc_px": 2.0, "static_objmc_px": 8.0, "control_gain": 0.75, "objmc_px_per_box": [1.0, 3.0]}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def made(sample_id: str, attempt: str = "one", **changes: Any) -> SampleRecord:
    values = {"file_name": video_key(sample_id, attempt), "loss_first": [0.5, None], "metrics": METRICS, "seed": 3}
    return SampleRecord(sample_id, "committed", 1, "row", "print", **{**values, **changes})


def failed(sample_id: str, code: str = "image_missing", attempts: int = 1) -> SampleRecord:
    return SampleRecord(sample_id, "failed", attempts, "row", "print", error_code=code, message=f"{sample_id}: {code}")


def manifest(*ids: str, **columns: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist([row(sample_id) for sample_id in ids], schema=MANIFEST_SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def read(storage: Storage, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.get(name) or b""))


@pytest.mark.parametrize("record", [made("a"), failed("b"), made("c", metrics={}, loss_first=None)])
def test_a_record_survives_its_file(record: SampleRecord) -> None:
    assert SampleRecord.from_json(record.to_json()) == record
    (line,) = pa.Table.from_pylist([record.row()], RECORD_SCHEMA).to_pylist()
    assert {name: line[name] for name in record.row()} == record.row()


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
    assert read_records(storage) == [winner]


def test_a_video_without_its_record_is_no_result(storage: Storage) -> None:
    storage.put(video_key("a", "lost"), b"video")
    assert read_records(storage) == []
    write_tables(storage, [], manifest("a"))
    assert read(storage, METADATA).num_rows == 0


def test_records_come_by_sample_id_and_nothing_else_is_taken_for_one(storage: Storage) -> None:
    for record in (failed("b"), made("c"), made("a.json"), made("a")):
        commit(storage, record, None)
    storage.put("records/notes.txt", b"not a record")
    assert sorted(record.sample_id for record in read_records(storage)) == ["a", "a.json", "b", "c"]
    assert storage.get(record_key("a.json")) is not None


def test_tables_have_one_schema_whatever_is_null(storage: Storage) -> None:
    rows = manifest("a", "b", "c", note=pa.nulls(3, pa.float32()))
    schemas: dict[str, list[pa.Schema]] = {METADATA: [], FAILURES: []}
    for records in ([], [made("a")], [failed("b")], [made("a", metrics={}, loss_first=None), failed("b"), made("c")]):
        write_tables(storage, records, rows)
        for name, found in schemas.items():
            found.append(read(storage, name).schema.remove_metadata())
    for found in schemas.values():
        assert all(schema.equals(found[0]) for schema in found)
        assert not [field.name for field in found[0] if pa.types.is_null(field.type)]
    metadata = schemas[METADATA][0]
    assert metadata.names[:2] == ["file_name", "sample_id"]
    assert {"error_code", "message"}.isdisjoint(metadata.names)
    for field in RECORD_SCHEMA:
        if field.name in metadata.names:
            assert metadata.field(field.name).type == field.type
    assert tuple(schemas[FAILURES][0].names[: len(FAILURE_COLUMNS)]) == FAILURE_COLUMNS


def test_tables_hold_what_the_records_say(storage: Storage) -> None:
    write_tables(storage, [made("a"), failed("b", attempts=3)], manifest("b", "a"))
    (line,) = read(storage, METADATA).to_pylist()
    assert line["file_name"] == "videos/a.one.mp4"
    assert line["objmc_px_per_box"] == [1.0, 3.0]
    assert line["image"] == "a.png"
    (line,) = read(storage, FAILURES).to_pylist()
    assert (line["sample_id"], line["error_code"], line["message"]) == ("b", "image_missing", "b: image_missing")
    assert line["attempts"] == 3
    assert line["image"] == "b.png"


def test_the_manifests_own_columns_ride_along_with_their_types_and_clashing_names_stay_apart(storage: Storage) -> None:
    columns = {
        "caption": pa.array(["first", "second"]),
        "taken": pa.array([1, 2], pa.timestamp("us", "UTC")),
        "camera": pa.array(["x", "y"]).dictionary_encode(),
        "place": pa.array([{"lat": 1.5, "tags": ["a"]}, None]),
        "score": pa.array([0.5, 0.25], pa.float32()),
        "manifest_tracker": pa.array([1, 2], pa.int8()),
        "tracker": pa.array(["mine", "theirs"]),
        "file_name": pa.array(["a.png", "b.png"]),
        "message": pa.array(["hello", "there"]),
    }
    rows = manifest("a", "b", **columns)
    write_tables(storage, [failed("a"), made("b", metrics={"tracker": "lucas-kanade"})], rows)
    metadata = read(storage, METADATA)
    assert len(set(metadata.column_names)) == len(metadata.column_names)
    (line,) = metadata.to_pylist()
    for name in ("caption", "taken", "camera", "place", "score"):
        assert metadata.schema.field(name).type == rows.schema.field(name).type
        assert line[name] == columns[name].to_pylist()[1]
    assert (line["tracker"], line["manifest_tracker"], line["manifest_manifest_tracker"]) == (
        "lucas-kanade",
        2,
        "theirs",
    )
    assert (line["file_name"], line["manifest_file_name"]) == ("videos/b.one.mp4", "b.png")
    assert line["manifest_message"] == "there"
    assert (line["seed"], line["manifest_seed"]) == (3, None)
    (line,) = read(storage, FAILURES).to_pylist()
    assert (line["message"], line["manifest_message"], line["caption"]) == ("a: image_missing", "hello", "first")


def test_tables_do_not_depend_on_the_order_of_completion(storage: Storage) -> None:
    write_tables(storage, [made("b"), failed("d"), made("a"), failed("c")], manifest("a", "b", "c", "d"))
    assert read(storage, METADATA)["sample_id"].to_pylist() == ["a", "b"]
    assert read(storage, FAILURES)["sample_id"].to_pylist() == ["c", "d"]


def test_samples_of_another_manifest_keep_its_columns(storage: Storage) -> None:
    columns = {
        "caption": pa.array(["first", "second"]),
        "camera": pa.array(["x", "y"]).dictionary_encode(),
        "place": pa.array([{"lat": 1.5, "tags": ["a"]}, None]),
        "tracker": pa.array(["mine", "theirs"]),
        "score": pa.array([1, 2], pa.int32()),
        "empty": pa.array(["full", "full"]),
        "kind": pa.array([["list"], ["list"]]),
    }
    records = [made("a"), failed("b")]
    write_tables(storage, records, manifest("a", "b", **columns))
    other = manifest(
        *("c", "d"),
        camera=pa.array(["z", "y"]).dictionary_encode(),
        score=pa.array([0.5, 0.25]),
        empty=pa.nulls(2),
        kind=pa.array([1, 2]),
        new=pa.array([True, False]),
    )
    for _ in range(2):  # what was kept is kept again
        records = [*records[:2], made("c"), failed("d")]
        write_tables(storage, records, other)
        for name, ids in {METADATA: ("a", "c"), FAILURES: ("b", "d")}.items():
            tracker = "manifest_tracker" if name == METADATA else "tracker"
            table = read(storage, name)
            assert table["sample_id"].to_pylist() == list(ids)
            at = 0 if name == METADATA else 1
            assert table["image"].to_pylist() == [f"{sample_id}.png" for sample_id in ids]
            assert table["boxes"].null_count == 0
            assert table["caption"].to_pylist() == [columns["caption"][at].as_py(), None]
            assert table["camera"].to_pylist() == [("x", "y")[at], ("z", "y")[at]]
            assert table["place"].to_pylist() == [columns["place"][at].as_py(), None]
            assert table[tracker].to_pylist() == [columns["tracker"][at].as_py(), None]
            assert table["score"].to_pylist() == [(1.0, 2.0)[at], (0.5, 0.25)[at]]
            assert table["empty"].to_pylist() == ["full", None]
            assert table["kind"].to_pylist() == [None, (1, 2)[at]]
            assert table["new"].to_pylist() == [None, (True, False)[at]]
            assert table.schema.field("camera").type == columns["camera"].type


def test_a_failed_sample_that_made_way_stays_a_failure_until_it_is_finished(storage: Storage) -> None:
    rows = manifest("a", "b", "c", caption=pa.array(["1", "2", "3"]))
    write_tables(storage, [made("a"), failed("b", attempts=2), failed("c")], rows)
    write_tables(storage, [made("a"), failed("c", attempts=2)], rows)
    lines = read(storage, FAILURES).select(["sample_id", "attempts", "caption"]).to_pylist()
    assert [tuple(line.values()) for line in lines] == [("b", 2, "2"), ("c", 2, "3")]
    write_tables(storage, [made("a"), made("b"), failed("c", attempts=2)], rows)
    assert read(storage, FAILURES)["sample_id"].to_pylist() == ["c"]


@pytest.mark.parametrize("name", [METADATA, FAILURES])
def test_a_table_of_something_else_is_not_overwritten(storage: Storage, name: str) -> None:
    foreign = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), foreign)
    for data in (b"no table", foreign.getvalue().to_pybytes()):
        storage.put(name, data)
        with pytest.raises(ConfigError, match=rf"/{name} is not a table of this program: move it away"):
            write_tables(storage, [made("a"), failed("b")], manifest("c"))
        assert storage.get(name) == data
        storage.delete(name)


def test_what_a_killed_writer_leaves_is_no_result(storage: Storage, tmp_path: Path) -> None:
    commit(storage, made("a"), b"video")
    for folder, name in {"records": "b.json", "videos": "b.one.mp4"}.items():
        (tmp_path / "out" / folder / f".{name}.0123.partial").write_bytes(b"{")
    (tmp_path / "out" / f".{METADATA}.0123.partial").write_bytes(b"PAR1")
    assert read_records(storage) == [made("a")]
    assert storage.keys("videos") == ["videos/a.one.mp4"]
    write_tables(storage, read_records(storage), manifest("a"))
    assert read(storage, METADATA).num_rows == 1


def test_means_and_counts() -> None:
    records = [
        made("a"),
        made("b", metrics={"objmc_px": 4.0}),
        made("c", metrics={}),
        failed("d"),
        failed("e", "unknown"),
    ]
    records.append(failed("f", "unknown"))
    assert mean_of(records, "objmc_px") == 3.0
    assert mean_of(records, "flicker") is None
    assert list(by_code(records).items()) == [("unknown", 2), ("image_missing", 1)]
