"""The world of the embedded checkpoint: boxes and paths match what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sgi2v.metrics.objmc import motion_fidelity
from sgi2v.tracking.lucas_kanade import LucasKanade
from tests.benchmarks.held_out import TIMES_T, Split, draw_held_out, error_when_absent, find_object
from tools.tiny.world import SIDE, Motion, draw_scene

SCENES = range(12)
ENDS = np.array([0.0, 1.0])


def test_a_seed_and_an_index_determine_a_scene() -> None:
    first, again, other = (draw_scene(7, index).render(ENDS) for index in (3, 3, 4))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("motion", Motion)
def test_boxes_fit_the_sprites(motion: Motion) -> None:
    for index in SCENES:
        scene = draw_scene(7, index, motion)
        for mask_THW, box_T4 in zip(scene.masks_NTHW(ENDS), scene.boxes_NT4(ENDS), strict=True):
            for mask_HW, box in zip(mask_THW, box_T4, strict=True):
                ys, xs = np.nonzero(mask_HW > 0.5)
                if len(xs) == 0 or xs.min() == 0 or ys.min() == 0 or xs.max() == SIDE - 1 or ys.max() == SIDE - 1:
                    continue  # partly out of the frame
                seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert (np.abs(seen - box) <= 0.25 * (box[2] - box[0]) + 1).all()
                assert (box[:2] <= seen[:2] + 1).all()
                assert (box[2:] >= seen[2:] - 1).all()


def test_objects_stay_in_the_frame_do_not_touch_and_move_as_stated() -> None:
    for index in SCENES:
        scene = draw_scene(7, index, Motion.OBJECT)
        boxes_NT4 = scene.boxes_NT4(TIMES_T)
        assert (boxes_NT4 >= 0).all()
        assert (boxes_NT4 <= SIDE).all()
        assert not scene.sprites_touch
        moved = np.linalg.norm((boxes_NT4[0, -1] - boxes_NT4[0, 0])[:2])
        assert 4 <= moved <= scene.displacement + 1e-4


def test_a_pan_moves_the_ground_and_the_objects() -> None:
    scene = draw_scene(7, 0, Motion.PAN)
    shift = np.round(scene.pan_22[1] - scene.pan_22[0]).astype(int)
    whole_px = scene.pan_22[0] + np.stack([np.zeros(2), shift])
    before, after = replace(scene, pan_22=whole_px).render(ENDS)
    x, y = shift
    kept = before[max(y, 0) : SIDE + min(y, 0), max(x, 0) : SIDE + min(x, 0)].astype(int)
    moved = after[max(-y, 0) : SIDE + min(-y, 0), max(-x, 0) : SIDE + min(-x, 0)].astype(int)
    assert np.abs(kept - moved).max() <= 1


@pytest.mark.parametrize("split", Split)
def test_held_out_objects_are_found_where_they_are(split: Split) -> None:
    for index in range(6):
        sample = draw_held_out(split, index)
        frames_THWC = sample.scene.render(TIMES_T)
        assert np.array_equal(frames_THWC[0], sample.image)
        fidelity = motion_fidelity(frames_THWC, sample.tracks, LucasKanade())
        assert fidelity.objmc_px is not None
        assert fidelity.objmc_px < 0.5
        mask_HW = sample.scene.masks_NTHW(ENDS[:1])[0, 0]
        track = find_object(frames_THWC, mask_HW)
        assert np.abs(track.displacements_T2[-1] - sample.displacement_2).max() < 0.8
        absent = error_when_absent(sample.scene, sample.image, mask_HW)
        assert track.errors_T.max() < absent / 2
