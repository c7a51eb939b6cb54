"""The tables: a fixed schema whatever is null, with the manifest's own columns after the record columns."""

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
from pipeline.output.labels import LABELS
from pipeline.output.lease import LeaseError, acquire
from pipeline.output.records import RECORD_SCHEMA, SampleRecord
from pipeline.output.storage import Storage
from pipeline.output.tables import (
    COPIES,
    FAILURE_COLUMNS,
    FAILURES,
    METADATA,
    check_own_columns,
    check_tables,
    read_ids,
    write_tables,
)
from sgi2v.errors import ConfigError, StorageError
from tests.pipeline.output.outputs import BOXES, committed, failed, manifest, video_of

EPOCH = 1


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def read(storage: Storage, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.get(name) or b""))


def write(storage: Storage, records: Sequence[SampleRecord], rows: pa.Table) -> None:
    """Write the tables of an output that has these records and no others."""
    catalog = Catalog(storage)
    for record in records:
        assert catalog.add(record)
    write_tables(catalog, rows, EPOCH)


def test_the_schema_does_not_depend_on_nulls(storage: Storage) -> None:
    rows = manifest("a", "b", "c", columns={"note": pa.nulls(3, pa.float32())})
    schemas: dict[str, list[pa.Schema]] = {METADATA: [], FAILURES: []}
    for records in (
        [],
        [committed("a")],
        [failed("b")],
        [committed("a", metrics={}, loss_first=None), failed("b"), committed("c")],
    ):
        write(storage, records, rows)
        for name, written in schemas.items():
            written.append(read(storage, name).schema.remove_metadata())
    for written in schemas.values():
        assert all(schema.equals(written[0]) for schema in written)
        assert not [field.name for field in written[0] if pa.types.is_null(field.type)]
    metadata = schemas[METADATA][0]
    assert metadata.names[:2] == ["file_name", "sample_id"]
    assert {"error_code", "message"}.isdisjoint(metadata.names)
    for field in RECORD_SCHEMA:
        if field.name in metadata.names:
            assert metadata.field(field.name).type == field.type
    assert tuple(schemas[FAILURES][0].names[: len(FAILURE_COLUMNS)]) == FAILURE_COLUMNS


def test_tables_hold_the_values_of_the_records(storage: Storage) -> None:
    write(storage, [committed("a"), failed("b", attempts=3)], manifest("b", "a"))
    (row,) = read(storage, METADATA).to_pylist()
    assert row["file_name"] == video_of("a")
    assert row["objmc_px_per_box"] == [1.0, 3.0]
    assert row["image"] == "a.png"
    (row,) = read(storage, FAILURES).to_pylist()
    assert (row["sample_id"], row["error_code"], row["message"]) == ("b", "image_missing", "b: image_missing")
    assert row["attempts"] == 3
    assert row["image"] == "b.png"


def test_own_columns_keep_their_types(storage: Storage) -> None:
    columns = {
        "caption": pa.array(["first", "second"]),
        "taken": pa.array([1, 2], pa.timestamp("us", "UTC")),
        "place": pa.array([{"lat": 1.5, "tags": ["a"]}, None]),
        "score": pa.array([0.5, 0.25], pa.float32()),
    }
    rows = manifest("a", "b", columns=columns)
    write(storage, [failed("a"), committed("b")], rows)
    for name, at in {FAILURES: 0, METADATA: 1}.items():
        (row,) = read(storage, name).to_pylist()
        for column, values in columns.items():
            assert read(storage, name).schema.field(column).type == values.type
            assert row[column] == values[at].as_py()


