"""Reading and writing manifests in each format, and files that are refused."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.io import EXTENSIONS, load_manifest, read_manifest, write_manifest
from manifests.schema import MANIFEST_SCHEMA, row_digest
from sgi2v.errors import ManifestError, StorageError
from tests.manifests.rows import row, table

ROWS = [
    row(seed=7, scales=[[1.0, 0.1], [1.0, 1.0, 3.0]]),
    row(sample_id="dog", image='a, "b"\nc é.png', boxes=[[1 / 3, 0.0, 1e20, 1e-7]], trajectories=[]),
    row(sample_id="007", boxes=[], trajectories=[], seed=-(2**63)),
]


def with_unknown() -> pa.Table:
    extended = table(*ROWS)
    for name, values in {
        "caption": ["a cat", "", None],
        "zip": ["00123", "1.50", "1e5"],
        "rank": [1, None, -3],
        "score": [1.0, 0.1, 1e-9],
        "good": [True, False, None],
    }.items():
        extended = extended.append_column(name, pa.array(values))
    return extended


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_written_manifest_reads_back_with_its_unknown_columns(tmp_path: Path, extension: str) -> None:
    path = tmp_path / "new" / f"m{extension}"
    write_manifest(with_unknown(), str(path))
    back = read_manifest(str(path))
    assert back.equals(with_unknown())
    assert [row_digest(values) for values in back.to_pylist()] == [row_digest(values) for values in ROWS]
    assert load_manifest(str(path)).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("extension", [".csv", ".jsonl"])
def test_unknown_columns_of_types_that_text_formats_lack_are_written_as_text(tmp_path: Path, extension: str) -> None:
    path = str(tmp_path / f"m{extension}")
    day = pa.array([datetime.date(2024, 2, 29)])
    price = pa.array([decimal.Decimal("1.50")])
    tags = pa.array([{"a": [1, 2]}])
    kind = pa.array(["wild"]).dictionary_encode()
    extended = table(ROWS[0])
    for name, values in {"day": day, "price": price, "tags": tags, "kind": kind}.items():
        extended = extended.append_column(name, values)
    write_manifest(extended, path)
    back = read_manifest(path).to_pylist()[0]
    assert (back["day"], back["price"], back["kind"]) == ("2024-02-29", "1.50", "wild")
    assert back["tags"] in ({"a": [1, 2]}, '{"a": [1, 2]}')


def test_bytes_can_only_be_written_as_parquet(tmp_path: Path) -> None:
    extended = table(ROWS[0]).append_column("blob", pa.array([b"\x00"]))
    with pytest.raises(ManifestError, match=r"write .parquet"):
        write_manifest(extended, str(tmp_path / "m.jsonl"))
    write_manifest(extended, str(tmp_path / "m.parquet"))
    assert read_manifest(str(tmp_path / "m.parquet")).column("blob").to_pylist() == [b"\x00"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_manifests_are_read_and_written_at_urls(extension: str) -> None:
    uri = f"memory://manifests/io/m{extension.upper()}"
    write_manifest(table(*ROWS), uri)
    assert read_manifest(uri).equals(table(*ROWS))
    assert load_manifest(uri).sha256 == hashlib.sha256(fsspec.filesystem("memory").cat(uri)).hexdigest()


def test_hand_written_jsonl_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [
        '{"sample_id": "a", "image": "a.png", "boxes": [[1, 2, 3.5, 4]], "trajectories": [[[1, 2], [3, 4]]], "n": 1}',
        "",
        '{"image": "b.png", "sample_id": "b", "boxes": [], "trajectories": [], "seed": 5, "n": 2.5, "late": [1]}',
    ]
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    back = read_manifest(str(path))
    assert back.schema.names == [*MANIFEST_SCHEMA.names, "n", "late"]
    assert back.column("boxes").to_pylist() == [[[1.0, 2.0, 3.5, 4.0]], []]
    assert back.column("seed").to_pylist() == [None, 5]
    assert back.column("n").to_pylist() == [1.0, 2.5]
    assert back.column("late").to_pylist() == [None, [1]]


def test_columns_of_empty_cells_are_null(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    write_manifest(table(row()).append_column("note", pa.nulls(1)), str(path))
    back = read_manifest(str(path))
    assert [back.column(name).to_pylist() for name in ("scales", "seed", "note")] == [[None], [None], [None]]


def test_hand_written_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    cells = ["12", "a.png", '"[[1, 2, 3, 4]]"', '"[[[1, 2],\n [3, 4]]]"', "5.0"]
    path.write_bytes(("sample_id,image,boxes,trajectories,seed\r\n" + ",".join(cells) + "\r\n").encode("utf-8-sig"))
    back = read_manifest(str(path))
    assert back.to_pylist()[0] == {
        "sample_id": "12",
        "image": "a.png",
        "boxes": [[1.0, 2.0, 3.0, 4.0]],
        "trajectories": [[[1.0, 2.0], [3.0, 4.0]]],
        "scales": None,
        "seed": 5,
    }


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table(*ROWS), sink)
    return sink.getvalue().to_pybytes()


LINE = json.dumps(ROWS[0])
HEADER = "sample_id,image,boxes,trajectories\n"
BAD_FILES: dict[str, tuple[str, bytes, str, str]] = {
    "empty parquet": ("m.parquet", b"", "manifest_empty", "empty"),
    "empty csv": ("m.csv", b" \n", "manifest_empty", "empty"),
    "empty jsonl": ("m.jsonl", b"", "manifest_empty", "empty"),
    "header alone": ("m.csv", HEADER.encode(), "manifest_empty", "no rows"),
    "not parquet": ("m.parquet", LINE.encode(), "manifest_unreadable", "not a Parquet file"),
    "truncated": ("m.parquet", parquet_bytes()[:-100], "manifest_unreadable", "truncated"),
    "four bytes": ("m.parquet", b"PAR1", "manifest_unreadable", "truncated"),
    "damaged": ("m.parquet", b"PAR1" + b"x" * 99 + parquet_bytes()[-8:], "manifest_unreadable", "damaged"),
    "other ending": ("m.json", LINE.encode(), "manifest_format", r"\.parquet, \.csv"),
    "no ending": ("m", LINE.encode(), "manifest_format", "no ending"),
    "latin-1": ("m.csv", HEADER.encode() + b"a,\xe9.png,[],[]\n", "manifest_unreadable", "UTF-8"),
    "workbook": ("m.csv", b"PK\x03\x04\xd7", "manifest_unreadable", "is a ZIP archive, not text"),
    "binary csv": ("m.csv", b"a\0b\0,c\n\0", "manifest_unreadable", "column|parse|NUL"),
    "bad line": ("m.jsonl", f"{LINE}\n\n{{nope\n".encode(), "row_unreadable", "line 3 is not JSON"),
    "no object": ("m.ndjson", f"{LINE}\n[1]\n".encode(), "row_unreadable", "line 2 is not a JSON object"),
    "cell not json": ("m.csv", f"{HEADER}a,a.png,1;2;3,[]\n".encode(), "row_unreadable", "row 0: boxes: '1;2;3'"),
    "too few cells": ("m.csv", f"{HEADER}a,a.png,[],[]\nb,b.png\n".encode(), "manifest_unreadable", "Expected 4"),
    "not a list": ("m.jsonl", LINE.replace("[[1.0", '["x", [1.0').encode(), "column_type", "row 0 has"),
    "true in a box": ("m.jsonl", LINE.replace("[[1.0", "[[true").encode(), "column_type", "row 0 has"),
    "true in a csv": ("m.csv", f'{HEADER}a,a.png,"[[1,2,true,4]]",[]\n'.encode(), "column_type", "row 0 has"),
    "true and 2.5": (
        "m.jsonl",
        (LINE[:-1] + ', "n": [{"a": 2.5}]}\n' + LINE[:-1] + ', "n": [{"a": true}]}').encode(),
        "column_type",
        "not all of one type",
    ),
    "mixed": ("m.jsonl", (LINE[:-1] + ', "n": 1}\n' + LINE[:-1] + ', "n": "x"}').encode(), "column_type", "one type"),
    "half a seed": ("m.jsonl", LINE.replace('"seed": 7', '"seed": 7.5').encode(), "column_type", "seed: .*truncated"),
    "name twice": ("m.jsonl", (LINE[:-1] + ', "boxes": []}').encode(), "row_unreadable", 'has "boxes" more than once'),
    "field twice": (
        "m.jsonl",
        (LINE[:-1] + ', "n": {"a": 1, "a": 2}}').encode(),
        "row_unreadable",
        '"a" more than once',
    ),
    "semicolons": ("m.csv", f"{HEADER}a,,,\n".replace(",", ";").encode() + b"b,c", "manifest_unreadable", "semicolons"),
    "tabs": ("m.csv", f"{HEADER}a,,,\n".replace(",", "\t").encode() + b"b,c", "manifest_unreadable", "by tabs"),
    "separator line": ("m.csv", f"sep=,\n{HEADER}a,a.png,[],[]\n".encode(), "manifest_unreadable", "first line"),
    "space before a quote": ("m.csv", f'{HEADER}a, a.png, "[1, 2]",[]\n'.encode(), "manifest_unreadable", "no space"),
    "backslash before a quote": ("m.csv", f'{HEADER}"a\\"b",a,[],[]\n'.encode(), "manifest_unreadable", "quote twice"),
    "quote in a quoted cell": (
        "m.csv",
        f'{HEADER}a,"5" tall",[],[]\n'.encode(),
        "manifest_unreadable",
        "line 2: .* twice",
    ),
    "quote left open": ("m.csv", f'{HEADER}a,a.png,[],[]\nb,b.png,[],"[]\n'.encode(), "manifest_unreadable", "twice"),
    "cell cut off": ("m.csv", f'{HEADER}a,a.png,"[{"1" * 32766}",[]\n'.encode(), "row_unreadable", "spreadsheets cut"),
    "nameless columns": ("m.csv", f"{HEADER[:-1]},,\na,a.png,[],[],,\n".encode(), "column_duplicate", "has no name"),
    "id is a number": ("m.jsonl", LINE.replace('"cat"', "7").encode(), "column_type", "type is int64, expected string"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path: Path, name: str) -> None:
    file, data, code, message = BAD_FILES[name]
    (tmp_path / file).write_bytes(data)
    assert_refused(str(tmp_path / file), code, message)


def test_a_damaged_page_of_a_parquet_file_with_checksums_is_refused(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    seeds = table(*ROWS).set_column(5, "seed", pa.array([1234567] * len(ROWS), pa.int64()))
    pq.write_table(
        seeds, sink, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    data = sink.getvalue().to_pybytes()
    for name, change in {"whole": b"", "damaged": b"\x88"}.items():
        place = data.index((1234567).to_bytes(8, "little"))
        (tmp_path / f"{name}.parquet").write_bytes(data[:place] + change + data[place + len(change) :])
    assert read_manifest(str(tmp_path / "whole.parquet"))["seed"].to_pylist() == [1234567] * len(ROWS)
    assert_refused(str(tmp_path / "damaged.parquet"), "manifest_unreadable", "CRC checksum")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (["9999-12-31", "2020-01-01"], "us"),
        (["0001-01-01", None], "us"),
        (["2020-01-01T00:00:00.123456789", "1969-12-31T23:59:59.000000001"], "ns"),
    ],
)
def test_old_times_of_parquet_files_keep_their_values(
    tmp_path: Path, times: list[str | None], unit: str, nested: bool
) -> None:
    values: Any = pa.array(np.array(times, f"datetime64[{unit}]"))
    if nested:
        values = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), values)
    manifest = tmp_path / "m.parquet"
    rows = table(row(), row(sample_id="dog")).append_column("taken", values)
    pq.write_table(rows, manifest, use_deprecated_int96_timestamps=True)
    read = read_manifest(str(manifest))["taken"].combine_chunks()
    assert read.cast(values.type).equals(values)


def assert_refused(uri: str, code: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(uri)
    assert [problem.code for problem in caught.value.problems] == [code]
    assert caught.value.source == uri


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").mkdir()
    fsspec.filesystem("memory").pipe_file("/folder/m.csv/x", b"x")
    assert_refused(str(tmp_path), "manifest_directory", "folder")
    assert_refused(str(tmp_path / "m.parquet"), "manifest_directory", "folder")
    assert_refused("memory://folder/m.csv", "manifest_directory", "folder")
    assert_refused(str(tmp_path / "none.csv"), "manifest_missing", "no such file")
    assert_refused("memory://none.jsonl", "manifest_missing", "no such file")
    assert_refused("nope://m.parquet", "manifest_missing", "Protocol not known")


def test_only_the_first_bad_lines_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("nope\n" * 100)
    with pytest.raises(ManifestError, match="further rows that cannot be read: 80"):
        read_manifest(str(path))


def test_a_manifest_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="json is not a manifest format"):
        write_manifest(table(row()), str(tmp_path / "m.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_manifest(table(row()), str(tmp_path / "file" / "m.csv"))


def test_an_unreachable_store_is_a_storage_error() -> None:
    # nothing listens on the discard port
    with pytest.raises(StorageError, match="cannot be read"):
        read_manifest("http://127.0.0.1:9/m.parquet")


def test_nan_in_jsonl_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(LINE.replace("[1.0", "[NaN", 1))
    assert str(read_manifest(str(path)).to_pylist()[0]["boxes"][0][0]) == "nan"


@pytest.mark.parametrize("depth", [900, 990, 100_000])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_too_deeply_nested_lists_are_refused_with_their_line(tmp_path: Path, depth: int, ending: str) -> None:
    deep = "[" * depth + "]" * depth
    text = {
        "jsonl": f'{{"sample_id": "a", "boxes": [[1, 2, 3, 4]]}}\n{{"sample_id": "b", "boxes": {deep}}}\n',
        "csv": f'sample_id,boxes\na,"[[1, 2, 3, 4]]"\nb,{deep}\n',
    }[ending]
    manifest = tmp_path / f"m.{ending}"
    manifest.write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(str(manifest))
    assert any(re.search(r"line 2 |row 1\b", str(problem)) for problem in caught.value.problems)


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"caption": f"cut {HALF}"}, r"row 1 \(dog\): caption"),
        ({"tags": [{"deep": ["fine", HALF]}]}, r"row 1 \(dog\): tags"),
        ({"tags": {HALF: 1}}, r"row 1 \(dog\): tags"),
        ({HALF: 1}, r"manifest: \\ud83d"),
        ({"image": HALF}, r"row 1 \(dog\): image"),
        ({"sample_id": HALF}, r"row 1: sample_id"),
    ],
)
def test_half_a_character_is_refused_with_its_row_and_column(
    tmp_path: Path, values: dict[str, object], place: str
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in (row(), row(sample_id="dog") | values)))
    with pytest.raises(ManifestError, match=rf"{place}: the (text|name) has half a character \(\\ud83d") as caught:
        read_manifest(str(manifest))
    assert [problem.code for problem in caught.value.problems] == ["text_invalid"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**63, 1], pa.uint64()),
        ([2**63, -1], pa.decimal128(38, 0)),
        ([2**200, None], pa.decimal256(76, 0)),
    ],
)
def test_large_whole_numbers_are_read(tmp_path: Path, values: list[int | None], kind: pa.DataType) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row(sample_id=f"s{n}", n=n)) + "\n" for n in values))
    column = read_manifest(str(manifest))["n"]
    assert (column.type, column.to_pylist()) == (kind, values)


def test_values_of_two_types_are_refused_with_both(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    values = {"a": 2**53 + 1, "b": 0.5}
    manifest.write_text("".join(json.dumps(row(sample_id=name, n=n)) + "\n" for name, n in values.items()))
    with pytest.raises(ManifestError, match=r"row 0 has 9007199254740993 and row 1 has 0\.5"):
        read_manifest(str(manifest))
