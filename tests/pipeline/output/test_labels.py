"""Labels: right in pixels against known truth, in the video's own pixels whatever the fit, one row a box."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline.output.catalog
from manifests.fit import FITS, Fit, VideoSize, place
from pipeline.output.catalog import Catalog
from pipeline.output.labels import LABEL_SCHEMA, LABELS, are_whole, labels_of, pack, rows_of_boxes, unpack
from pipeline.output.records import FLAT_SCHEMA, RECORD_SCHEMA, table_of
from pipeline.output.storage import Storage
from pipeline.output.tables import METADATA_COLUMNS, write_tables
from sgi2v.errors import ConfigError
from sgi2v.metrics import follow_boxes
from sgi2v.tracking import LucasKanade
from sgi2v.tracking.tracker import PointTracks
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames
from tests.benchmarks.label_error import HEAD, errors_px, line
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.output.outputs import BOXES, FRAMES, SEEN, UNSEEN, committed, failed, manifest
from tests.pipeline.runs import records, row, table, write_rows

EPOCH = 1


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


@pytest.mark.slow
def test_measured_labels_are_right_to_a_fraction_of_a_pixel() -> None:
    tracker = LucasKanade()
    print(HEAD)
    for step_px in (1.3, 12.3):
        cells = [errors_px(tracker, side_px, step_px, 192, 320, num_frames=8) for side_px in (32, 64)]
        print(line(step_px, cells))
        for errors_T in cells:
            assert errors_T is not None
            assert len(errors_T) == 7
            assert errors_T.mean() < 0.2
            assert errors_T.max() < 0.5


class Told:
    """A tracker that answers what it was told."""

    name, version, num_cpus, num_gpus = "told", "1", 0.25, 0.0

    def __init__(self, shift_T2: Floats, visible_T: list[bool]) -> None:
        self.shift_T2, self.visible_T = shift_T2, visible_T

    def track(self, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
        points_TQ2 = queries_Q2 + self.shift_T2[:, None]
        visible_TQ = np.repeat(np.array(self.visible_T)[:, None], len(queries_Q2), axis=1)
        points_TQ2[~visible_TQ] = np.nan
        return PointTracks(points_TQ2, visible_TQ)

    def limit(self, first_frame_HWC: Frames, boxes_T4: Floats) -> None:
        return None


def test_labels_are_in_pixels_of_the_whole_video_and_null_where_nothing_is_seen() -> None:
    frames_THWC = np.zeros((4, 20, 40, 3), np.uint8)
    boxes_NT4 = np.array([[10.0, 4, 18, 12], [0, 0, 8, 8]])[:, None] + np.arange(4)[:, None] * [10.0, 0, 10, 0]
    boxes_NT4[1] = boxes_NT4[1, 0]
    tracks = BoxTracks(boxes_NT4, 20, 40, np.array([False, True]))
    tracker = Told(np.arange(4)[:, None] * [2.006, 1.0], [True, True, False, True])
    moving, still = labels_of(*follow_boxes(frames_THWC, tracks, tracker), tracker, corner=(100, 50))
    assert (moving["box"], moving["still"], still["box"], still["still"]) == (0, False, 1, True)
    assert moving["asked_boxes"][1] == [120.0, 54.0, 128.0, 62.0]
    assert moving["asked_centres"][1] == [124.0, 58.0]
    assert moving["measured_centres"] == [[114.0, 58.0], [116.01, 59.0], None, [120.02, 61.0]], (
        "the object is labelled where it was seen, also in frame 3, in which its target has left the picture"
    )
    assert moving["measured_boxes"][1] == [112.01, 55.0, 120.01, 63.0]
    assert moving["visible_fraction"] == [1.0, 1.0, 0.0, 1.0]
    assert moving["points"][1][0] == [114.01, 57.0]
    assert moving["points"][2] == moving["points"][0], "a point that is not visible has some finite place"
    assert moving["points_visible"][2] == [False] * 25
    assert (moving["null_reason"], moving["tracker_error_px"]) == (None, None)
    assert still["measured_centres"][3] == [110.02, 57.0]


def test_a_box_that_is_not_measured_says_why_and_keeps_what_was_asked() -> None:
    tracks = BoxTracks(np.array([[[4.0, 4, 8, 8]] * 3]), 20, 40)
    tracker = LucasKanade()
    (label,) = labels_of(*follow_boxes(np.zeros((3, 20, 40, 3), np.uint8), tracks, tracker), tracker, (0, 0))
    assert label["null_reason"] == "box_too_small"
    assert label["measured_boxes"] == label["measured_centres"] == [None] * 3
    assert (label["points"], label["points_visible"], label["visible_fraction"]) == (None, None, None)
    assert label["asked_boxes"] == [[4.0, 4.0, 8.0, 8.0]] * 3


def test_the_stated_error_depends_on_the_asked_speed() -> None:
    tracker = LucasKanade()
    frames_THWC = np.zeros((3, 20, 200, 3), np.uint8)

    def stated(step_px: float) -> float:
        boxes_T4 = np.array([4.0, 4, 16, 16]) + np.arange(3)[:, None] * [step_px, 0, step_px, 0]
        tracks = BoxTracks(boxes_T4[None], 20, 200)
        return float(labels_of(*follow_boxes(frames_THWC, tracks, tracker), tracker, (0, 0))[0]["tracker_error_px"])

    assert stated(0.0) == tracker.error_px(0.0)
    assert stated(30.0) == tracker.error_px(30.0)
    assert len({tracker.error_px(step_px) for step_px in (0.0, 1.3, 30.0)}) == 3


@pytest.mark.parametrize("size", [(600, 2400), (1600, 1200), (576, 1024)])
@pytest.mark.parametrize("fit", FITS)
def test_points_go_from_the_picture_to_the_video_and_back_in_every_fit(fit: Fit, size: tuple[int, int]) -> None:
    height, width = size
    box = np.array([0.6 * width, 0.2 * height, 0.6 * width + 90, 0.2 * height + 70])
    tracks = BoxTracks.from_paths(box[None], [np.array([[0.0, 0.0], [40.0, 30.0]])], 14, height, width)
    placement = place(tracks, VideoSize(576, 1024), fit)
    record = committed("a", source_box=list(placement.source_box), picture_box=list(placement.picture_box))
    transform = rows_of_boxes(table_of([record]))["source_to_video"][0].as_py()
    scale_2, shift_2 = np.array(transform[::2]), np.array(transform[1::2])
    source_T2 = tracks.centres_NT2[0]
    video_T2 = placement.tracks(tracks).centres_NT2[0]
    np.testing.assert_allclose(scale_2 * source_T2 + shift_2, video_T2, atol=1e-9)
    np.testing.assert_allclose((video_T2 - shift_2) / scale_2, source_T2, atol=1e-9)
    if fit == "pad" and size != (576, 1024):
        assert shift_2.max() > 0, "there are bars"


def test_the_table_has_one_row_a_box_and_none_for_samples_without() -> None:
    made = [committed("b"), committed("c", labels=pack([])), committed("d", labels=None), committed("a")]
    rows = rows_of_boxes(table_of(made))
    assert rows.schema.equals(LABEL_SCHEMA)
    assert rows.select(["sample_id", "box"]).to_pylist() == [
        {"sample_id": sample_id, "box": box} for sample_id in "ba" for box in (0, 1)
    ]
    first, second = (rows.slice(number, 1).to_pylist()[0] for number in (0, 1))
    assert {name: first[name] for name in SEEN} == SEEN
    assert {name: second[name] for name in UNSEEN} == UNSEEN
    assert (first["num_frames"], first["file_name"], first["fps"]) == (FRAMES, made[0].file_name, None)
    assert first["source_to_video"] == [2.0, 0.0, 2.0, 0.0]


def test_packed_labels_are_small_and_the_same() -> None:
    points_TQ2 = np.round(np.random.default_rng(0).uniform(0, 999, (14, 50, 2)), 2)
    label = {**SEEN, "points": points_TQ2.tolist(), "points_visible": [[True] * 50] * 14}
    packed = pack([label, label])
    assert packed is not None
    assert unpack(packed) == [label, label]
    assert len(packed) < 2 * points_TQ2.nbytes
    assert (pack(None), unpack(None), unpack(pack([]))) == (None, None, [])


def changed(**values: Any) -> list[dict[str, Any]]:
    return [{**deepcopy(SEEN), **values}, UNSEEN]


WRONG: dict[str, Any] = {
    "a frame less": changed(asked_boxes=SEEN["asked_boxes"][1:]),
    "a frame less is measured": changed(measured_centres=SEEN["measured_centres"][1:]),
    "a coordinate less": changed(asked_centres=[[3.0], [4.0, 4.0], [5.0, 4.0]]),
    "a frame of the asked box is null": changed(asked_boxes=[None, *SEEN["asked_boxes"][1:]]),
    "nothing was asked": changed(asked_boxes=None),
    "no number": changed(box=None),
    "points without visibility": changed(points_visible=None),
    "a point without visibility": changed(points_visible=[[True, True], [False], [True, False]]),
    "a point with three coordinates": changed(points=[[[1.0, 2.0, 3.0]] * 2] * FRAMES),
    "no box": [None],
}


@pytest.mark.parametrize("kind", WRONG)
def test_labels_that_lack_a_frame_or_a_coordinate_make_a_damaged_record(storage: Storage, kind: str) -> None:
    storage.put("records/a.json", json.dumps({**committed("a").row(), "labels": WRONG[kind]}).encode())
    storage.put("records/b.json", committed("b").to_json())
    catalog = Catalog(storage)
    assert [(damage.sample_id, damage.problem) for damage in catalog.damaged] == [
        ("a", "has labels that lack a frame or a coordinate")
    ]
    assert catalog.index["sample_id"].to_pylist() == ["b"]


def test_whole_labels_are_whole() -> None:
    assert are_whole(table_of([committed("a"), failed("b"), committed("c", labels=pack([]))]))


def test_labels_are_in_records_and_parts_and_in_no_other_table(storage: Storage) -> None:
    assert "labels" in RECORD_SCHEMA.names
    assert {"labels"}.isdisjoint([*FLAT_SCHEMA.names, *METADATA_COLUMNS])
    catalog = Catalog(storage)
    catalog.add(committed("a"))
    catalog.seal(EPOCH)
    found = Catalog(storage).get("a")
    assert found is not None
    assert unpack(found.labels) == BOXES


def test_labels_are_read_a_few_samples_at_a_time(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.output.catalog, "BATCH_ROWS", 2)
    catalog = Catalog(storage)
    for number in range(5):
        catalog.add(committed(f"s{number}"))
        catalog.add(failed(f"f{number}"))
    unsealed = [batch["sample_id"].to_pylist() for batch in catalog.with_labels()]
    assert unsealed == [["s0", "s1"], ["s2", "s3"], ["s4"]]
    catalog.seal(EPOCH)
    sealed = [batch["sample_id"].to_pylist() for batch in Catalog(storage).with_labels()]
    assert max(map(len, sealed)) <= 2
    assert [name for names in sealed for name in names] == [name for names in unsealed for name in names]


def test_damaged_labels_of_a_part_are_found_where_labels_are_read(storage: Storage) -> None:
    catalog = Catalog(storage)
    catalog.add(committed("a"))
    catalog.seal(EPOCH)
    key = "parts/000001-0000.parquet"
    data = bytearray(storage.get(key) or b"")
    columns = pq.read_metadata(pa.BufferReader(bytes(data))).row_group(0)
    chunks = [columns.column(number) for number in range(columns.num_columns)]
    points = next(chunk for chunk in chunks if chunk.path_in_schema.startswith("labels.list.element.points."))
    data[points.data_page_offset + points.total_compressed_size // 2] ^= 255
    storage.put(key, bytes(data))
    catalog = Catalog(storage)
    assert catalog.index.num_rows == 1, "what a run needs is there"
    with pytest.raises(ConfigError, match="or is damaged"):
        write_tables(catalog, manifest("a"), EPOCH)
    assert [damage.key for damage in Catalog(storage, without_damaged_parts=True, reads_labels=True).damaged] == [key]


@pytest.mark.slow
def test_a_run_writes_the_labels_of_every_box(tmp_path: Path) -> None:
    fine = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(fine).resize((96, 48), Image.Resampling.BICUBIC).save(tmp_path / "wide.png")
    boxes, paths = [[12.0, 10, 42, 40], [50.0, 10, 80, 40]], [[[27.0, 25], [36.0, 25]], [[65.0, 25], [65.0, 25]]]
    rows = [
        row("both", image="wide.png", boxes=boxes, trajectories=paths),
        row("none", image="wide.png", boxes=[], trajectories=[]),
    ]
    file = write_rows(tmp_path / "m.parquet", rows, still=pa.array([[False, True], None], pa.list_(pa.bool_())))
    with without_ray():
        done = run_tiny_here(file, tmp_path / "out", "--fit", "pad")
    assert done.returncode == 0, done.stderr
    labels = table(tmp_path / "out", LABELS).to_pylist()
    made = records(tmp_path / "out")
    assert [(label["sample_id"], label["box"], label["still"]) for label in labels] == [
        ("both", 0, False),
        ("both", 1, True),
    ]
    assert made["none"]["labels"] == []
    for label in labels:
        assert label["video_sha256"] == made["both"]["video_sha256"]
        assert label["source_to_video"] == pytest.approx([2 / 3, 0, 2 / 3, 16])
        x, y = label["asked_centres"][0]
        assert y == pytest.approx(16 + 25 * 2 / 3, abs=0.01)
        # the stand-in moves the picture by a pixel a frame to the right
        truth_T2 = [[x + t, y] for t in range(len(label["measured_centres"]))]
        np.testing.assert_allclose(label["measured_centres"], truth_T2, atol=0.2)
    assert here("verify", tmp_path / "out").returncode == 0