def test_own_columns_with_names_of_the_tables_get_a_prefix_in_both_tables(storage: Storage) -> None:
    renamed = {
        "tracker": "manifest_tracker",
        "message": "manifest_message",
        "height": "manifest_height",
        "manifest_tracker": "manifest_manifest_tracker",
        "manifest_note": "manifest_note",
        "video": "manifest_video",
        "label": "manifest_label",
        "__key__": "manifest___key__",
        "file_name": "manifest_filename",
        "mask_file_name": "manifest_mask_filename",
        "mask_file_names": "manifest_mask_filenames",
        "profile_name": "profile_name",
    }
    rows = manifest("a", "b", columns={name: pa.array([f"{name} a", f"{name} b"]) for name in renamed})
    write(storage, [failed("a"), committed("b", metrics={"tracker": "lucas-kanade"})], rows)
    for table, sample_id in {FAILURES: "a", METADATA: "b"}.items():
        (row,) = read(storage, table).to_pylist()
        assert {stored_as: row[stored_as] for stored_as in renamed.values()} == {
            stored_as: f"{name} {sample_id}" for name, stored_as in renamed.items()
        }
        assert row["manifest_seed"] is None
    (row,) = read(storage, METADATA).to_pylist()
    assert (row["tracker"], row["file_name"], row["seed"]) == ("lucas-kanade", video_of("b"), 3)


def test_two_columns_that_would_get_one_name_are_refused(storage: Storage) -> None:
    rows = manifest("a", columns={"manifest_filename": pa.array(["x"]), "file_name": pa.array(["y"])})
    with pytest.raises(ConfigError, match="two columns of the manifest would be called manifest_filename"):
        check_own_columns(storage, rows)


def test_tables_do_not_depend_on_the_order_of_completion(storage: Storage) -> None:
    write(storage, [committed("b"), failed("d"), committed("a"), failed("c")], manifest("a", "b", "c", "d"))
    assert read(storage, METADATA)["sample_id"].to_pylist() == ["a", "b"]
    assert read(storage, FAILURES)["sample_id"].to_pylist() == ["c", "d"]


def test_samples_of_another_manifest_keep_their_columns(storage: Storage) -> None:
    columns = {
        "caption": pa.array(["first", "second"]),
        "camera": pa.array(["x", "y"]).dictionary_encode(),
        "place": pa.array([{"lat": 1.5, "tags": ["a"]}, None]),
        "tracker": pa.array(["mine", "theirs"]),
        "score": pa.array([1, 2], pa.int32()),
        "empty": pa.array(["full", "full"]),
        "code": pa.array(["A3", "B1"]),
        "exact": pa.array([2**53 + 1, 2**53 + 3]),
    }
    records = [committed("a"), failed("b")]
    write(storage, records, manifest("a", "b", columns=columns))
    other_columns = {
        "camera": pa.array(["z", "y"]).dictionary_encode(),
        "score": pa.array([0.5, 0.25]),
        "empty": pa.nulls(2),
        "code": pa.array([1, 2]),
        "exact": pa.array([0.5, 1.0]),
        "new": pa.array([True, False]),
    }
    other = manifest("c", "d", columns=other_columns)
    for _ in range(2):  # kept columns are kept again
        records = [*records[:2], committed("c"), failed("d")]
        write(storage, records, other)
        for name, ids in {METADATA: ("a", "c"), FAILURES: ("b", "d")}.items():
            table = read(storage, name)
            assert table["sample_id"].to_pylist() == list(ids)
            at = 0 if name == METADATA else 1
            assert table["image"].to_pylist() == [f"{sample_id}.png" for sample_id in ids]
            assert table["boxes"].null_count == 0
            assert table["caption"].to_pylist() == [columns["caption"][at].as_py(), None]
            assert table["camera"].to_pylist() == [("x", "y")[at], ("z", "y")[at]]
            assert table["place"].to_pylist() == [columns["place"][at].as_py(), None]
            assert table["manifest_tracker"].to_pylist() == [columns["tracker"][at].as_py(), None]
            assert table["score"].to_pylist() == [(1.0, 2.0)[at], (0.5, 0.25)[at]]
            assert table["empty"].to_pylist() == ["full", None]
            assert table["code"].to_pylist() == [("A3", "B1")[at], ("1", "2")[at]]
            assert table["exact"].to_pylist() == [("9007199254740993", "9007199254740995")[at], ("0.5", "1.0")[at]]
            assert table["new"].to_pylist() == [None, (True, False)[at]]


