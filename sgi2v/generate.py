"""Generate one video from one image and its box tracks.

Axes: T frames, H W pixels, C channels, h w latent cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sgi2v.checkpoint import check_layers
from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.errors import ErrorCode, SampleError
from sgi2v.estimate import choose_chunk, choose_tier
from sgi2v.guidance import INITIAL_LOSS_SCALE, LossPlan, guided_features, optimize_latents, plan_loss
from sgi2v.memory import decode_in_memory
from sgi2v.model import Conditioning, VideoModel, encode_image
from sgi2v.sampling import CONDITIONAL, PHASES, Noise, Schedule, denoise, draw_noise, unet_inputs
from sgi2v.trajectory import BoxTracks
from sgi2v.video import resize_image

OnStep = Callable[[int], None]
"""Called with the 0-based index of each denoising step, before it."""
OnStage = Callable[[str, int, int, Tensor], None]
"""Called with (stage, step, iteration, latents). The stages of a guided step: `before`, each `update`, `merged`."""


@dataclass(frozen=True)
class Generation:
    """A video, and how its generation went."""

    frames: NDArray[np.uint8]
    """[T, H, W, 3] RGB."""
    latents: Tensor
    """Final latents, float32 [T, C, h, w] on the CPU."""
    losses: NDArray[np.float64]
    """[guided steps, iterations]: loss before each update; 0 where no box is inside the frame after frame 0."""
    is_guided: bool
    """Whether anything was optimised: False without guidance, without boxes, and if no box is seen after frame 0."""
    seconds: dict[str, float]
    """Seconds per phase: encode, guide, denoise, decode."""
    skipped_updates: int
    """Passes thrown away because a 16-bit gradient overflowed; each was computed again."""
    latent_drift: float
    """Root of the sum, over guided steps, of the latents' mean squared change divided by their mean square."""
    decode_chunk: int
    """Frames decoded at once: `decode_chunk_size`, or fewer where memory was short."""
    peak_gpu_bytes: int | None
    """Most memory that torch held on the GPU; None on a CPU."""


