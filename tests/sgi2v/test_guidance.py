"""The loss against its definition in loops, its gradient against finite differences, and the optimiser."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgi2v.config import Feature, GuidanceConfig
from sgi2v.estimate import BytesAlive
from sgi2v.guidance import guided_features, optimize_latents, plan_loss, trajectory_loss
from sgi2v.model import VideoModel
from sgi2v.trajectory import BoxTracks
from tests.sgi2v.test_features import inputs

CPU = torch.device("cpu")
CELL = 8


def tracks_of(boxes: list[list[float]], moves: list[list[float]], frames: int, height: int, width: int) -> BoxTracks:
    """Boxes that move by `moves` px over the whole clip."""
    ends = [np.array([[0.0, 0.0], move]) for move in moves]
    return BoxTracks.from_paths(np.array(boxes), ends, frames, height * CELL, width * CELL)


def loss_by_definition(features: Tensor, tracks: BoxTracks, sigma: float) -> float:
    """The loss as the method defines it, one cell at a time."""
    frames, height, width, _ = features.shape
    total = weights = 0.0
    for box_T4 in tracks.boxes_NT4:
        cells = [[math.floor(side / CELL) for side in box] for box in box_T4]
        cells = [[x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)] for x0, y0, x1, y1 in cells]
        x0, y0, x1, y1 = cells[0]
        target = features[0, y0:y1, x0:x1].permute(2, 0, 1)[None]
        for t in range(1, frames):
            x0, y0, x1, y1 = cells[t]
            resized = F.interpolate(target, size=(y1 - y0, x1 - x0), mode="bilinear")[0].permute(1, 2, 0)
            peak = max(
                gaussian(row, y1 - y0, sigma) * gaussian(column, x1 - x0, sigma)
                for row in range(y1 - y0)
                for column in range(x1 - x0)
            )
            for row in range(max(y0, 0), min(y1, height)):
                for column in range(max(x0, 0), min(x1, width)):
                    weight = gaussian(row - y0, y1 - y0, sigma) * gaussian(column - x0, x1 - x0, sigma) / peak
                    error = (features[t, row, column] - resized[row - y0, column - x0]).square().mean()
                    total += weight * float(error)
                    weights += weight
    return total / weights


def gaussian(cell: int, side: int, sigma: float) -> float:
    deviation = sigma * side / 2
    return math.exp(-((cell + 0.5 - side / 2) ** 2) / (2 * deviation**2))


SCENES = {
    "one box": ([[16, 16, 56, 48]], [[40, 10]]),
    "even and odd sizes": ([[16, 16, 48, 48], [60, 4, 100, 52]], [[3, 3], [-20, 5]]),
    "leaves the frame": ([[16, 16, 56, 48]], [[200, -90]]),
    "smaller than a cell": ([[33, 33, 35, 36]], [[20, 20]]),
    "at the border": ([[88, 40, 128, 64]], [[30, 20]]),
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("sigma", [0.4, 1.1])
def test_loss_equals_its_definition(scene: str, sigma: float) -> None:
    features = torch.randn(5, 8, 16, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tracks = tracks_of(*SCENES[scene], 5, 8, 16)
    plan = plan_loss(tracks, 8, 16, CELL, GuidanceConfig(heatmap_sigma=sigma), CPU)
    assert float(trajectory_loss(features, plan)) == pytest.approx(
        loss_by_definition(features, tracks, sigma), rel=1e-6
    )


def test_zoomed_boxes_compare_with_the_resized_first_box() -> None:
    features = torch.randn(4, 8, 16, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    path = [np.array([[0.0, 0.0], [9.0, 4.0]])]
    tracks = BoxTracks.from_paths(np.array([[24.0, 8, 72, 48]]), path, 4, 64, 128, [np.array([1.0, 1.6])])
    plan = plan_loss(tracks, 8, 16, CELL, GuidanceConfig(), CPU)
    assert float(trajectory_loss(features, plan)) == pytest.approx(loss_by_definition(features, tracks, 0.4), rel=1e-6)


def test_boxes_count_by_their_weights() -> None:
    features = torch.randn(3, 8, 16, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    both = tracks_of([[8, 8, 24, 24], [48, 8, 112, 56]], [[16, 8], [-8, 0]], 3, 8, 16)
    plan = plan_loss(both, 8, 16, CELL, GuidanceConfig(), CPU)
    assert float(trajectory_loss(features, plan)) == pytest.approx(loss_by_definition(features, both, 0.4), rel=1e-6)


def test_a_mask_weighs_each_cell_by_its_share_of_the_object_and_moves_with_the_box() -> None:
    tracks = tracks_of([[16, 16, 56, 48]], [[24, 8]], 4, 8, 16)
    mask_HW = np.zeros((64, 128), np.uint8)
    mask_HW[16:32, 16:36] = 255  # cells of 8 px: two and a half of the box's five, in two of its four rows
    plain = plan_loss(tracks, 8, 16, CELL, GuidanceConfig(), CPU)
    masked = plan_loss(replace(tracks, masks_NHW=mask_HW[None]), 8, 16, CELL, GuidanceConfig(), CPU)
    weights = np.zeros((4, 8, 16))
    weights.flat[plain.source_K.numpy()] = plain.weight_K.numpy()
    for (x0, y0, x1, y1), weights_hw in zip(tracks.cells(CELL)[0], weights, strict=True):
        weights_hw[y0:y1, x0 + 2] /= 2
        weights_hw[y0:y1, x0 + 3 :] = 0
        weights_hw[y0 + 2 : y1] = 0
        assert x1 - x0 == 5
    kept = np.flatnonzero(weights)
    assert sorted(masked.source_K.tolist()) == kept.tolist()
    order = masked.source_K.argsort()
    np.testing.assert_allclose(masked.weight_K[order], weights.flat[kept], rtol=1e-6)
    features = torch.randn(4, 8, 16, 3, generator=torch.Generator().manual_seed(5), requires_grad=True)
    (gradient,) = torch.autograd.grad(trajectory_loss(features, masked), features)
    assert sorted(gradient.abs().sum(-1).flatten().nonzero()[:, 0].tolist()) == kept.tolist()


def test_masks_that_are_whole_change_nothing_to_the_bit() -> None:
    tracks = tracks_of(*SCENES["even and odd sizes"], 5, 8, 16)
    plain = plan_loss(tracks, 8, 16, CELL, GuidanceConfig(), CPU)
    whole = plan_loss(replace(tracks, masks_NHW=np.full((2, 3, 5), 255, np.uint8)), 8, 16, CELL, GuidanceConfig(), CPU)
    for name in ("source_K", "corners_K4", "corner_weights_K4", "weight_K"):
        assert torch.equal(getattr(plain, name), getattr(whole, name)), name


def test_loss_and_gradient_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes_NT4 = np.array([[[0, 0, 64, 48], [8, 0, 72, 48]], [[8, 8, 40, 40], [16, 16, 48, 48]]], np.float64)
    plan = plan_loss(BoxTracks(boxes_NT4, 48, 64), 6, 8, 8, GuidanceConfig(), torch.device("cpu"))
    features = torch.randn(2, 6, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features.requires_grad_(True)
    first_frame, source_KC = features[0].detach().flatten(0, 1), features.flatten(0, 2)[plan.source_K]
    target_KC = (first_frame[plan.corners_K4] * plan.corner_weights_K4[..., None]).sum(dim=1)
    plain = ((source_KC - target_KC).square().mean(dim=-1) * plan.weight_K).sum() / plan.weight_K.sum()
    (expected,) = torch.autograd.grad(plain, features)
    for cells in (1, 7, len(plan.source_K)):
        monkeypatch.setattr("sgi2v.guidance.LOSS_CELLS", cells)
        loss = trajectory_loss(features, plan)
        (actual,) = torch.autograd.grad(loss * 3, features)
        torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
        torch.testing.assert_close(actual, 3 * expected, rtol=1e-5, atol=1e-9)


def test_many_boxes_take_no_more_memory_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgi2v.guidance.LOSS_CELLS", 256)
    peaks = []
    for count in (1, 8):
        boxes_NT4 = np.tile([0.0, 0.0, 256.0, 256.0], (count, 3, 1))
        plan = plan_loss(BoxTracks(boxes_NT4, 256, 256), 32, 32, 8, GuidanceConfig(), torch.device("cpu"))
        features = torch.zeros(3, 32, 32, 512, requires_grad=True)
        with BytesAlive() as alive:
            torch.autograd.grad(trajectory_loss(features, plan), features)
        peaks.append(alive.peak)
    assert peaks[1] < 1.2 * peaks[0]


def test_gradient_equals_finite_differences_and_is_zero_in_frame_0() -> None:
    features = torch.randn(3, 8, 16, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    plan = plan_loss(tracks_of(*SCENES["even and odd sizes"], 3, 8, 16), 8, 16, CELL, GuidanceConfig(), CPU)

    def loss_of_later_frames(later: Tensor) -> Tensor:
        return trajectory_loss(torch.cat([features[:1], later]), plan)

    assert torch.autograd.gradcheck(loss_of_later_frames, features[1:].clone().requires_grad_(True))
    leaf = features.clone().requires_grad_(True)
    trajectory_loss(leaf, plan).backward()
    assert leaf.grad is not None
    assert not leaf.grad[0].any()
    assert leaf.grad[1:].any()


def check_directions(score: Callable[[Tensor], Tensor], frozen: Callable[[Tensor], Tensor], sample: Tensor) -> None:
    """Check the gradient of `score` along three directions against difference quotients of `frozen`."""
    leaf = sample.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(leaf), leaf)
    generator = torch.Generator().manual_seed(6)
    for _ in range(3):
        direction = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
        step = 1e-8  # the random network is far from linear over larger steps
        with torch.no_grad():
            difference = (frozen(sample + step * direction) - frozen(sample - step * direction)) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("feature", [Feature.SELF_ATTENTION, Feature.TEMPORAL_ATTENTION, Feature.UPSAMPLE_BLOCK])
def test_gradient_to_the_latents_equals_finite_differences(model: VideoModel, feature: Feature) -> None:
    unet = copy.deepcopy(model.unet).double()
    guidance = GuidanceConfig(layers=((2, 1), (3, 0)), feature=feature)
    fixed = {name: value.double() for name, value in inputs().items()}
    weight = torch.randn(3, 8, 16, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def score(sample: Tensor) -> Tensor:
        return (guided_features(unet, {**fixed, "sample": sample}, guidance) * weight).sum()

    check_directions(score, score, fixed["sample"])


@pytest.mark.slow
def test_gradient_of_the_methods_loss_holds_frame_0_fixed(model: VideoModel) -> None:
    """The difference quotients keep frame 0's keys, values and features fixed at the point of the gradient."""
    unet = copy.deepcopy(model.unet).double()
    guidance = GuidanceConfig(layers=((2, 1),))
    fixed = {name: value.double() for name, value in inputs().items()}
    plan = plan_loss(tracks_of(*SCENES["one box"], 3, 8, 16), 8, 16, CELL, guidance, CPU)
    attention = unet.up_blocks[2].attentions[1].transformer_blocks[0].attn1

    def features(sample: Tensor) -> Tensor:
        return guided_features(unet, {**fixed, "sample": sample}, guidance)

    def score(sample: Tensor) -> Tensor:
        return 1e6 * trajectory_loss(features(sample), plan)

    kept: dict[str, Tensor] = {}
    projections = {"key": attention.to_k, "value": attention.to_v}
    handles = [
        projection.register_forward_hook(lambda *call, name=name: kept.__setitem__(name, call[2].detach()))
        for name, projection in projections.items()
    ]
    with torch.no_grad():
        first_frame = features(fixed["sample"])[:1]
    for handle in handles:
        handle.remove()

    def frozen(sample: Tensor) -> Tensor:
        handles = [
            projection.register_forward_hook(lambda *_, name=name: kept[name])
            for name, projection in projections.items()
        ]
        try:
            return 1e6 * trajectory_loss(torch.cat([first_frame, features(sample)[1:]]), plan)
        finally:
            for handle in handles:
                handle.remove()

    check_directions(score, frozen, fixed["sample"])


