"""Guidance that holds the rest of the scene: its loss by hand, when it is off, and when the plan is the paper's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sgi2v.config import LATER_FIELDS, GuidanceConfig
from sgi2v.guidance import LossPlan, optimize_latents, plan_loss, trajectory_loss
from sgi2v.scene import clear_cells
from sgi2v.trajectory import BoxTracks
from tests.sgi2v.test_guidance import CPU, channels_last
from tests.sgi2v.test_scene import CELL, RIGHT, tracks_of

PAPER = GuidanceConfig()
HOLD = GuidanceConfig(hold_rest=True, hold_weight=0.5)
HELD_BOX = ([48.0, 32, 64, 48], [0.0, 0])
ONE = tracks_of(RIGHT)
TWO = tracks_of(RIGHT, HELD_BOX, still=[False, True])
CAMERA = tracks_of(RIGHT, ([48.0, 40, 56, 48], [32.0, 0]))
AWAY = tracks_of(([8.0, 16, 24, 24], [-900.0, 0]))
SETTINGS = ("source_K", "corners_K4", "corner_weights_K4", "weight_K")


def plan_of(tracks: BoxTracks, guidance: GuidanceConfig) -> LossPlan:
    return plan_loss(tracks, 6, 10, CELL, guidance, CPU)


def features(seed: int) -> Tensor:
    return torch.randn(3, 6, 10, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tracks", [ONE, TWO], ids=["one box", "a held box beside it"])
def test_every_clear_cell_counts_once_a_frame_beside_the_boxes(tracks: BoxTracks) -> None:
    features_ThwC = features(1)
    boxes = plan_of(tracks, PAPER)
    total = float(trajectory_loss(features_ThwC, boxes)) * float(boxes.weight_K.sum())
    count = 0
    for y, x in np.argwhere(clear_cells(tracks, 6, 10, CELL)).tolist():
        for t in (1, 2):
            total += 0.5 * float((features_ThwC[t, y, x] - features_ThwC[0, y, x]).square().mean())
            count += 1
    assert count == 2 * 36
    expected = total / (float(boxes.weight_K.sum()) + 0.5 * count)
    assert float(trajectory_loss(features_ThwC, plan_of(tracks, HOLD))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tracks", [CAMERA, AWAY], ids=["the camera is asked", "no box is seen after frame 0"])
def test_where_it_is_off_the_plan_is_the_papers_to_the_bit(tracks: BoxTracks) -> None:
    paper, held = (plan_of(tracks, guidance) for guidance in (PAPER, HOLD))
    assert held.is_empty == paper.is_empty
    for name in SETTINGS:
        assert torch.equal(getattr(held, name), getattr(paper, name)), name


def test_the_boxes_part_of_the_plan_stays_to_the_bit_with_masks_too() -> None:
    masked = replace(TWO, masks_NHW=np.tile(np.eye(4, dtype=np.uint8) * 255, (2, 1, 1)))
    for tracks in (TWO, masked):
        paper, held = (plan_of(tracks, guidance) for guidance in (PAPER, HOLD))
        for name in SETTINGS:
            assert torch.equal(getattr(held, name)[: len(paper.source_K)], getattr(paper, name)), name
        assert (held.weight_K[len(paper.source_K) :] == 0.5).all()


def test_a_masked_update_changes_nothing_that_is_clear_of_the_boxes() -> None:
    latents = torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(2))
    guidance = GuidanceConfig(mask_update=True, iterations=2)
    step = optimize_latents(channels_last, latents, plan_of(TWO, guidance), guidance)
    is_clear_hw = torch.as_tensor(clear_cells(TWO, 6, 10, CELL))
    changed_hw = (step.latents_TChw != latents).any(dim=(0, 1))
    assert torch.equal(changed_hw, ~is_clear_hw)
    everywhere = plan_of(CAMERA, guidance)
    assert everywhere.update_hw is not None
    assert everywhere.update_hw.all(), "the camera is asked"


def test_elements_with_less_gradient_move_less_with_a_floor_and_as_far_without() -> None:
    latents = torch.randn(3, 2, 6, 10, generator=torch.Generator().manual_seed(3))
    slopes_C11 = torch.tensor([1.0, 1e-3])[:, None, None]
    at_box = (1, slice(None), 2, 3)  # a cell of the box in frame 1

    def moved(floor: float) -> list[float]:
        """How far the channels move, in learning rates. The second one hardly counts in the features."""
        guidance = GuidanceConfig(iterations=1, fft_cutoff=None, gradient_floor=floor)
        plan = plan_of(ONE, guidance)
        step = optimize_latents(lambda latents: channels_last(latents * slopes_C11), latents, plan, guidance)
        decayed = latents * (1 - 0.01 * guidance.learning_rate)
        far: list[float] = ((step.latents_TChw - decayed)[at_box].abs() / guidance.learning_rate).tolist()
        return far

    assert moved(0.0) == pytest.approx([1, 1], abs=0.1)
    large, small = moved(0.3)
    assert large > 0.7
    assert small < 1e-4


def test_the_papers_settings_leave_out_what_came_later_which_keeps_the_fingerprints_of_old_outputs() -> None:
    assert PAPER.plain().keys() == GuidanceConfig.model_fields.keys() - set(LATER_FIELDS)
    assert HOLD.plain() == {**PAPER.plain(), "hold_rest": True, "hold_weight": 0.5}
    assert GuidanceConfig.parse(HOLD.plain()) == HOLD
