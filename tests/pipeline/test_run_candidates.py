"""Runs with several seeds for each row, and with plain SVD beside each guided video."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pipeline.inspect.replay
from pipeline.config import candidate_seed, sample_seed
from pipeline.inspect import verify
from pipeline.output.candidates import KEEPABLE
from pipeline.output.storage import ABANDONED_S, Storage
from sgi2v.config import SamplerConfig
from sgi2v.trajectory import BoxTracks
from tests.pipeline import in_process
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import picture, records, row, table, write_good, write_rows
from tests.stand_in import StandIn

pytestmark = pytest.mark.slow

IDS = ("s00", "s01")
NUMBER = 4
KEEP = "control_gain > 0.5 and flicker < 50"
TRIED = ("--candidates", str(NUMBER), "--keep", KEEP, "--baseline", "unguided")
ASKED_PX = 16 / 3
"""Pixels a frame that the boxes of `write_good` are asked to move."""


def speed_of(seed: int) -> int:
    """Pixels a frame that the picture moves with a seed."""
    return seed % 7


class Seeded(StandIn):
    """The stand-in, whose picture moves as fast as its seed says; unguided it stands still."""

    def _sample(
        self,
        model: object,
        image_HWC: NDArray[np.uint8],
        tracks: BoxTracks,
        sampler: SamplerConfig,
        guidance: object,
        seed: int,
    ) -> Any:
        made = super()._sample(model, image_HWC, tracks, sampler, guidance, seed)
        speed = speed_of(seed) if guidance is not None else 0
        made.frames = np.stack([np.roll(image_HWC, t * speed, axis=1) for t in range(sampler.num_frames)])
        return made


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let this process run and replay without Ray and without a model, and verify without other processes."""
    with pytest.MonkeyPatch.context() as patch, without_ray():
        patch.setattr(in_process, "StandIn", Seeded)
        patch.setattr(pipeline.inspect.replay, "Generate", lambda config, device, send_note: Seeded(config, device))
        patch.setattr(verify._Decoders, "_new_pool", lambda self: ThreadPoolExecutor(1))
        yield


@pytest.fixture(autouse=True)
def _bare() -> Iterator[None]:
    with stand_ins():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, whose last row has no boxes, the output of its run, and what the run printed."""
    folder = tmp_path_factory.mktemp("tried")
    for kind, sample_id in enumerate((*IDS, "none")):
        picture(kind).save(folder / f"{sample_id}.png")
    rows = [*(row(sample_id) for sample_id in IDS), row("none", boxes=[], trajectories=[])]
    with stand_ins():
        done = run_tiny_here(write_rows(folder / "m.parquet", rows), folder / "out", *TRIED)
    assert done.returncode == 0, done.stderr
    (folder / "summary").write_text(done.stdout)
    for file in (folder / "out" / "videos").iterdir():
        os.utime(file, (0, time.time() - ABANDONED_S - 60))
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished / "out", tmp_path / "out")


def seeds_of(sample_id: str, number: int) -> list[int]:
    return [candidate_seed(sample_seed(sample_id, 817), each) for each in range(number)]


def distance(seed: int) -> float:
    """How far a seed's speed is from the asked one: the less, the higher the control gain."""
    return abs(speed_of(seed) - ASKED_PX)


def videos(output: Path) -> set[str]:
    return {f"videos/{file.name}" for file in (output / "videos").iterdir()}


def named(output: Path) -> set[str]:
    """The videos that the records name."""
    columns = ("file_name", "baseline_file_name")
    return {record[name] for record in records(output).values() for name in columns if record[name] is not None}


