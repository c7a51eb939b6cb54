"""Parquet manifests that decode to far more than their size are refused before they are decoded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import manifests.io
from manifests.io import read_manifest
from manifests.parquet_size import decoded_bytes
from sgi2v.errors import ManifestError
from tests.manifests.rows import row, table

MIB = 2**20
NO_LIMIT = 2**60


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", **options)
    return sink.getvalue().to_pybytes()


def with_column(values: Any) -> dict[str, Any]:
    """A valid manifest of as many rows, with one more column."""
    rows = table(*(row(sample_id=f"s{number}") for number in range(len(values))))
    return {**dict(zip(rows.column_names, rows.columns, strict=True)), "own": values}


def long_list(items: int) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, items], pa.int32()), pa.array(np.zeros(items)))


REPEATING: dict[str, tuple[Any, dict[str, Any]]] = {
    "one long list": (long_list(4 * MIB), {}),
    "one text in every row": (pa.array(["x" * MIB] * 32), {}),
    "bytes in every row": (pa.array([b"x" * MIB] * 32), {}),
    "a text in lists": (pa.array([["x" * MIB] * 8] * 4), {}),
    "a text in structs of maps": (
        pa.array([{"m": [("k", "x" * MIB)]}] * 32, pa.struct({"m": pa.map_(pa.string(), pa.string())})),
        {},
    ),
    "texts that grow": (
        pa.array(["x" * MIB + str(number) for number in range(32)]),
        {"use_dictionary": False, "column_encoding": {"own": "DELTA_BYTE_ARRAY"}},
    ),
    "nulls": (pa.nulls(9 * MIB, pa.int32()), {}),
}


@pytest.mark.parametrize("name", REPEATING)
def test_a_small_file_with_a_value_that_repeats_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests.io, "SMALL_BYTES", 30 * MIB)
    values, options = REPEATING[name]
    file = tmp_path / "m.parquet"
    file.write_bytes(parquet({"own": values} if name == "nulls" else with_column(values), **options))
    assert file.stat().st_size < 100_000
    with pytest.raises(ManifestError, match=r"bytes would take more than 31,457,280 bytes of memory") as caught:
        read_manifest(str(file))
    assert [problem.code for problem in caught.value.problems] == ["manifest_too_large"]


def test_the_bound_is_close_to_what_the_values_take() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**62, 20_000)
    plain: dict[str, Any] = {
        "n": pa.array(numbers),
        "s": pa.array(map(str, numbers)),
        "same": pa.array(["the same text"] * 20_000),
        "l": pa.array([[float(number)] * 3 for number in numbers]),
        "d": pa.array(["x", "y"] * 10_000).dictionary_encode(),
        "b": pa.array([True, None] * 10_000),
    }
    whole = pa.table(plain)
    delta = dict.fromkeys(("s", "same", "d"), "DELTA_BYTE_ARRAY")
    for options in (
        {},
        {"use_dictionary": False},
        {"use_dictionary": False, "column_encoding": delta},
        {"data_page_version": "2.0", "row_group_size": 3000},
    ):
        assert whole.nbytes / 2 < decoded_bytes(parquet(plain, **options), NO_LIMIT) < whole.nbytes * 2
    assert decoded_bytes(parquet({"s": pa.array(["x" * 1000] * 20_000)}), 2**22) > 2**22
    assert decoded_bytes(parquet({"s": pa.array(["x" * 1000] * 2000)}), 2**22) < 2**22


def test_a_text_that_repeats_within_reason_is_read(tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    file.write_bytes(parquet(with_column(pa.array(["caption " * 100] * 2000))))
    assert read_manifest(str(file))["own"].to_pylist() == ["caption " * 100] * 2000


@pytest.mark.slow
def test_a_refusal_takes_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    file.write_bytes(parquet({"own": pa.nulls(30 * MIB, pa.int64())}))
    script = (
        "import resource, sys\n"
        "import manifests.io\n"
        "from sgi2v.errors import ManifestError\n"
        "manifests.io.SMALL_BYTES = 100 * 2**20\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: manifests.io.read_manifest(sys.argv[1])\n"
        "except ManifestError as error: print(error.problems[0].code)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    code, kib = process.stdout.split()
    assert code == "manifest_too_large"
    assert int(kib) < 50 * 1024