def test_tables_of_an_earlier_version_keep_their_values_under_the_new_names(storage: Storage) -> None:
    write(storage, [committed("a"), failed("b")], manifest("a", "b"))
    required = pa.struct([pa.field("q", pa.int64(), nullable=False)])
    for name in (METADATA, FAILURES):
        table = read(storage, name)
        earlier = {
            "manifest_file_name": pa.array(["a.png"]),
            "video": pa.array(["v"]),
            "meta": pa.array([{"q": 1}], required),
            "kind": pa.array(["wild"]).dictionary_encode(),
            "place.x": pa.array([1.5]),
        }
        if name == FAILURES:  # only names of this table's own columns got a prefix
            earlier["tracker"] = pa.array(["mine"])
        for column, values in earlier.items():
            table = table.append_column(column, values)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        storage.put(name, sink.getvalue())
    storage.delete_many(storage.keys(COPIES))  # which earlier versions did not write
    write(storage, [committed("a"), failed("b"), committed("c")], manifest("c"))
    kept = {"manifest_filename": "a.png", "manifest_video": "v", "meta": {"q": 1}, "kind": "wild", "place.x": 1.5}
    for name, tracker in ((METADATA, None), (FAILURES, "mine")):
        row = read(storage, name).to_pylist()[0]
        assert {column: row[column] for column in kept} == kept
        assert row["manifest_tracker"] == tracker


@pytest.mark.parametrize("name", [METADATA, FAILURES, LABELS])
def test_a_table_of_another_program_is_not_overwritten(storage: Storage, name: str) -> None:
    foreign = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), foreign)
    for data in (b"no table", foreign.getvalue().to_pybytes()):
        storage.put(name, data)
        with pytest.raises(ConfigError, match=rf"/{name} is not a table of this program: move it away"):
            write(storage, [committed("a"), failed("b")], manifest("c"))
        with pytest.raises(ConfigError, match="move it away"):
            check_tables(storage)
        assert storage.get(name) == data
        storage.delete(name)


def test_a_table_is_the_same_from_parts_and_from_unsealed_records(storage: Storage) -> None:
    records = [committed("a"), failed("b"), committed("c"), failed("d", attempts=2), committed("e", metrics={})]
    rows = manifest("e", "d", "c", "b", "a", columns={"caption": pa.array(list("54321"))})
    write(storage, records, rows)
    whole = {name: read(storage, name) for name in (METADATA, FAILURES, LABELS)}
    catalog = Catalog(storage)
    for record in records:
        catalog.add(record)
        if record.sample_id in "bd":
            catalog.seal(EPOCH)
    write_tables(catalog, rows, EPOCH)
    for name, table in whole.items():
        assert read(storage, name).equals(table)
        assert read_ids(storage, name) == set(table["sample_id"].to_pylist())
    assert whole[LABELS].num_rows == 3 * len(BOXES)
    assert whole[METADATA]["caption"].to_pylist() == ["1", "3", "5"]


def test_a_temporary_folder_that_is_full_or_missing_is_a_storage_error(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    message = r"making metadata\.parquet in {} failed: .*{}.*: make room there, or set TMPDIR"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StorageError, match=message.format(re.escape(tempfile.gettempdir()), "File too large")):
            write(storage, [committed("a")], manifest("a"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    nowhere = str(tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", nowhere)
    with pytest.raises(StorageError, match=message.format(re.escape(nowhere), "No such file")):
        write(storage, [committed("a")], manifest("a"))


def test_a_driver_that_loses_its_lease_while_it_makes_a_table_does_not_write_it(storage: Storage) -> None:
    lost = acquire(storage)
    newer, rows = b"the newer run's", manifest("a", "b")
    catalog = Catalog(storage)
    for record in (committed("a"), failed("b")):
        catalog.add(record)
    catalog.seal(lost.epoch)

    class TakenOver(Storage):
        """Here another driver takes over while this one reads a part."""

        def get(self, key: str) -> bytes | None:
            if key.startswith("parts/"):
                acquire(storage, take_over=True)
                for name in (METADATA, FAILURES):
                    storage.put(name, newer)
            return super().get(key)

    catalog.storage = TakenOver(storage.url)
    with pytest.raises(LeaseError, match="taken over by another run"):
        write_tables(catalog, rows, lost.epoch)
    assert (storage.get(METADATA), storage.get(FAILURES)) == (newer, newer)
