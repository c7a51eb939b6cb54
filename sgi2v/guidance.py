"""Self-guided trajectory optimisation of the latents (SG-I2V, section 4; arXiv 2411.04989).

Axes: T frames, h w latent cells, C channels, N boxes, K box cells over all boxes and frames t >= 1, k
of them at once, M cells of all frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sgi2v.config import GuidanceConfig, MemoryTier
from sgi2v.features import LastGuidedLayerReached, record_features, resize_and_join
from sgi2v.memory import in_memory_tier
from sgi2v.scene import clear_cells
from sgi2v.spectral import butterworth_low_pass, merge_low_frequencies
from sgi2v.trajectory import BoxTracks

INITIAL_LOSS_SCALE = 2.0**16
"""Factor that keeps float16 gradients from vanishing; halved each time they overflow."""

LOSS_CELLS = 8192
"""Box cells whose features are compared at once: 40 MiB a tensor on Stable Video Diffusion."""

OnUpdate = Callable[[int, Tensor], None]
"""Called with (iteration, latents) after each update."""


@dataclass(frozen=True)
class LossPlan:
    """Which cells the loss compares, as flat indices: everything that is constant for a sample."""

    source_K: Tensor
    """Compared cell of frame t, flat over (t, y, x)."""
    corners_K4: Tensor
    """The four cells of frame 0 around the matching place, flat over (y, x)."""
    corner_weights_K4: Tensor
    """Bilinear weights of these four cells."""
    weight_K: Tensor
    """Gaussian weight of the compared cell within its box, of which the largest of a box is 1, times the share of the
    matching place in frame 0 that is the object, if the box has a mask."""
    low_pass_hw: Tensor | None
    """Gains of the low-pass merge; None skips it."""
    update_hw: Tensor | None = None
    """Whether a guided step may change the latents there; None: everywhere."""

    @property
    def is_empty(self) -> bool:
        """Whether no box is inside the frame after frame 0, so that there is nothing to optimise."""
        return self.source_K.numel() == 0


@dataclass(frozen=True)
class GuidedStep:
    """What one guided step did."""

    latents_TChw: Tensor
    losses: list[float]
    """Loss before each update; 0 where the plan is empty."""
    skipped: int
    """Passes thrown away because a 16-bit gradient overflowed; each was computed again at half the loss scale."""
    loss_scale: float
    """Loss scale for the next guided step to start from."""


def _bilinear_axis(
    position_K: NDArray[np.int64], size_K: NDArray[np.int64], original_K: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Lower cell, upper cell and fraction along an axis resized from `original` to `size` (align_corners=False)."""
    place = np.maximum((position_K + 0.5) * original_K / size_K - 0.5, 0.0)
    lower = np.minimum(place.astype(np.int64), original_K - 1)
    upper = np.minimum(lower + 1, original_K - 1)
    return lower, upper, place - lower


