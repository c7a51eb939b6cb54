"""Runs that cannot start are refused before any work, with a message and an exit code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.schema import MANIFEST_SCHEMA
from pipeline.output.catalog import Catalog
from pipeline.output.records import SampleRecord, commit
from pipeline.output.storage import Storage
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from tests.pipeline.in_process import here, run_tiny_here
from tests.pipeline.runs import TINY, row, run_tiny, write_good, write_rows


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_good(tmp_path, 1)


def _empty(path: Path) -> None:
    pq.write_table(MANIFEST_SCHEMA.empty_table(), path)


def _truncated(path: Path) -> None:
    write_rows(path, [row("a")])
    path.write_bytes(path.read_bytes()[:-100])


def _without_boxes(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([row("a")], MANIFEST_SCHEMA).drop_columns(["boxes"]), path)


def _boxes_as_text(path: Path) -> None:
    pq.write_table(pa.table({**pa.Table.from_pylist([row("a")]).to_pydict(), "boxes": ["1,2,3,4"]}), path)


MANIFESTS = {
    "missing": (lambda path: None, "no such file: check the path [manifest_missing]"),
    "folder": (lambda path: path.mkdir(), "this is a folder: name the manifest file in it [manifest_directory]"),
    "empty": (_empty, "there are no rows: add one row per sample [manifest_empty]"),
    "zero-bytes": (lambda path: path.write_bytes(b""), "the file is empty: write one row per sample [manifest_empty]"),
    "not-parquet": (lambda path: path.write_text("sample_id,image\n"), "this is not a Parquet file"),
    "truncated": (_truncated, "the Parquet file is truncated: copy or write it again"),
    "column-missing": (_without_boxes, "boxes: column is missing: add it as list<"),
    "wrong-type": (_boxes_as_text, "boxes: type is string, expected list<"),
    "duplicate-ids": (lambda path: write_rows(path, [row("a"), row("b"), row("a")]), "is used in 2 rows (0, 2)"),
    "unsafe-ids": (lambda path: write_rows(path, [row("../a"), row("b")]), "'../a' cannot be a file name"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_cannot_be_run(kind: str, tmp_path: Path) -> None:
    make, message = MANIFESTS[kind]
    path = tmp_path / "m.parquet"
    make(path)
    process = run_tiny_here(path, tmp_path / "out")
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith(f"error: {path} cannot be used:\n")
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists(), "a refused run writes nothing"


def _error_for_model(model: str, manifest: Path) -> str:
    """Standard error of a run that is refused for its model."""
    process = run_tiny_here(manifest, manifest.parent / "out", "--model", model)
    assert process.returncode == 2, process.stderr
    assert not (manifest.parent / "out").exists()
    return process.stderr


@pytest.mark.slow
def test_a_place_without_a_model_is_refused(manifest: Path) -> None:
    folder = manifest.parent
    assert "there is no model folder ./nothing" in _error_for_model("./nothing", manifest)
    assert f"{manifest} is a file: give the folder that holds" in _error_for_model(str(manifest), manifest)
    (folder / "other").mkdir()
    error = _error_for_model(str(folder / "other"), manifest)
    assert "is not a complete checkpoint in diffusers layout: it lacks unet/config.json, vae/config.json" in error


@pytest.mark.slow
def test_an_incomplete_or_pickled_model_is_refused(manifest: Path) -> None:
    model = manifest.parent / "model"
    shutil.copytree(open_checkpoint(ModelConfig(source="embedded")).path, model)
    for weights in (model / "vae").glob("*.safetensors"):
        weights.unlink()
    error = _error_for_model(str(model), manifest)
    assert "it lacks vae/diffusion_pytorch_model.safetensors\n" in error
    (model / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    error = _error_for_model(str(model), manifest)
    assert "only pickled weights are there, which are never read: convert them to safetensors" in error


@pytest.mark.slow
def test_for_an_invalid_size_the_nearest_valid_one_is_named(manifest: Path) -> None:
    multiple = open_checkpoint(ModelConfig(source="embedded"), weights=False).size_multiple
    process = run_tiny_here(manifest, manifest.parent / "out", "--height", "100", "--width", "70")
    assert process.returncode == 2
    nearest = [round(side / multiple) * multiple for side in (100, 70)]
    assert "embedded cannot make frames of 100 x 70 (height x width)" in process.stderr
    assert f"the nearest valid size is {nearest[0]} x {nearest[1]}\n" in process.stderr


@pytest.mark.slow
def test_unknown_settings_are_named(manifest: Path) -> None:
    settings = manifest.parent / "settings.toml"
    for text, message in {
        "[sampler]\nstep = 3\n": "unknown setting sampler.step (did you mean steps?): known are height, width",
        "[sampling]\nsteps = 3\n": "unknown section [sampling] (did you mean sampler?): known are model, sampler",
        "[sampler]\nfps = 'many'\n": "sampler.fps must be an integer, not 'many'",
        "[sampler\n": "cannot be read as TOML",
    }.items():
        settings.write_text(text)
        process = run_tiny_here(manifest, manifest.parent / "out", "--config", settings)
        assert (process.returncode, process.stdout) == (2, "")
        assert message in process.stderr
    process = run_tiny_here(manifest, manifest.parent / "out", "--preset", "slow")
    assert (process.returncode, process.stderr) == (
        2,
        "error: --preset must be one of paper, fast, scene, not 'slow'\n",
    )


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_a_storage_error(manifest: Path) -> None:
    process = run_tiny_here(manifest, "/proc/out")
    assert process.returncode == 3, process.stderr
    assert re.match(r"error: (reading|writing) /proc/out/\S+ failed: ", process.stderr), process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("below", ["", "/out"])
def test_an_output_that_is_a_file_or_lies_below_one_is_refused(manifest: Path, below: str) -> None:
    process = run_tiny_here(manifest, f"{manifest}{below}")
    message = f"error: {manifest}{below} cannot be a folder, because {manifest} is a file: give another location\n"
    assert (process.returncode, process.stderr) == (2, message)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_leaves_failed_records_as_they_are(manifest: Path) -> None:
    output = manifest.parent / "out"
    storage = Storage(str(output))
    failed = SampleRecord("s00", "failed", 2, "row", "print", error_code="image_missing", message="gone")
    commit(storage, failed, None)
    process = run_tiny(manifest, output, "--retry-failed", "--address", "127.0.0.1:1")
    assert process.returncode == 2, process.stderr
    assert "error: no Ray cluster answers at 127.0.0.1:1: " in process.stderr
    assert Catalog(storage).get("s00") == failed


@pytest.mark.slow
def test_a_status_without_a_run_is_refused(tmp_path: Path) -> None:
    process = here("status", tmp_path / "none")
    assert (process.returncode, process.stdout) == (2, "")
    assert f"there is no run at {tmp_path / 'none'}: it has no run.json" in process.stderr


@pytest.mark.slow
def test_numbers_that_are_too_small_are_usage_errors(manifest: Path) -> None:
    for words in (("--workers", "0"), ("--limit", "0"), ("--frames", "1"), ("--steps", "0"), ("--no-such-option",)):
        process = here("run", manifest, *TINY, *words)
        assert process.returncode == 2, words
        assert words[0] in process.stderr