def channels_last(latents_TChw: Tensor) -> Tensor:
    """[T, C, h, w] -> [T, h, w, C]: latents as their own features."""
    return latents_TChw.permute(0, 2, 3, 1)


def test_optimising_lowers_the_loss_and_reports_every_update() -> None:
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(4, 4, 8, 16, generator=generator)
    guidance = GuidanceConfig(iterations=20, learning_rate=0.05, fft_cutoff=None)
    plan = plan_loss(tracks_of(*SCENES["one box"], 4, 8, 16), 8, 16, CELL, guidance, CPU)
    updates: list[int] = []
    step = optimize_latents(
        channels_last,
        latents,
        plan,
        guidance,
        on_update=lambda iteration, _: updates.append(iteration),
    )
    assert updates == list(range(20))
    assert step.losses[-1] < 0.7 * step.losses[0]
    assert step.skipped == 0
    assert not step.latents_TChw.requires_grad


def test_a_box_that_leaves_after_frame_0_does_not_change_the_latents() -> None:
    latents = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(8))
    guidance = GuidanceConfig()
    plan = plan_loss(tracks_of([[16, 16, 56, 48]], [[900, 0]], 2, 8, 16), 8, 16, CELL, guidance, CPU)
    step = optimize_latents(channels_last, latents, plan, guidance)
    assert torch.equal(step.latents_TChw, latents)
    assert step.losses == [0.0] * 5


def test_an_overflowing_16_bit_pass_is_computed_again_at_a_smaller_scale() -> None:
    latents = torch.randn(3, 4, 8, 16, generator=torch.Generator().manual_seed(9))
    guidance = GuidanceConfig(iterations=4, fft_cutoff=None)
    plan = plan_loss(tracks_of(*SCENES["one box"], 3, 8, 16), 8, 16, CELL, guidance, CPU)
    calls: list[int] = []

    def overflows_twice(latents_TChw: Tensor) -> Tensor:
        calls.append(1)
        return channels_last(latents_TChw) * (float("inf") if len(calls) <= 2 else 1.0)

    step = optimize_latents(overflows_twice, latents, plan, guidance, loss_scale=2.0**16)
    assert (step.skipped, step.loss_scale, len(step.losses)) == (2, 2.0**14, 4)
    without_overflow = optimize_latents(channels_last, latents, plan, guidance)
    torch.testing.assert_close(step.latents_TChw, without_overflow.latents_TChw, atol=1e-5, rtol=0)