def plan_loss(
    tracks: BoxTracks, height: int, width: int, cell_px: int, guidance: GuidanceConfig, device: torch.device
) -> LossPlan:
    """Compute everything of the loss that does not depend on the latents.

    tracks: boxes in output pixels, clipped to frame 0. height, width: latent cells of `cell_px` pixels a side. Held
    cells come after those of the boxes, and are compared with themselves in frame 0.
    """
    cells_NT4 = tracks.cells(cell_px)
    first_N4 = cells_NT4[:, 0]
    boxes_M4 = cells_NT4[:, 1:].reshape(-1, 4)  # M = N (T - 1), box-major
    limits = np.array([width, height, width, height])
    inside_M4 = np.clip(boxes_M4, 0, limits)
    size_M2 = np.maximum(inside_M4[:, 2:] - inside_M4[:, :2], 0)
    count_M = size_M2.prod(axis=1)

    m_K = np.repeat(np.arange(len(boxes_M4)), count_M)
    n_K, t_K = np.divmod(m_K, max(tracks.num_frames - 1, 1))
    within_K = np.arange(len(m_K)) - np.repeat(np.cumsum(count_M) - count_M, count_M)
    row_K, column_K = np.divmod(within_K, np.maximum(size_M2[m_K, 0], 1))
    x_K, y_K = inside_M4[m_K, 0] + column_K, inside_M4[m_K, 1] + row_K

    box_K4, first_K4 = boxes_M4[m_K], first_N4[n_K]
    weight_K = np.ones(len(m_K))
    axes = []
    for place_K, low, high in ((y_K, 1, 3), (x_K, 0, 2)):
        size_K = box_K4[:, high] - box_K4[:, low]
        position_K = place_K - box_K4[:, low]
        axes.append(_bilinear_axis(position_K, size_K, first_K4[:, high] - first_K4[:, low]))
        weight_K *= _gaussian(position_K, size_K, guidance.heatmap_sigma)
    (y0, y1, fy), (x0, x1, fx) = axes
    rows, columns = np.stack([y0, y0, y1, y1], -1), np.stack([x0, x1, x0, x1], -1)
    corners_K4 = (first_K4[:, 1:2] + rows) * width + first_K4[:, 0:1] + columns
    corner_weights_K4 = np.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], -1)

    if tracks.masks_NHW is not None:
        share_NM = np.stack([_cell_shares(mask_HW, height, width) for mask_HW in tracks.masks_NHW])
        weight_K *= (share_NM[n_K[:, None], corners_K4] * corner_weights_K4).sum(axis=1)
        seen = weight_K > 0
        t_K, y_K, x_K, weight_K = t_K[seen], y_K[seen], x_K[seen], weight_K[seen]
        corners_K4, corner_weights_K4 = corners_K4[seen], corner_weights_K4[seen]

    source_K = ((t_K + 1) * height + y_K) * width + x_K
    update_hw = None
    if (guidance.hold_rest or guidance.mask_update) and len(source_K):
        is_clear_hw = clear_cells(tracks, height, width, cell_px)
        if guidance.mask_update:
            update_hw = torch.as_tensor(~is_clear_hw, device=device)
        if guidance.hold_rest:
            held_L = np.flatnonzero(np.tile(is_clear_hw, (tracks.num_frames - 1, 1, 1))) + height * width
            source_K = np.concatenate([source_K, held_L])
            corners_K4 = np.concatenate([corners_K4, np.tile(held_L[:, None] % (height * width), 4)])
            corner_weights_K4 = np.concatenate([corner_weights_K4, np.tile([1.0, 0, 0, 0], (len(held_L), 1))])
            weight_K = np.concatenate([weight_K, np.full(len(held_L), guidance.hold_weight)])

    def on_device(array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=device)

    cutoff = guidance.fft_cutoff
    return LossPlan(
        source_K=on_device(source_K, torch.int64),
        corners_K4=on_device(corners_K4, torch.int64),
        corner_weights_K4=on_device(corner_weights_K4, torch.float32),
        weight_K=on_device(weight_K, torch.float32),
        low_pass_hw=None if cutoff is None else butterworth_low_pass(height, width, cutoff).to(device),
        update_hw=update_hw,
    )


