"""What a report holds, of good, poor and hostile outputs. tests/pipeline/report/test_page.py opens it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.output.catalog import Catalog
from pipeline.output.lease import acquire
from pipeline.output.storage import Storage
from pipeline.report.build import build_report, is_inside, video_base
from sgi2v.errors import ConfigError
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.report.made import EPOCH, make_output, record, sample_id, video
from tests.pipeline.runs import write_good
from tests.s3_stand_in import Store

SECRET = "s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG@bucket/key.png"


def script(report: Path, name: str) -> Any:
    """The last argument of a script with data."""
    text = next((report / "data").rglob(f"{name}.js")).read_text()
    assert "<" not in text
    return json.loads("[" + text[text.index("(") + 1 : text.rindex(")")] + "]")[-1]


def column(report: Path, name: str) -> list[float | None]:
    return next(each["values"] for each in script(report, "index")["columns"] if each["name"] == name)


@pytest.mark.slow
def test_a_report_has_every_sample_with_its_numbers_paths_and_baseline(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", 21, failed=3)
    other = make_output(tmp_path / "plain", 20, labels=False)
    built = build_report(str(output), [str(other)])
    report = tmp_path / "out-report"
    assert (built.committed, built.failed, built.videos_missing, built.plays) == (21, 3, 0, True)
    index = script(report, "index")
    assert index["ids"] == [sample_id(number) for number in range(24)]
    assert index["committed"] == [1] * 21 + [0] * 3
    assert column(report, "control_gain")[:2] == [pytest.approx(-0.2), pytest.approx(0.57)]
    assert column(report, "gain over plain")[:20] == [0] * 20
    assert column(report, "gain over plain")[20:] == [None] * 4
    assert column(report, "path_px")[1] == pytest.approx(14, rel=0.01)
    assert index["bases"] == ["../out/", "../plain/"]
    first, *_, last = script(report, "samples-0")
    assert (report / index["bases"][0] / first["video"]).resolve() == (output / record(0, video(0)).file_name)
    assert (report / "thumbs" / f"{first['thumb']}.webp").stat().st_size < 10_000
    (box,) = last["boxes"]
    assert box["error"][0] == 0
    assert box["error"][-1] is None, "it is not measured in the last frame"
    assert (len(box["asked"]), len(box["measured"])) == (8, 8)
    failed = script(report, "samples-1")[-1]
    assert (failed["code"], failed["message"]) == ("box_outside", "23 went wrong: do this")


@pytest.mark.slow
def test_without_labels_the_asked_path_comes_from_the_manifest(tmp_path: Path) -> None:
    with_labels, without = tmp_path / "a", tmp_path / "b"
    build_report(str(make_output(with_labels, 2)))
    build_report(str(make_output(without, 2, labels=False)))
    asked = [script(tmp_path / f"{name}-report", "samples-0")[1]["boxes"][0] for name in "ab"]
    assert asked[0]["asked"] == asked[1]["asked"]
    assert "measured" not in asked[1]
    assert "There are no labels" in (tmp_path / "b-report" / "index.html").read_text()


def test_hostile_and_missing_values_do_no_harm(tmp_path: Path) -> None:
    columns = {
        "</script><img src=x onerror=alert(1)>": pa.array(["<script>alert(2)</script>", None, "\"'`\u2028"]),
        "source": pa.array([SECRET, "hf_abcdefghijklmnopqrstuvwxyz", "x" * 5_000_000]),
        "weight": pa.array([float("nan"), float("inf"), None]),
        "nested": pa.array([[{"a": "<b>"}], [], None]),
    }
    changes = {
        0: {"metrics": {"control_gain": None, "null_reason": "<i>lost</i>"}},
        1: {"source_box": None, "loss_first": [None], "loss_last": None, "height": None},
        2: {"file_name": None},
    }
    output = make_output(tmp_path / "out", 3, labels=False, columns=columns, changes=changes)
    (output / record(1, video(1)).file_name).unlink()
    built = build_report(str(output))
    assert built.videos_missing == 2
    report = tmp_path / "out-report"
    texts = [
        file.read_text() for file in report.rglob("*") if file.suffix in {".js", ".html"} and "assets" not in file.parts
    ]
    assert not any("onerror=alert" in text and "<img" in text for text in texts)
    assert not any(secret in text for text in texts for secret in ("wJalr", "hf_abcdef", "<script>alert"))
    assert sum(map(len, texts)) < 100_000
    samples = script(report, "samples-0")
    assert samples[0]["own"]["</script><img src=x onerror=alert(1)>"] == "<script>alert(2)</script>"
    assert samples[1]["thumb"] is None
    assert samples[1]["boxes"] == []


@pytest.mark.slow
def test_copied_videos_make_the_report_a_whole_and_a_second_build_keeps_them(tmp_path: Path) -> None:
    output, report = make_output(tmp_path / "out", 3), tmp_path / "elsewhere" / "report"
    build_report(str(output), target=str(report), copy_videos=True)
    before = {path: path.stat().st_mtime_ns for path in (*report.glob("videos/0/*"), *report.glob("thumbs/*"))}
    assert len(before) == 6
    catalog = Catalog(Storage(str(output)))
    catalog.remove([sample_id(0)], EPOCH)
    build_report(str(output), target=str(report), copy_videos=True)
    after = {path: path.stat().st_mtime_ns for path in (*report.glob("videos/0/*"), *report.glob("thumbs/*"))}
    assert after.items() < before.items()
    assert len(after) == 4
    assert len(list((report / "data").rglob("index.js"))) == 1
    shutil.rmtree(output)
    sample = script(report, "samples-0")[0]
    assert (report / script(report, "index")["bases"][0] / sample["video"]).read_bytes() == video(1)


def test_an_output_without_a_success_says_so(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", 0, failed=2, labels=False)
    made = here("report", output)
    assert (made.returncode, made.stdout.splitlines()[0]) == (0, "report of 0 videos and 2 failures")
    assert "every sample has failed" in (tmp_path / "out-report" / "index.html").read_text()


def test_a_folder_of_tables_alone_can_be_shown(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", 2)
    for name in ("run.json", "parts"):
        path = output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert build_report(str(output)).committed == 2
    assert "No run wrote here" in (tmp_path / "out-report" / "index.html").read_text()


def test_places_that_are_no_report_are_refused(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", 1)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    (tmp_path / "holiday" / "videos").mkdir(parents=True)
    (tmp_path / "holiday" / "videos" / "beach.mp4").write_bytes(b"mine")
    messages = {"site": "is no report", "out": "is the output itself", "out/videos/x": "lies in"}
    for target, message in {**messages, "holiday": "holds videos and is no report"}.items():
        with pytest.raises(ConfigError, match=message):
            build_report(str(output), target=str(tmp_path / target))
    with pytest.raises(ConfigError, match="nothing to report on"):
        build_report(str(tmp_path / "site"), target=str(tmp_path / "new"))
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
    assert (tmp_path / "holiday" / "videos" / "beach.mp4").exists()


def test_without_the_extra_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.needs.PACKAGES", ("jinja2", "no_such_package"))
    output = make_output(tmp_path / "out", 1)
    refused = here("report", output)
    assert refused.returncode == 2
    assert "pip install 'sgi2v-batch[report]'" in refused.stderr
    assert not (tmp_path / "out-report").exists()


@pytest.mark.parametrize(
    ("source", "target", "base"),
    [
        ("/data/o ut", "/data/report", "../o%20ut/"),
        ("/data/out", "/data/out/pages/report", "../../"),
        ("memory://bucket/a/out", "memory://bucket/report", "../a/out/"),
        ("memory://bucket/out", "memory://other/report", None),
        ("/data/out", "memory://bucket/report", None),
    ],
)
def test_where_the_videos_are_from_the_pages(source: str, target: str, base: str | None) -> None:
    assert video_base(Storage(source), Storage(target)) == base


def test_keys_that_lead_out_of_an_output_are_not_read() -> None:
    assert is_inside("videos/a.mp4")
    assert not any(map(is_inside, ("/etc/passwd", "../x.mp4", "a/../../x", "javascript:alert(1)", "https://x/y.mp4")))


def test_an_output_that_is_being_written_says_so(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", 1)
    with acquire(Storage(str(output)), False, lambda line: None):
        build_report(str(output))
    assert "A run is writing to this output" in (tmp_path / "out-report" / "index.html").read_text()


@pytest.mark.slow
def test_a_run_writes_its_report_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_good(tmp_path, 2)
    with without_ray():
        made = run_tiny_here(manifest, tmp_path / "out", "--report")
        assert made.returncode == 0, made.stderr
        assert made.stdout.endswith(f"  open {(tmp_path / 'out-report' / 'index.html').as_uri()}\n")
        assert script(tmp_path / "out-report", "index")["ids"] == ["s00", "s01"]
        monkeypatch.setattr("pipeline.report.needs.PACKAGES", ("no_such_package",))
        refused = run_tiny_here(manifest, tmp_path / "other", "--report")
    assert (refused.returncode, "sgi2v-batch[report]" in refused.stderr) == (2, True)
    assert not (tmp_path / "other").exists(), "the run has not begun"


@pytest.mark.slow
def test_a_bucket_holds_an_output_and_its_report(store: Store, tmp_path: Path) -> None:
    output, bucket = make_output(tmp_path / "out", 2), Storage("s3://bucket/a/out")
    for file in output.rglob("*"):
        if file.is_file():
            bucket.put(file.relative_to(output).as_posix(), file.read_bytes())
    assert build_report("s3://bucket/a/out").plays
    report = Storage("s3://bucket/a/out-report")
    assert sorted(key.partition("/")[0] for key in report.keys("thumbs")) == ["thumbs", "thumbs"]
    (index,) = [key for key in report.keys("data") if key.endswith("/index.js")]
    assert b'"bases":["../out/"]' in (report.get(index) or b"")
    assert not build_report("s3://bucket/a/out", target=str(tmp_path / "here")).plays
    assert "--copy-videos" in (tmp_path / "here" / "index.html").read_text()
