"""The `manifest from-...` commands, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from manifests.io import read_manifest
from manifests.recipe import METADATA_KEY
from manifests.sources.clips import ClipSettings
from manifests.sources.mc_bench import McBenchSettings
from manifests.sources.vipseg import VipsegSettings
from pipeline.cli.manifest import app
from sgi2v.errors import ConfigError, ManifestError
from sgi2v.settings import Settings
from tests.manifests.footage import Disc, constant_rate, line, render, write_video


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", ["from-sgi2v", "from-videos", "from-vipseg", "from-mc-bench"])
def test_help_ends_with_an_example(command: str) -> None:
    last = " ".join(run(command, "--help").stdout.split()).rpartition("Example: ")[2]
    assert last.startswith(f"sgi2v-batch manifest {command} ")


@pytest.mark.parametrize(
    ("command", "settings"),
    [("from-videos", ClipSettings()), ("from-vipseg", VipsegSettings()), ("from-mc-bench", McBenchSettings())],
)
def test_help_names_every_setting_and_its_default(command: str, settings: Settings) -> None:
    text = " ".join(run(command, "--help").stdout.split())
    for name, value in settings.plain().items():
        default = "as many as fit" if value is None else f"{value:g}" if isinstance(value, float) else value
        begin = text.index(f"--{name.replace('_', '-')} ")
        assert f"[default: {default}]" in text[begin : begin + 300]


@pytest.mark.parametrize("command", ["from-sgi2v", "from-videos", "from-vipseg", "from-mc-bench"])
def test_a_name_of_no_format_is_refused_before_the_work(tmp_path: Path, command: str) -> None:
    error = run(command, str(tmp_path / "nowhere"), "-o", str(tmp_path / "m.txt")).exception
    assert isinstance(error, ManifestError)
    assert ".txt is not a manifest format" in str(error)


def write_vipseg(root: Path) -> None:
    for name, step in (("1_a", 4), ("2_b", 0)):
        for folder in ("images", "panomasks"):
            (root / folder / name).mkdir(parents=True)
        for t in range(14):
            mask = np.zeros((72, 128), np.uint16)
            if step:
                mask[20:50, 20 + step * t : 50 + step * t] = 6100
            Image.fromarray(mask).save(root / "panomasks" / name / f"{t:08}.png")
            Image.new("RGB", (128, 72)).save(root / "images" / name / f"{t:08}.jpg")


@pytest.mark.slow
def test_from_vipseg_writes_a_manifest_and_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_vipseg(tmp_path / "VIPSeg_720P")
    result = run("from-vipseg", "VIPSeg_720P", "-o", "out/m.parquet", "--min-area", "0.02", "--processes", "1")
    assert result.stdout.splitlines() == [
        "wrote out/m.parquet: 1 sample",
        "left out, by reason (see out/skipped.parquet):",
        "     1  no_objects",
        "next: sgi2v-batch manifest validate out/m.parquet",
    ]
    table = read_manifest("out/m.parquet")
    assert table["image"].to_pylist() == ["../VIPSeg_720P/images/1_a/00000000.jpg"]
    recipe = json.loads(table["recipe"].to_pylist()[0])
    assert recipe == {
        "source": "vipseg",
        "list": "panomasks",
        "vipseg": VipsegSettings(min_area=0.02).plain(),
    }
    assert json.loads(pq.read_schema("out/m.parquet").metadata[METADATA_KEY.encode()]) == recipe
    assert pq.read_table("out/skipped.parquet")["key"].to_pylist() == ["2_b"]
    assert run("validate", "out/m.parquet").exit_code == 0


def test_settings_that_cannot_be_used_are_named_by_their_options(tmp_path: Path) -> None:
    error = run("from-vipseg", str(tmp_path), "-o", "m.parquet", "--min-area", "2").exception
    assert isinstance(error, ConfigError)
    assert str(error) == "--min-area must be 1.0 or less, not 2.0"
    error = run("from-videos", str(tmp_path), "-o", "m.parquet", "--filter", "min_area").exception
    assert str(error) == "--filter min_area is not NAME=VALUE: write for example --filter max_boxes=4"
    error = run("from-mc-bench", str(tmp_path), "-o", "m.parquet", "--drags", "all").exception
    assert str(error).startswith("--drags must be one of one, parts, not 'all'")


def test_from_mc_bench_says_how_many_samples_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, drags in enumerate(([[[20, 20], [40, 30]]], [])):
        folder = tmp_path / "MC-Bench" / "object_control" / f"{number:04}"
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(folder / "first_frame.png")
        Image.new("RGB", (64, 48), "white").save(folder / "first_frame_mask.png")
        (folder / "meta_data.json").write_text(json.dumps({"traj_key_points": drags}))
    result = run("from-mc-bench", "MC-Bench", "-o", "m.parquet")
    assert result.stdout.splitlines() == [
        "object_control: 1 of 2 samples entered (0 by meta_data_new.json, 1 by meta_data.json)",
        "wrote m.parquet: 1 sample",
        "left out, by reason (see skipped.parquet):",
        "     1  metadata_invalid",
        "next: sgi2v-batch manifest validate m.parquet",
    ]
    assert run("validate", "m.parquet").exit_code == 0


@pytest.mark.slow
def test_make_from_videos_is_from_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    times = constant_rate(2, 10)
    write_video(tmp_path / "films" / "a.mp4", render((Disc(line(150, 180, 120, 20)),), times), times)
    words = ("films", "--boxes", "grid", "--boxes-option", "rows=6", "--frames", "8", "--processes", "1")
    for output, command in (("a/m.parquet", ("make", "--from-videos")), ("b/m.parquet", ("from-videos",))):
        result = run(*command, *words, "-o", output)
        assert result.exit_code == 0, result.output
    assert Path("a/m.parquet").read_bytes() == Path("b/m.parquet").read_bytes()
    assert Path("a/skipped.parquet").read_bytes() == Path("b/skipped.parquet").read_bytes()
    assert len(read_manifest("a/m.parquet")["trajectories"].to_pylist()[0][0]) == 8


@pytest.mark.slow
def test_from_videos_that_give_nothing_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()
    error = run("from-videos", ".", "-o", "m.parquet", "--boxes", "grid", "--boxes-option", "rows=2").exception
    assert isinstance(error, ConfigError)
    lines = str(error).splitlines()
    assert lines[0] == ". gives no sample; what was left out, by reason (see skipped.parquet):"
    assert lines[1:] == ["     1  video_empty, such as a.mp4: the file has no bytes: copy it again"]
    assert pq.read_table("skipped.parquet")["message"].to_pylist() == ["the file has no bytes: copy it again"]
    assert not Path("m.parquet").exists()
