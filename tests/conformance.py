"""Compare the method, stage by stage, with numbers recorded from its original implementation.

    python tests/conformance.py --checkpoint DIR CASE_DIR [CASE_DIR ...]

A case is a folder with `config.json` and `golden.npz`. Prints the largest and the mean absolute difference of each
stage (relative for the losses), and exits with 1 if a largest difference is over its tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.generate import generate
from sgi2v.model import VideoModel, decode_latents, encode_image, load_model
from sgi2v.sampling import Noise, Schedule
from sgi2v.trajectory import BoxTracks

TOLERANCES = {
    "timesteps": 1e-5,
    "sigmas": 1e-3,
    "image_embeddings_cfg": 1e-4,
    "image_latents_cfg": 1e-3,
    "losses": 1e-4,
    "latents_before": 5e-3,
    "latents_after_adamw": 5e-3,
    "latents_after_fft": 5e-3,
    "final_latents": 1e-3,
    "frames": 1e-3,
}
"""Stage -> largest allowed absolute difference; for `losses` the largest relative one."""


@dataclass(frozen=True)
class Difference:
    """The difference of one stage from its golden numbers."""

    stage: str
    largest: float
    mean: float

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.stage]

    @property
    def conforms(self) -> bool:
        return self.largest <= self.tolerance


def read_settings(config: dict[str, Any]) -> tuple[SamplerConfig, GuidanceConfig]:
    """A case's settings as this project names them; settings that the case leaves out are the paper's."""
    sampler_fields = {
        "height": "height",
        "width": "width",
        "num_frames": "num_frames",
        "num_inference_steps": "steps",
        "fps": "fps",
        "motion_bucket_id": "motion_bucket_id",
        "noise_aug_strength": "noise_aug_strength",
        "min_guidance_scale": "min_cfg_scale",
        "max_guidance_scale": "max_cfg_scale",
        "decode_chunk_size": "decode_chunk_size",
    }
    guidance_fields = {
        "layers": "layers",
        "iterations": "iterations",
        "lr": "learning_rate",
        "heatmap_sigma": "heatmap_sigma",
        "fft_cutoff": "fft_cutoff",
    }
    sampler = SamplerConfig(**{ours: config[theirs] for theirs, ours in sampler_fields.items() if theirs in config})
    values = {ours: config[theirs] for theirs, ours in guidance_fields.items() if theirs in config}
    if "optimize_steps_counted_down" in config:
        counted_down = config["optimize_steps_counted_down"]
        values["guided_steps"] = tuple(sampler.steps - remaining for remaining in counted_down)
    return sampler, GuidanceConfig(**values)


def read_inputs(case: Path, golden: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Arguments of `generate` for a case: its image, tracks, settings and noise."""
    sampler, guidance = read_settings(json.loads((case / "config.json").read_text()))
    return {
        "image": golden["image"],
        "tracks": BoxTracks(golden["boxes_hwhw"][..., [1, 0, 3, 2]], sampler.height, sampler.width),
        "sampler": sampler,
        "guidance": guidance,
        "noise": Noise(torch.from_numpy(golden["noise_aug_noise"]), torch.from_numpy(golden["init_noise"])[0]),
    }


def run_case(model: VideoModel, case: Path) -> list[Difference]:
    """Generate a case with its own noise and compare every stage that it recorded."""
    golden, computed = compute_case(model, case)
    return [compare(stage, actual, golden[stage]) for stage, actual in computed.items() if stage in golden]


def compute_case(model: VideoModel, case: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """A case's recorded arrays, and the arrays of every stage as computed here."""
    golden = dict(np.load(case / "golden.npz", allow_pickle=False))
    inputs = read_inputs(case, golden)
    sampler, image, noise = inputs["sampler"], inputs["image"], inputs["noise"]

    schedule = Schedule(model, sampler.steps)
    conditioning = encode_image(model, image, noise.augmentation_1CHW, sampler)
    stages: dict[str, dict[int, list[torch.Tensor]]] = {"before": {}, "update": {}, "merged": {}}
    generation = generate(
        model,
        **inputs,
        memory=MemoryTier.HIGH,
        on_stage=lambda stage, step, _, latents: stages[stage].setdefault(step, []).append(latents.clone()),
    )
    frames = decode_latents(model, generation.latents.to(model.device), sampler.decode_chunk_size)

    def stacked(stage: str) -> NDArray[np.float32]:
        """[guided steps, calls per step, T, C, h, w]; no steps if the stage was never reached."""
        steps = [torch.stack(latents).cpu().numpy() for _, latents in sorted(stages[stage].items())]
        return np.stack(steps) if steps else np.zeros((0, 0), np.float32)

    computed: dict[str, NDArray[Any]] = {
        "timesteps": schedule.timesteps.cpu().numpy(),
        "sigmas": schedule.sigmas.cpu().numpy(),
        "image_embeddings_cfg": conditioning.image_embeddings_21D.float().cpu().numpy(),
        "image_latents_cfg": conditioning.image_latents_2Chw.float().cpu().numpy(),
        "losses": generation.losses,
        "latents_before": stacked("before"),
        "latents_after_adamw": stacked("update")[:, :, None],
        "latents_after_fft": stacked("merged"),
        "final_latents": generation.latents.cpu().numpy()[None],
        "frames": frames.cpu().numpy(),
    }
    return golden, computed


def compare(stage: str, actual: NDArray[Any], golden: NDArray[Any]) -> Difference:
    """The difference of one stage; infinite if the shapes differ or a value is NaN."""
    if actual.size == golden.size == 0:
        return Difference(stage, 0.0, 0.0)
    if actual.shape != golden.shape:
        return Difference(stage, float("inf"), float("inf"))
    difference = np.abs(actual.astype(np.float64) - golden.astype(np.float64))
    if stage == "losses":
        difference = difference / np.maximum(np.abs(golden), 1e-12)  # two zeros agree
    if not np.isfinite(difference).all():
        return Difference(stage, float("inf"), float("inf"))
    return Difference(stage, float(difference.max(initial=0.0)), float(difference.mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", required=True, help="folder in diffusers layout")
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR")
    arguments = parser.parse_args()
    model = load_model(arguments.checkpoint, device="cpu", dtype="float32")
    conforms = True
    for case in arguments.cases:
        print(f"{case}\n  {'stage':<22}{'largest':>12}{'mean':>12}{'tolerance':>12}")
        try:
            differences = run_case(model, case)
        except Exception as error:  # the other cases are still compared
            print(f"  failed: {type(error).__name__}: {error}")
            conforms = False
            continue
        for difference in differences:
            verdict = "" if difference.conforms else "  OVER"
            numbers = f"{difference.largest:>12.2e}{difference.mean:>12.2e}{difference.tolerance:>12.0e}"
            print(f"  {difference.stage:<22}{numbers}{verdict}")
            conforms &= difference.conforms
    print("conforms" if conforms else "does NOT conform")
    return 0 if conforms else 1


if __name__ == "__main__":
    sys.exit(main())