class _Clock:
    """Seconds per phase. Waits for the GPU at the start and end of a phase, so that work counts where it was done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Guide:
    """Optimises the latents at the guided steps, and keeps the losses and totals of the whole sample."""

    def __init__(
        self,
        model: VideoModel,
        schedule: Schedule,
        conditioning: Conditioning,
        plan: LossPlan,
        guidance: GuidanceConfig,
        steps: int,
        memory: MemoryTier,
        clock: _Clock,
        on_stage: OnStage | None,
    ) -> None:
        self.model, self.schedule, self.conditioning = model, schedule, conditioning
        self.plan, self.guidance, self.memory = plan, guidance, memory
        self.step_indices = frozenset(guidance.step_indices(steps))
        self.clock, self.on_stage = clock, on_stage
        self.losses: list[list[float]] = []
        self.skipped = 0
        self.drift_squared = 0.0
        self.loss_scale = INITIAL_LOSS_SCALE if model.dtype is torch.float16 else 1.0

    def __call__(self, step: int, latents_TChw: Tensor) -> Tensor:
        if step not in self.step_indices:
            return latents_TChw
        with self.clock.phase("guide"):
            self._report("before", step, 0, latents_TChw)
            guided = optimize_latents(
                partial(self._features, step),
                latents_TChw,
                self.plan,
                self.guidance,
                loss_scale=self.loss_scale,
                on_update=lambda iteration, latents: self._report("update", step, iteration, latents),
            )
            self._report("merged", step, 0, guided.latents_TChw)
            if not torch.isfinite(guided.latents_TChw).all():
                message = f"latents became NaN at step {step}: lower guidance.learning_rate, or guide later steps"
                raise SampleError(ErrorCode.GUIDANCE_DIVERGED, message)
            self.losses.append(guided.losses)
            self.skipped += guided.skipped
            self.loss_scale = guided.loss_scale
            difference = (guided.latents_TChw - latents_TChw).square().mean() / latents_TChw.square().mean()
            self.drift_squared += float(difference)
        return guided.latents_TChw

    def _features(self, step: int, latents_TChw: Tensor) -> Tensor:
        dtype = self.model.dtype
        inputs = unet_inputs(self.schedule, step, latents_TChw, self.conditioning, CONDITIONAL, dtype)
        return guided_features(self.model.unet, inputs, self.guidance, self.memory)

    def _report(self, stage: str, step: int, iteration: int, latents_TChw: Tensor) -> None:
        if self.on_stage is not None:
            self.on_stage(stage, step, iteration, latents_TChw.detach())


def generate(
    model: VideoModel,
    image: Image.Image | NDArray[np.uint8],
    tracks: BoxTracks | None,
    sampler: SamplerConfig | None = None,
    guidance: GuidanceConfig | None = None,
    seed: int = 817,
    noise: Noise | None = None,
    on_stage: OnStage | None = None,
    memory: MemoryTier | None = None,
    on_step: OnStep | None = None,
) -> Generation:
    """Generate one video whose boxes follow their tracks (SG-I2V, arXiv 2411.04989).

    image: the first frame, RGB [H, W, 3] uint8 or PIL, of any size; resized to the sampler's size. tracks: boxes in
    pixels of a frame of any size, rescaled and resampled to the sampler's size and frames; None or no boxes: no
    control. sampler: None takes the checkpoint's own settings. guidance: None is plain SVD with the same noise.
    seed: for all noise; has no effect if `noise` is given. memory: a lower tier makes the same video in less memory
    and more time; None chooses by the GPU's free memory, and is the high tier on a CPU. on_step: called before each
    denoising step; on a GPU the steps before it may still be at work.
    Raises ConfigError for settings that the model cannot use, and SampleError for a sample that cannot be generated.
    """
    sampler = sampler or model.checkpoint.sampler()
    model.checkpoint.check_size(sampler.height, sampler.width)
    image_HWC = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image, np.uint8)
    image_HWC = resize_image(image_HWC, sampler.height, sampler.width)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    clock = _Clock(model.device)
    with clock.phase("encode"):
        noise = noise or draw_noise(seed, sampler, model.cell_px, model.vae.config.latent_channels)
        schedule = Schedule(model, sampler.steps)
        conditioning = encode_image(model, image_HWC, noise.augmentation_1CHW, sampler)
        latents_TChw = noise.initial_TChw.to(model.device) * schedule.init_noise_sigma
    guide = None
    if guidance is not None and tracks is not None and tracks.num_boxes > 0:
        check_layers(model.unet.config, guidance)
        own_tracks = tracks.rescale(sampler.height, sampler.width).resample(sampler.num_frames).clip_to_first_frame()
        height, width = latents_TChw.shape[-2:]
        plan = plan_loss(own_tracks, height, width, model.cell_px, guidance, model.device)
        if memory is None:
            memory = choose_tier("auto", model, sampler, guidance)
        guide = _Guide(model, schedule, conditioning, plan, guidance, sampler.steps, memory, clock, on_stage)

    def begin_step(step: int, latents_TChw: Tensor) -> Tensor:
        if on_step is not None:
            on_step(step)
        return latents_TChw if guide is None else guide(step, latents_TChw)

    with clock.phase("denoise"):
        latents_TChw = denoise(model, schedule, conditioning, latents_TChw, sampler, begin_step)
    clock.seconds["denoise"] -= clock.seconds["guide"]
    if not torch.isfinite(latents_TChw).all():
        raise SampleError(ErrorCode.VIDEO_INVALID, "latents became NaN while denoising: check the model's dtype")
    with clock.phase("decode"):
        frames_THWC, decode_chunk = decode_in_memory(model, latents_TChw, choose_chunk(model, sampler, guidance))
        frames = (frames_THWC * 255).round().to(torch.uint8).cpu().numpy()
    if not torch.isfinite(frames_THWC).all():
        raise SampleError(ErrorCode.VIDEO_INVALID, "the decoded frames contain NaN: check the model's dtype")
    losses = guide.losses if guide else []
    return Generation(
        frames=frames,
        latents=latents_TChw.float().cpu(),
        losses=np.array(losses, np.float64).reshape(len(losses), guidance.iterations if guidance else 0),
        is_guided=guide is not None and bool(guide.step_indices) and not guide.plan.is_empty,
        seconds=clock.seconds,
        skipped_updates=guide.skipped if guide else 0,
        latent_drift=guide.drift_squared**0.5 if guide else 0.0,
        decode_chunk=decode_chunk,
        peak_gpu_bytes=torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None,
    )