def test_the_best_of_several_seeds_is_kept_and_all_are_recorded(finished: Path, tmp_path: Path) -> None:
    output, passed, first_passed = finished / "out", 0, 0
    for sample_id in IDS:
        record, seeds = records(output)[sample_id], seeds_of(sample_id, NUMBER)
        tried = record["candidates"]
        assert [each["seed"] for each in tried] == seeds
        assert distance(record["seed"]) == min(map(distance, seeds))
        kept = tried[record["kept_candidate"]]
        assert [each["kept"] for each in tried].count(True) == 1
        assert (kept["kept"], kept["seed"], kept["passed"]) == (True, record["seed"], record["passed"])
        assert kept["frames_sha256"] == record["frames_sha256"]
        assert {name: kept[name] for name in KEEPABLE} == {name: record[name] for name in KEEPABLE}
        assert all((each["why_not"] is None) == each["passed"] for each in tried)
        passed, first_passed = passed + record["passed"], first_passed + tried[0]["passed"]
    summary = (finished / "summary").read_text()
    assert f"pass       {passed:>6}  of 3 rows; with one seed {first_passed}" in summary
    assert "passing rows per worker hour" in summary
    assert "candidates     12  for 3 rows: control gain" in summary
    by_id = {each["sample_id"]: each["candidates"] for each in table(output).to_pylist()}
    assert [each["number"] for each in by_id["s01"]] == list(range(NUMBER))


def test_the_first_candidate_is_the_sample_of_a_run_without_candidates(finished: Path, tmp_path: Path) -> None:
    assert run_tiny_here(finished / "m.parquet", tmp_path / "one", "--limit", "1").returncode == 0
    one, first = records(tmp_path / "one")["s00"], records(finished / "out")["s00"]["candidates"][0]
    same = ("seed", "frames_sha256", *KEEPABLE)
    assert {name: one[name] for name in same} == {name: first[name] for name in same}
    assert one["candidates"] is one["passed"] is one["baseline_file_name"] is None


def test_every_video_of_a_sample_can_be_replayed(finished: Path) -> None:
    output = finished / "out"
    which: list[tuple[str, ...]] = [(), ("--baseline",), ("--candidate", str(NUMBER - 1))]
    for words in which:
        assert "s01: bit-identical" in here("replay", output, "s01", *words).stdout
    refused = {("s01", "--candidate", "4"): "its candidates are 0 to 3", ("none", "--baseline"): "has no baseline"}
    for words, message in refused.items():
        done = here("replay", output, *words)
        assert done.returncode == 2
        assert message in done.stderr


