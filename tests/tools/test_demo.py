"""The bundled demo: its files are valid, and are what `tools.demo.build` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.decode import decode_image
from manifests.io import read_manifest
from manifests.schema import Sample, parse_row
from manifests.urls import read_image_bytes, resolve_uri
from sgi2v.tracking.lucas_kanade import LucasKanade
from sgi2v.trajectory import boxes_outside
from tools import demo
from tools.demo.build import MANIFEST, build_demo

FOLDER = Path(demo.__file__).parents[2] / "manifests" / "demo"
COMMITTED = str(FOLDER / MANIFEST)


def picture(sample: Sample) -> NDArray[np.uint8]:
    return decode_image(read_image_bytes(resolve_uri(sample.image, COMMITTED)))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [parse_row(row) for row in read_manifest(COMMITTED).to_pylist()]


def test_the_demo_has_motions_of_every_kind(samples: list[Sample]) -> None:
    table = read_manifest(COMMITTED)
    assert table.schema.field("description").type == pa.string()
    assert all(table.column("description").to_pylist())
    assert {len(sample.boxes_N4) for sample in samples} >= {0, 1, 2}
    assert any(len(path) > 2 for sample in samples for path in sample.trajectories)


def test_images_decode_and_contain_their_boxes(samples: list[Sample]) -> None:
    for sample in samples:
        image_HWC = picture(sample)
        height, width = image_HWC.shape[:2]
        assert (height, width) == (256, 256)
        assert (FOLDER / sample.image).stat().st_size <= 100_000
        assert (sample.boxes_N4 >= 0).all()
        assert (sample.boxes_N4 <= [width, height] * 2).all()
        assert not list(boxes_outside(sample.boxes_N4, height, width))


@pytest.mark.parametrize("num_frames", [8, 14])
def test_boxes_stay_in_the_frame(samples: list[Sample], num_frames: int) -> None:
    for sample in samples:
        tracks = sample.tracks(num_frames, 256, 256)
        assert tracks.centre_inside_NT().all(), sample.sample_id
        if tracks.num_boxes:
            moved_NT = np.linalg.norm(tracks.centres_NT2 - tracks.centres_NT2[:, :1], axis=-1)
            assert moved_NT.max() > 30, sample.sample_id


def test_objects_have_patterns_that_a_tracker_can_follow(samples: list[Sample]) -> None:
    side, step = 64, 1
    for sample in samples:
        image = Image.fromarray(picture(sample)).resize((side, side), Image.Resampling.BOX)
        frames_THWC = np.stack([np.roll(np.asarray(image), step * t, axis=(0, 1)) for t in range(3)])
        for box in sample.boxes_N4 * side / 256:
            inner = np.linspace(box[:2] * 0.75 + box[2:] * 0.25, box[:2] * 0.25 + box[2:] * 0.75, 5)
            queries_Q2 = np.stack(np.meshgrid(inner[:, 0], inner[:, 1]), axis=-1).reshape(-1, 2)
            tracked = LucasKanade().track(frames_THWC, queries_Q2)
            error_Q = np.linalg.norm(tracked.points_TQ2[-1] - queries_Q2 - 2 * step, axis=-1)
            visible_Q = tracked.visible_TQ[-1]
            assert visible_Q.mean() > 0.8, (sample.sample_id, box)
            assert np.median(error_Q[visible_Q]) < 0.25, (sample.sample_id, box)


def test_the_demo_is_what_its_script_writes(samples: list[Sample], tmp_path: Path) -> None:
    build_demo(tmp_path)
    assert read_manifest(str(tmp_path / MANIFEST)).equals(read_manifest(COMMITTED))
    assert {file.name for file in tmp_path.iterdir()} == {MANIFEST, *(sample.image for sample in samples)}
    for name in {sample.image for sample in samples}:
        drawn, committed = (np.asarray(Image.open(folder / name), np.int16) for folder in (tmp_path, FOLDER))
        # another machine may round a pixel the other way
        assert np.abs(drawn - committed).max() <= 1
