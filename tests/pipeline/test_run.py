"""Runs through the command line, until they end: on this machine's disk and on a real S3 server."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow.fs import S3FileSystem

from pipeline.output.records import SampleRecord
from sgi2v.video import decode_mp4
from tests.pipeline.conftest import KEY, REGION, SECRET, S3Server
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import (
    FRAMES,
    SIDE,
    cli,
    picture,
    records,
    row,
    run_tiny,
    table,
    write_good,
    write_rows,
)

pytestmark = pytest.mark.slow

ROWS = 4
CAPTIONS = [f"caption {number}" for number in range(ROWS)]


@dataclass(frozen=True)
class Finished:
    """A run with two workers that has succeeded."""

    manifest: Path
    output: Path
    process: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    manifest = write_good(folder, ROWS)
    with_caption = pq.read_table(manifest).append_column("caption", pa.array(CAPTIONS))
    pq.write_table(with_caption.append_column("tracker", pa.array([None] * ROWS, pa.string())), manifest)
    process = run_tiny(manifest, folder / "out", "--workers", "2")
    assert process.returncode == 0, process.stderr
    return Finished(manifest, folder / "out", process)


def frames_of(output: Path) -> Mapping[str, str]:
    """Digests of the generated frames, by sample."""
    return {name: record["frames_sha256"] for name, record in records(output).items()}


def test_a_good_manifest_gives_a_video_and_a_record_for_each_row(finished: Finished) -> None:
    output = finished.output
    assert sorted(path.name for path in output.iterdir()) == [
        *(
            "README.md",
            "distributions.png",
            "failures.parquet",
            "labels.parquet",
            "lease",
            "logs",
            "metadata.parquet",
            "records",
            "run.json",
            "tables",
            "videos",
        )
    ]
    metadata = table(output)
    assert metadata["sample_id"].to_pylist() == sorted(records(output))
    assert metadata["caption"].to_pylist() == CAPTIONS
    assert metadata.schema.field("manifest_tracker").type == pa.string()
    assert metadata["tracker"].to_pylist() == ["lucas-kanade"] * ROWS
    for name in metadata["file_name"].to_pylist():
        assert decode_mp4((output / name).read_bytes()).shape == (FRAMES, SIDE, SIDE, 3)
    assert len(list((output / "videos").iterdir())) == ROWS
    assert len(set(frames_of(output).values())) == ROWS
    assert table(output, "failures.parquet").num_rows == 0


def test_without_a_terminal_the_output_is_plain_lines_without_rays_messages(finished: Finished) -> None:
    lines = finished.process.stderr.splitlines()
    assert lines[0] == f"{ROWS} rows: 0 done before, {ROWS} to do -> {finished.output}"
    assert lines[1] == "2 workers, no GPU, 1 CPU thread per worker; loading embedded"
    samples = [line for line in lines[2:] if line.startswith("[")]
    assert [line.split()[0] for line in samples] == [f"[{number}/{ROWS}]" for number in range(1, ROWS + 1)]
    assert "per min" not in "".join(samples[:2])  # the first sample of each worker includes the loading of the model
    assert re.search(r"\(\d+\.\d per min, \d.* left\)$", samples[2])
    progress = [line for line in lines[2:] if line not in samples]
    assert re.fullmatch(r"model loaded on worker 1 of 2 in \d+\.\d s", progress[0])
    assert [line for line in progress if not re.match(r"model loaded on |s\d\d: step \d of 3$", line)] == []
    summary = finished.process.stdout.splitlines()
    assert summary[0].startswith(f"{ROWS} made, 0 failed, 0 done before, of {ROWS} rows, in ")
    assert re.fullmatch(
        r"  ObjMC +\d+\.\d\d  px \(static \d+\.\d\d\), control gain -?\d\.\d\d, over \d samples", summary[1]
    )
    assert f"  metrics    {finished.output}/metadata.parquet" in summary


def test_a_finished_run_does_nothing_when_repeated(finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished.output / "records").iterdir()}
    again = run_tiny(finished.manifest, finished.output, "--retry-failed")
    assert again.returncode == 0, again.stderr
    assert again.stderr == f"{ROWS} rows: {ROWS} done before, 0 to do -> {finished.output}\n"
    assert again.stdout.startswith(f"0 made, 0 failed, {ROWS} done before, of {ROWS} rows")
    assert {path: path.stat().st_mtime_ns for path in (finished.output / "records").iterdir()} == before
    status = cli("status", finished.output)
    assert status.returncode == 0
    assert status.stdout.startswith(f"{ROWS} made, 0 failed, 0 left, of {ROWS} rows\n  phase      finished\n")


def test_a_dry_run_on_a_finished_output_says_so(finished: Finished) -> None:
    process = run_tiny_here(finished.manifest, finished.output, "--dry-run")
    assert process.returncode == 0, process.stderr
    assert f"  done before {ROWS:>6}\n" in process.stdout
    assert f"  to do       {0:>6}  -> {finished.output}\n" in process.stdout
    memory = re.search(
        r"memory +(\S+)  GiB a worker at least; (\S+) in the medium tier, (\S+) in the low", process.stdout
    )
    assert memory is not None
    high, medium, low = map(float, memory.groups())
    assert high >= medium >= low > 0


def test_an_output_of_other_settings_is_refused_and_not_changed(finished: Finished) -> None:
    before = {path: path.read_bytes() for path in finished.output.rglob("*") if path.is_file()}
    for words, difference in {
        ("--steps", "4"): "sampler.steps: 3 before, 4 now",
        ("--seed", "1"): "seed: 817 before, 1 now",
        ("--unguided",): "guidance: on before, off now",
    }.items():
        process = run_tiny_here(finished.manifest, finished.output, *words)
        assert process.returncode == 2
        assert process.stderr.startswith(f"error: {finished.output} belongs to a run with other settings")
        assert f"\n  {difference}" in process.stderr
    assert {path: path.read_bytes() for path in finished.output.rglob("*") if path.is_file()} == before


def test_a_row_that_changed_since_it_was_made_is_refused(finished: Finished) -> None:
    changed = pq.read_table(finished.manifest).to_pylist()
    changed[1]["boxes"] = [[0.0, 0.0, 8.0, 8.0]]
    manifest = write_rows(finished.manifest.with_name("changed.parquet"), changed)
    process = run_tiny_here(manifest, finished.output, "--another-manifest")
    assert process.returncode == 2
    assert "1 finished row changed in the manifest: s01." in process.stderr


def test_a_replayed_sample_has_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    """So frames depend neither on the workers, nor on the order, nor on the other rows: a replay has one process."""
    output = shutil.copytree(finished.output, tmp_path / "out")
    same = here("replay", output, "s01")
    assert (same.returncode, same.stdout) == (0, "s01: bit-identical\n"), same.stderr
    assert re.match(r"loading embedded\nmodel loaded in \d+\.\d s\ns01: step 1 of 3\n", same.stderr)
    record = output / "records" / "s01.json"
    record.write_bytes(replace(SampleRecord.from_json(record.read_bytes()), frames_sha256="0" * 64).to_json())
    other = here("replay", output, "s01")
    assert other.returncode == 1
    assert "not bit-identical (made on cpu, float32; now on cpu)" in other.stdout


def test_a_sample_that_cannot_be_replayed_is_refused(finished: Finished, tmp_path: Path) -> None:
    output = shutil.copytree(finished.output, tmp_path / "out")
    unknown = here("replay", output, "nobody")
    assert (unknown.returncode, unknown.stderr) == (2, f"error: {output} has no sample 'nobody'\n")
    for file in (output / "records").iterdir():
        file.write_text(json.dumps({**json.loads(file.read_text()), "image_sha256": "0" * 64}))
    replaced = here("replay", output, "s00")
    assert replaced.returncode == 2
    assert replaced.stderr.endswith("s00.png is not the image that s00 was made from\n")
    run = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**run, "manifest": str(output / "none.parquet")}))
    assert here("replay", output, "s00").returncode == 2


def test_a_sample_can_be_looked_into(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "inspect"
    looked = here("inspect", finished.output, "s01", "-o", folder)
    assert looked.returncode == 0, looked.stderr
    assert "s01: the same frames as in the output, bit for bit; features of step 1" in looked.stdout
    with np.load(folder / "s01.npz", allow_pickle=False) as arrays:
        steps, num_frames, *cells = arrays["latent_change"].shape
        assert (steps, num_frames) == (len(arrays["guided_steps"]), FRAMES)
        assert arrays["plain_components"].shape == arrays["modified_components"].shape == (FRAMES, *cells, 3)
        assert arrays["losses"].shape[0] == len(arrays["guided_steps"])
        assert arrays["frames"].shape == (FRAMES, SIDE, SIDE, 3)
    assert np.asarray(Image.open(folder / "s01.png")).std() > 20
    refused = here("inspect", finished.output, "s01", "-o", folder, "--step", "2")
    assert (refused.returncode, refused.stderr) == (2, "error: step 2 is not guided: choose one of 0, 1\n")


def test_from_s3_onto_s3(bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    store = s3_server.filesystem()
    for number in range(2):
        sink = io.BytesIO()
        picture(number).save(sink, "PNG")
        store.pipe_file(f"{bucket}/in/images/{number}.png", sink.getvalue())
    rows = [
        row("relative", image="images/0.png"),
        row("absolute", image=f"{bucket}/in/images/1.png"),
        row("missing", image="images/none.png"),
    ]
    store.pipe_file(f"{bucket}/in/m.parquet", write_rows(tmp_path / "m.parquet", rows).read_bytes())
    output = f"{bucket}/out"
    with without_ray():
        process = run_tiny_here(f"{bucket}/in/m.parquet", output)
    assert process.returncode == 1, process.stderr
    assert "missing FAILED image_missing" in process.stderr

    address = s3_server.endpoint.removeprefix("http://")
    arrow = S3FileSystem(access_key=KEY, secret_key=SECRET, region=REGION, scheme="http", endpoint_override=address)
    root = output.removeprefix("s3://")
    metadata = pq.read_table(f"{root}/metadata.parquet", filesystem=arrow)
    assert metadata["sample_id"].to_pylist() == ["absolute", "relative"]
    for name in metadata["file_name"].to_pylist():
        with arrow.open_input_file(f"{root}/{name}") as stream:
            assert len(decode_mp4(stream.read())) == FRAMES
    assert pq.read_table(f"{root}/failures.parquet", filesystem=arrow)["error_code"].to_pylist() == ["image_missing"]

    again = run_tiny_here(f"{bucket}/in/m.parquet", output)
    assert (again.returncode, again.stderr) == (1, f"3 rows: 3 done before, 0 to do -> {output}\n")
    status = here("status", output)
    assert status.stdout.startswith("2 made, 1 failed, 0 left, of 3 rows\n")
    assert len(store.find(f"{root}/videos")) == 2


def test_a_sheet_is_drawn_of_one_or_two_outputs(finished: Finished, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "new folder" / "two.png"
    drawn = here("sheet", finished.manifest, finished.output, "-o", one, "--frames", "3", "--limit", "2")
    assert (drawn.returncode, drawn.stdout) == (0, f"wrote {one}\n"), drawn.stderr
    assert here("sheet", finished.manifest, finished.output, finished.output, "-o", two, "--limit", "1").returncode == 0
    width, height = Image.open(one).size
    assert Image.open(two).height < height
    assert Image.open(two).width > width
    assert np.asarray(Image.open(one)).std() > 20


def test_a_sheet_without_a_run_or_a_writable_place_is_refused(finished: Finished, tmp_path: Path) -> None:
    nothing = here("sheet", finished.manifest, tmp_path / "nothing", "-o", tmp_path / "sheet.png")
    assert nothing.returncode == 2
    assert "there is no run at" in nothing.stderr
    (tmp_path / "file").write_text("")
    nowhere = here("sheet", finished.manifest, finished.output, "-o", tmp_path / "file" / "sheet.png")
    assert nowhere.returncode == 2
    assert "cannot be written" in nowhere.stderr