def test_seeds_are_tried_until_one_passes(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, 3), tmp_path / "out"
    assert run_tiny_here(manifest, output, "--candidates", "8", "--keep", KEEP, "--stop-early").returncode == 0
    for record in records(output).values():
        passed = [each["passed"] for each in record["candidates"]]
        assert passed == [False] * (len(passed) - 1) + [True]
        assert record["kept_candidate"] == len(passed) - 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep", "control_gian > 0.5"), "there is no column 'control_gian' (did you mean control_gain?)"),
        (("--keep", "status == 'committed'"), "there is no column 'status'"),
        (("--keep", ""), "--keep must not be empty"),
        (("--candidates", "0"), "--candidates must be 1 or more"),
        (("--candidates", "4", "--stop-early"), "has no effect without"),
        (("--keep", KEEP, "--stop-early"), "has no effect without"),
        (("--baseline", "guided"), "--baseline must be one of unguided"),
        (("--baseline", "unguided", "--unguided"), "has no effect on unguided videos"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_any_work(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    refused = run_tiny_here(write_good(tmp_path, 1), tmp_path / "out", *words)
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()


def test_an_output_has_one_choice_of_candidates_and_baseline(finished: Path) -> None:
    for words in ((), ("--candidates", "3", *TRIED[2:]), TRIED[:4]):
        refused = run_tiny_here(finished / "m.parquet", finished / "out", *words)
        assert refused.returncode == 2
        assert "candidates" in refused.stderr or "baseline: unguided before, off now" in refused.stderr
    assert run_tiny_here(finished / "m.parquet", finished / "out", *TRIED).returncode == 0


def test_a_dry_run_says_how_many_videos_are_made_at_most_and_what_they_cost(tmp_path: Path) -> None:
    manifest, work = write_good(tmp_path, 3), {}
    several = ("--candidates", "4", "--baseline", "unguided")
    for words in ((), several, ("--unguided",)):
        done = run_tiny_here(manifest, tmp_path / "out", "--dry-run", *words)
        assert done.returncode == 0, done.stderr
        work[words] = float(re.findall(r"\((\d+) TFLOP", done.stdout)[0])
        assert ("generations     15  at most: 4 candidates of each row and a baseline" in done.stdout) == (
            words == several
        )
    assert work[several] == 4 * work[()] + work["--unguided",]


def test_a_baseline_lies_beside_each_guided_video(finished: Path) -> None:
    output, made = finished / "out", records(finished / "out")
    assert made["none"]["baseline_file_name"] is made["none"].get("gain_over_baseline") is None
    for record in map(made.__getitem__, IDS):
        assert record["baseline_file_name"] == record["file_name"].replace(".mp4", ".baseline.mp4")
        assert abs(record["baseline_control_gain"]) < 0.1
        assert record["gain_over_baseline"] == pytest.approx(1 - record["objmc_px"] / record["baseline_objmc_px"])
        assert record["seconds_baseline"] is not None
    assert len(videos(output)) == 5
    assert videos(output) == named(output)
    assert "gain over unguided videos, over 2 samples" in (finished / "summary").read_text()
    assert here("verify", output).returncode == 0


def test_a_damaged_baseline_is_found_and_both_videos_of_its_sample_removed(output: Path) -> None:
    made = records(output)
    missing, cut = (output / made[sample_id]["baseline_file_name"] for sample_id in IDS)
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    found = here("verify", output, "--repair").stdout
    assert f"s00: videos/{missing.name} is not there [video_missing]" in found
    assert f"s01: videos/{cut.name} has " in found
    assert videos(output) == {made["none"]["file_name"]}


def test_both_videos_go_where_a_changed_row_is_made_again(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, 1), tmp_path / "out"
    words = ("--baseline", "unguided")
    assert run_tiny_here(manifest, output, *words).returncode == 0
    before = videos(output)
    picture(7).save(tmp_path / "s00.png")
    assert run_tiny_here(manifest, output, *words, "--redo-changed").returncode == 0
    assert len(videos(output)) == 2
    assert not videos(output) & before


@pytest.mark.parametrize("before", ["baseline", "record"])
def test_a_kill_between_the_videos_and_the_record_leaves_nothing_that_counts(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    manifest, output = finished / "m.parquet", tmp_path / "killed"
    put, put_new = Storage.put, Storage.put_new

    def killed_put(storage: Storage, key: str, data: bytes) -> None:
        if before == "baseline" and re.fullmatch(r"videos/s01.*\.baseline\.mp4", key):
            raise SystemExit("killed")
        put(storage, key, data)

    def killed_put_new(storage: Storage, key: str, data: bytes) -> bool:
        if before == "record" and key == "records/s01.json":
            raise SystemExit("killed")
        return put_new(storage, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", killed_put)
        patch.setattr(Storage, "put_new", killed_put_new)
        assert run_tiny_here(manifest, output, *TRIED).returncode == 3
    orphans = videos(output) - named(output)
    assert len(orphans) == {"baseline": 1, "record": 2}[before]
    assert set(records(output)) == {"s00"}
    assert run_tiny_here(manifest, output, *TRIED).returncode == 0
    for file in (output / "videos").iterdir():
        os.utime(file, (0, time.time() - ABANDONED_S - 60))
    assert here("verify", output, "--repair").stdout.count("no record names it") == len(orphans)
    assert videos(output) == named(output)
    same = ("sample_id", "seed", "kept_candidate", "passed", "video_sha256", "baseline_video_sha256", *KEEPABLE)
    assert table(output).select(same) == table(finished / "out").select(same)


def test_datasets_takes_no_baseline_for_a_sample(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = datasets.load_dataset(str(output), split="train")
    for column in ("video", "baseline"):
        loaded = loaded.cast_column(column, datasets.Video(decode=False))
    made = records(output)
    assert sorted(loaded["sample_id"]) == sorted(made)
    for sample in loaded:
        record = made[sample["sample_id"]]
        assert sample["video"]["path"].endswith(record["file_name"])
        beside = record["baseline_file_name"]
        assert sample["baseline"] is None if beside is None else sample["baseline"]["path"].endswith(beside)