def _cell_shares(mask_HW: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Share of each latent cell that is the object, flat over (y, x). mask: as in BoxTracks."""
    mask_1HW = torch.as_tensor(mask_HW, dtype=torch.float64)[None]
    shares: NDArray[np.float64] = F.adaptive_avg_pool2d(mask_1HW, (height, width)).flatten().numpy() / 255
    return shares


def _gaussian(position_K: NDArray[np.int64], size_K: NDArray[np.int64], sigma: float) -> NDArray[np.float64]:
    """Weight along one axis at cell centres; sigma in half sides of the box; 1 at the cell nearest to its centre."""
    deviation = sigma * size_K / 2
    nearest = np.where(size_K % 2 == 0, 0.5, 0.0)
    distance = position_K + 0.5 - size_K / 2
    return np.exp((nearest**2 - distance**2) / (2 * deviation**2))


def trajectory_loss(features_ThwC: Tensor, plan: LossPlan) -> Tensor:
    """Weighted mean squared distance of each box's cells to its cells in frame 0, which are detached: a scalar."""
    cells = features_ThwC.shape[1:3].numel()
    loss: Tensor = _TrajectoryLoss.apply(features_ThwC.flatten(0, 2), cells, plan)  # type: ignore[no-untyped-call]
    return loss


class _TrajectoryLoss(torch.autograd.Function):
    """The loss and its gradient, LOSS_CELLS cells at a time, so that memory does not grow with the boxes."""

    @staticmethod
    def forward(ctx: Any, features_MC: Tensor, cells: int, plan: LossPlan) -> Tensor:
        """features: M cells of all frames; the first `cells` of them are frame 0's."""
        ctx.save_for_backward(features_MC)
        ctx.cells, ctx.plan = cells, plan
        parts = _errors(features_MC, cells, plan)
        weighted = torch.stack([(error_kC.square().mean(dim=-1) * weight_k).sum() for _, weight_k, error_kC in parts])
        return weighted.sum() / plan.weight_K.sum()

    @staticmethod
    def backward(ctx: Any, *loss_gradients: Tensor) -> tuple[Tensor, None, None]:
        (features_MC,) = ctx.saved_tensors
        scale = loss_gradients[0] * 2 / (features_MC.shape[1] * ctx.plan.weight_K.sum())
        gradient_MC = torch.zeros_like(features_MC)
        for source_k, weight_k, error_kC in _errors(features_MC, ctx.cells, ctx.plan):
            gradient_MC.index_add_(0, source_k, error_kC * (weight_k * scale).to(error_kC.dtype)[:, None])
        return gradient_MC, None, None


def _errors(features_MC: Tensor, cells: int, plan: LossPlan) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunk by chunk: the cells' flat indices, their weights, and their differences to their targets in frame 0."""
    per_cell: tuple[Tensor, ...] = (plan.source_K, plan.corners_K4, plan.corner_weights_K4, plan.weight_K)
    chunks = (torch.split(tensor, LOSS_CELLS) for tensor in per_cell)
    for source_k, corners_k4, corner_weights_k4, weight_k in zip(*chunks, strict=True):
        weights_k4 = corner_weights_k4.to(features_MC.dtype)
        target_kC = F.embedding_bag(corners_k4, features_MC[:cells], per_sample_weights=weights_k4, mode="sum")
        yield source_k, weight_k, features_MC.index_select(0, source_k) - target_kC


def guided_features(
    unet: Any, unet_inputs: dict[str, Tensor], guidance: GuidanceConfig, memory: MemoryTier = MemoryTier.HIGH
) -> Tensor:
    """Features of one conditional forward pass, which ends at the last guided layer: float32 [T, h, w, C]."""
    height, width = unet_inputs["sample"].shape[-2:]
    with (
        record_features(unet, guidance, height, width) as features,
        in_memory_tier(unet, guidance, memory),
        suppress(LastGuidedLayerReached),
    ):
        unet(**unet_inputs)
    return resize_and_join(features, height, width)


def optimize_latents(
    compute_features: Callable[[Tensor], Tensor],
    latents_TChw: Tensor,
    plan: LossPlan,
    guidance: GuidanceConfig,
    loss_scale: float = 1.0,
    on_update: OnUpdate | None = None,
) -> GuidedStep:
    """One guided step: `guidance.iterations` updates of a fresh AdamW, then the low-pass merge.

    compute_features: latents [T, C, h, w] -> features [T, h, w, C], differentiable. latents: float32.
    loss_scale: INITIAL_LOSS_SCALE where the features are float16, 1 elsewhere.
    """
    if plan.is_empty:
        if on_update is not None:
            for iteration in range(guidance.iterations):
                on_update(iteration, latents_TChw)
        return GuidedStep(latents_TChw, [0.0] * guidance.iterations, 0, loss_scale)
    original = latents_TChw.detach()
    latents = original.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([latents], lr=guidance.learning_rate)
    losses: list[Tensor] = []
    skipped = 0
    for iteration in range(guidance.iterations):
        loss, gradient = _loss_and_gradient(compute_features, latents, plan, loss_scale)
        while loss_scale > 1 and not torch.isfinite(gradient).all():
            loss_scale /= 2
            skipped += 1
            loss, gradient = _loss_and_gradient(compute_features, latents, plan, loss_scale)
        losses.append(loss)
        latents.grad = gradient / loss_scale
        if iteration == 0 and guidance.gradient_floor > 0:
            root_mean_square = float(latents.grad.square().mean().sqrt())
            optimizer.param_groups[0]["eps"] = guidance.gradient_floor * root_mean_square
        optimizer.step()
        if on_update is not None:
            on_update(iteration, latents.detach())
    optimized = latents.detach()
    if plan.low_pass_hw is not None:
        optimized = merge_low_frequencies(optimized, original, plan.low_pass_hw)
    if plan.update_hw is not None:
        optimized = torch.where(plan.update_hw, optimized, original)
    return GuidedStep(optimized, [float(loss) for loss in losses], skipped, loss_scale)


def _loss_and_gradient(
    compute_features: Callable[[Tensor], Tensor], latents_TChw: Tensor, plan: LossPlan, loss_scale: float
) -> tuple[Tensor, Tensor]:
    """The loss, and `loss_scale` times its gradient with respect to the latents."""
    with torch.enable_grad():
        loss = trajectory_loss(compute_features(latents_TChw), plan)
        (gradient,) = torch.autograd.grad(loss * loss_scale, latents_TChw)
    return loss.detach(), gradient
