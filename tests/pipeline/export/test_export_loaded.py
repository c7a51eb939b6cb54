"""Each format, read back by the library that it is made for."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgi2v.video import decode_mp4
from tests.pipeline.export.stand_in_output import FRAMES, POINTS, SIDE, ids, make_output, video_of
from tests.pipeline.in_process import here

NAMES = ("test-1", "train_2.png", "dev.png", "a.b.mp4", *ids(6))
OWN = {
    **{"mp4": "x", "labels": "y", "split": "test", "json": 1, "video_2": b"\xff", "manifest_label": 2.5},
    **{"manifest___key__": "k", "tags": [["a", None]] * len(NAMES)},
}
"""Own columns as a run stores them, some with names that formats use."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("loaded") / "out", *NAMES, columns=OWN)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep `datasets` from the network, and its cache in this test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def exported(output: Path, format_name: str, target: Path, *words: str) -> Path:
    done = here("export", output, "--format", format_name, "-o", target, "--splits", "train=1,test=1", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    done = here("verify", target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def rows_of(output: Path) -> dict[str, dict[str, object]]:
    return {row["sample_id"]: row for row in pq.read_table(output / "metadata.parquet").to_pylist()}


def samples_of(target: Path) -> dict[str, set[str]]:
    """The sample ids of each split."""
    found: dict[str, set[str]] = {}
    for file in (target / "index").iterdir():
        entry = json.loads(file.read_bytes())
        found.setdefault(entry["split"], set()).update(entry["samples"])
    return found


@pytest.mark.slow
def test_datasets_reads_a_videofolder_with_its_splits(output: Path, tmp_path: Path) -> None:
    from datasets import Video, load_dataset

    target = exported(output, "videofolder", tmp_path / "x", "--shard-samples", "3", "--link")
    loaded = load_dataset(str(target)).cast_column("video", Video(decode=False))
    assert {name: set(split["sample_id"]) for name, split in loaded.items()} == samples_of(target)
    assert set(loaded) == {"train", "test"}
    rows = rows_of(output)
    for row in [*loaded["train"], *loaded["test"]]:
        assert Path(row["video"]["path"]).read_bytes() == video_of(row["sample_id"])
        assert {name: row[name] for name in OWN} == {name: rows[row["sample_id"]][name] for name in OWN}
    without_card = load_dataset("videofolder", data_dir=str(target)).cast_column("video", Video(decode=False))
    assert {name: set(split["sample_id"]) for name, split in without_card.items()} == samples_of(target)
    assert {file.stat().st_nlink for file in target.rglob("*.mp4")} == {2}
    labels = pq.read_table(next(target.glob("train/*/labels.parquet")))
    assert set(labels["file_name"].to_pylist()) <= {file.name for file in target.rglob("*.mp4")}


@pytest.mark.slow
def test_datasets_sees_what_a_later_export_adds(output: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    chosen = tmp_path / "chosen.parquet"
    assert here("select", output, "--where", "control_gain < 0.5", "-o", chosen).returncode == 0
    counts = []
    for source in (chosen, output):
        target = exported(source, "videofolder", tmp_path / "x")
        counts.append(sum(map(len, load_dataset(str(target)).values())))
    assert counts == [pq.read_metadata(chosen).num_rows, len(NAMES)]


@pytest.mark.slow
def test_webdataset_reads_its_shards(output: Path, tmp_path: Path) -> None:
    import webdataset

    target = exported(output, "webdataset", tmp_path / "x", "--shard-samples", "3")
    shards = json.loads((target / "shards.json").read_bytes())["shards"]
    rows, labels = rows_of(output), pq.read_table(output / "labels.parquet").to_pylist()
    found: dict[str, set[str]] = {}
    for shard in shards:
        read = list(webdataset.WebDataset([str(target / shard["key"])], shardshuffle=False))
        assert len(read) == shard["samples"] <= 3
        for sample in read:
            row = json.loads(sample["json"])
            found.setdefault(shard["split"], set()).add(row["sample_id"])
            assert sample["mp4"] == video_of(row["sample_id"])
            assert row["tags"] == rows[row["sample_id"]]["tags"]
            assert list(row) == list(rows[row["sample_id"]])
            of_sample = [label for label in labels if label["sample_id"] == row["sample_id"]]
            assert json.loads(sample["labels.json"]) == of_sample
    assert found == samples_of(target)
    assert set.union(*found.values()) == set(NAMES)


@pytest.mark.slow
def test_lance_reads_its_datasets(output: Path, tmp_path: Path) -> None:
    import lance

    target = exported(output, "lance", tmp_path / "x", "--shard-samples", "3")
    labels = pq.read_table(output / "labels.parquet").to_pylist()
    for split, expected in samples_of(target).items():
        table = lance.dataset(str(target / f"{split}.lance")).to_table()
        assert table["sample_id"].to_pylist() == sorted(expected)
        assert table["manifest_labels"].to_pylist() == ["y"] * len(table)
        assert table["mp4"].to_pylist() == ["x"] * len(table)
        for row in table.select(["sample_id", "video", "labels"]).to_pylist():
            assert row["video"] == video_of(row["sample_id"])
            assert row["labels"] == [label for label in labels if label["sample_id"] == row["sample_id"]]


def test_npz_holds_tracks_as_tap_vid_has_them(output: Path, tmp_path: Path) -> None:
    target = exported(output, "npz", tmp_path / "x")
    files = list(target.rglob("*.npz"))
    assert len(files) == len(NAMES)
    for file in files:
        tracks = np.load(file, allow_pickle=False)
        assert tracks["points"].shape == (2 * POINTS, FRAMES, 2)
        np.testing.assert_array_equal(tracks["points"][0], [[12.0 + t, 12.0] for t in range(FRAMES)])
        np.testing.assert_array_equal(tracks["queries"][1], [0.0, 12.0, 13.0])  # t, y, x
        np.testing.assert_array_equal(tracks["occluded"][:, -1], [False] * POINTS + [True] * POINTS)
        np.testing.assert_array_equal(tracks["box"], [0] * POINTS + [1] * POINTS)
        assert np.isnan(tracks["measured_boxes"][1, -1]).all()
        np.testing.assert_array_equal(tracks["asked_boxes"][1, -1], [8.0, 8.0, 16.0, 16.0])
        assert decode_mp4(file.with_suffix(".mp4").read_bytes()).shape == (FRAMES, SIDE, SIDE, 3)
        assert file.with_suffix(".mp4").read_bytes() == video_of(str(tracks["sample_id"]))


def test_coco_video_has_a_box_a_frame(output: Path, tmp_path: Path) -> None:
    target = exported(output, "coco-video", tmp_path / "x", "--shard-samples", "2")
    for split, expected in samples_of(target).items():
        coco = json.loads((target / "annotations" / f"{split}.json").read_bytes())
        videos = {video["id"]: video for video in coco["videos"]}
        assert {video["sample_id"] for video in videos.values()} == expected
        assert sorted(videos) == list(range(1, len(expected) + 1))
        assert [each["id"] for each in coco["annotations"]] == list(range(1, 2 * len(expected) + 1))
        for annotation in coco["annotations"]:
            video = videos[annotation["video_id"]]
            assert (target / video["file_name"]).read_bytes() == video_of(video["sample_id"])
            assert len(annotation["bboxes"]) == video["length"] == FRAMES
            if annotation["still"]:
                assert annotation["bboxes"][-1] is None
                assert annotation["asked_bboxes"][-1] == [8.0, 8.0, 8.0, 8.0]
            else:
                assert annotation["bboxes"][-1] == [11.0, 8.0, 8.0, 8.0]
                assert annotation["areas"] == [64.0] * FRAMES


def test_every_time_and_number_becomes_json(tmp_path: Path) -> None:
    import tarfile
    from datetime import UTC, date, datetime, timedelta
    from decimal import Decimal

    own = {
        "when": datetime(2026, 1, 31, 22, 4, tzinfo=UTC),
        "day": date(2026, 1, 31),
        "long": timedelta(seconds=90),
        "exact": Decimal("1.50"),
        "nan": float("nan"),
        "raw": b"\x00\xff",
        "nanoseconds": pa.array([1], pa.timestamp("ns")),
    }
    output = make_output(tmp_path / "out", "a", columns=own)
    target = exported(output, "webdataset", tmp_path / "x")
    (file,) = target.rglob("*.tar")
    with tarfile.open(file) as tar:
        member = tar.extractfile("a.json")
        assert member is not None
        row = json.load(io.BytesIO(member.read()))
    assert row["when"] == "2026-01-31T22:04:00+00:00"
    assert (row["day"], row["exact"], row["nan"], row["raw"]) == ("2026-01-31", "1.50", None, "AP8=")
    assert row["nanoseconds"] == "1970-01-01T00:00:00.000000001"
    assert row["long"] == "0:01:30"
