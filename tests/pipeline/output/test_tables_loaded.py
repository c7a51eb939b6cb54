"""The tables with own columns of every type, loaded with Hugging Face `datasets`, offline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from manifests.schema import conform
from pipeline.output.catalog import Catalog
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, METADATA, check_own_columns, write_tables
from sgi2v.errors import SGI2VError
from tests.manifests.columns import columns, is_kept
from tests.manifests.test_own_columns import PLAIN
from tests.pipeline.output.outputs import committed, failed, manifest

EPOCH = 1


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep `datasets` from the network, and its cache in this test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def write(storage: Storage, rows: pa.Table, *ids: str) -> None:
    """Write the tables with a committed and a failed sample of each letter; every video is a few bytes."""
    catalog = Catalog(storage)
    for sample_id in ids:
        record = committed(sample_id)
        storage.put(record.file_name or "", b"no video")
        catalog.add(record)
        catalog.add(failed(f"{sample_id}-failed"))
    write_tables(catalog, rows, EPOCH)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["every type", "every name"])
def test_a_folder_is_loaded_with_every_row_and_column(tmp_path: Path, name: str) -> None:
    from datasets import Features, Video, load_dataset

    output = tmp_path / "out"
    if name == "every type":
        own = {f"c {number}": array.slice(0, 1) for number, (array, *_) in enumerate(PLAIN.values())}
    else:
        special = ("video", "videos", "label", "__key__", "__url__", "file_name", "mask_file_name", "mask_file_names")
        own = {name: pa.array(["text"]) for name in (*special, "file_names", "height", "a.b", "split", "image_path")}
    rows = manifest("a", columns=own)
    write(Storage(str(output)), conform(rows, "m"), "a")
    files = {"train": [str(output / METADATA), str(output / "videos/*.mp4")]}
    loaded = load_dataset("videofolder", data_files=files, split="train").cast_column("video", Video(decode=False))
    table = pq.read_table(output / METADATA)
    assert loaded.num_rows == 1
    shown = {"baseline_file_name": "baseline"}  # a column of videos, whose name loses its ending
    expected = [shown.get(name, name) for name in table.column_names[1:]]
    assert [column for column in loaded.column_names if column != "video"] == expected
    (row,) = table.drop_columns("file_name").rename_columns(expected).to_pylist()
    assert loaded.with_format("arrow")[:].drop_columns("video").to_pylist() == [row]
    failures = load_dataset("parquet", data_files=str(output / FAILURES), split="train")
    assert failures.features == Features.from_arrow_schema(pq.read_schema(output / FAILURES).remove_metadata())
    assert failures.column_names[8:] == table.column_names[table.column_names.index("image") :]


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(columns(), columns())
def test_two_manifests_of_any_types_are_in_the_tables_or_refused_before(
    old: pa.ChunkedArray, new: pa.ChunkedArray
) -> None:
    from datasets import Features

    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        made: dict[str, Any] = {}
        for ids, column in (("abc", old), ("def", new)):
            try:
                rows = conform(manifest(*ids, columns={"own": column}), "m.parquet")
                check_own_columns(storage, rows)
            except SGI2VError:
                continue
            made |= dict(zip(ids, column.to_pylist(), strict=True))
            write(storage, rows, *made)
        for name, ending in {METADATA: "", FAILURES: "-failed"}.items():
            if made:
                table = pq.read_table(f"{folder}/{name}")
                Features.from_arrow_schema(table.schema)
                assert sorted(table["sample_id"].to_pylist()) == [f"{sample_id}{ending}" for sample_id in made]
        for row in pq.read_table(f"{folder}/{METADATA}").to_pylist() if made else []:
            assert is_kept(made[row["sample_id"]], row["own"])
