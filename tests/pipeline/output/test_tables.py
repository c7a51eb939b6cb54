"""The tables: one schema whatever is in them, and the manifest's own columns beside the records'."""

from __future__ import annotations

import io
import re
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.catalog import Catalog
from pipeline.output.lease import LeaseError, acquire
from pipeline.output.records import RECORD_SCHEMA, SampleRecord
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURE_COLUMNS, FAILURES, METADATA, check_tables, read_ids, write_tables
from sgi2v.errors import ConfigError, StorageError
from tests.pipeline.output.outputs import failed, made, manifest

EPOCH = 1


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def read(storage: Storage, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.get(name) or b""))


def write(storage: Storage, records: Sequence[SampleRecord], rows: pa.Table) -> None:
    """The tables of an output that has these records and no others."""
    catalog = Catalog(storage)
    for record in records:
        assert catalog.add(record)
    write_tables(catalog, rows, EPOCH)


def test_tables_have_one_schema_whatever_is_null(storage: Storage) -> None:
    rows = manifest("a", "b", "c", note=pa.nulls(3, pa.float32()))
    schemas: dict[str, list[pa.Schema]] = {METADATA: [], FAILURES: []}
    for records in ([], [made("a")], [failed("b")], [made("a", metrics={}, loss_first=None), failed("b"), made("c")]):
        write(storage, records, rows)
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
    write(storage, [made("a"), failed("b", attempts=3)], manifest("b", "a"))
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
    write(storage, [failed("a"), made("b", metrics={"tracker": "lucas-kanade"})], rows)
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
    write(storage, [made("b"), failed("d"), made("a"), failed("c")], manifest("a", "b", "c", "d"))
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
    write(storage, records, manifest("a", "b", **columns))
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
        write(storage, records, other)
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


@pytest.mark.parametrize("name", [METADATA, FAILURES])
def test_a_table_of_something_else_is_not_overwritten(storage: Storage, name: str) -> None:
    foreign = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), foreign)
    for data in (b"no table", foreign.getvalue().to_pybytes()):
        storage.put(name, data)
        with pytest.raises(ConfigError, match=rf"/{name} is not a table of this program: move it away"):
            write(storage, [made("a"), failed("b")], manifest("c"))
        with pytest.raises(ConfigError, match="move it away"):
            check_tables(storage)
        assert storage.get(name) == data
        storage.delete(name)


def test_a_table_is_the_same_from_parts_and_from_loose_records(storage: Storage) -> None:
    records = [made("a"), failed("b"), made("c"), failed("d", attempts=2), made("e", metrics={})]
    rows = manifest("e", "d", "c", "b", "a", caption=pa.array(list("54321")))
    write(storage, records, rows)
    whole = {name: read(storage, name) for name in (METADATA, FAILURES)}
    catalog = Catalog(storage)
    for record in records:
        catalog.add(record)
        if record.sample_id in "bd":
            catalog.seal(EPOCH)
    write_tables(catalog, rows, EPOCH)
    for name, table in whole.items():
        assert read(storage, name).equals(table)
        assert read_ids(storage, name) == set(table["sample_id"].to_pylist())
    assert whole[METADATA]["caption"].to_pylist() == ["1", "3", "5"]


def test_a_temporary_folder_that_takes_no_table_is_a_storage_error(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = r"making metadata\.parquet in {} failed: .*{}.*: make room there, or set TMPDIR"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StorageError, match=told.format(re.escape(tempfile.gettempdir()), "File too large")):
            write(storage, [made("a")], manifest("a"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    nowhere = str(tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", nowhere)
    with pytest.raises(StorageError, match=told.format(re.escape(nowhere), "No such file")):
        write(storage, [made("a")], manifest("a"))


def test_a_driver_that_is_overtaken_while_it_makes_a_table_leaves_the_one_that_is_there(storage: Storage) -> None:
    overtaken = acquire(storage)
    newer, rows = b"the newer run's", manifest("a", "b")
    catalog = Catalog(storage)
    for record in (made("a"), failed("b")):
        catalog.add(record)
    catalog.seal(overtaken.epoch)

    class Stopped(Storage):
        """Where another driver takes over while this one reads a part."""

        def get(self, key: str) -> bytes | None:
            if key.startswith("parts/"):
                acquire(storage, take_over=True)
                for name in (METADATA, FAILURES):
                    storage.put(name, newer)
            return super().get(key)

    catalog.storage = Stopped(storage.url)
    with pytest.raises(LeaseError, match="taken over by another run"):
        write_tables(catalog, rows, overtaken.epoch)
    assert (storage.get(METADATA), storage.get(FAILURES)) == (newer, newer)
