"""Compare the method, stage by stage, with numbers recorded from its original implementation.

    python tests/conformance.py --checkpoint DIR CASE_DIR [CASE_DIR ...]

A case is a folder of `config.json` and `golden.npz`. Prints, per stage, the largest and the mean absolute
difference (relative for the losses) and exits with 1 where one is over its tolerance.
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

from sgi2v.config import GuidanceConfig, SamplerConfig
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
"""Largest absolute difference per stage; of `losses`, the largest relative one."""


@dataclass(frozen=True)
class Difference:
    """How far one stage is from its golden numbers."""

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
    """The settings of a case in this project's words; what it does not say is the paper's."""
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
    """What `generate` is given for a case: its picture, tracks, settings and noise."""
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
    return [compare(stage, ours, golden[stage]) for stage, ours in computed.items() if stage in golden]


def compute_case(model: VideoModel, case: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """A case's recorded arrays, and ours of every stage."""
    golden = dict(np.load(case / "golden.npz", allow_pickle=False))
    given = read_inputs(case, golden)
    sampler, image, noise = given["sampler"], given["image"], given["noise"]

    schedule = Schedule(model, sampler.steps)
    conditioning = encode_image(model, image, noise.augmentation_1CHW, sampler)
    stages: dict[str, dict[int, list[torch.Tensor]]] = {"before": {}, "update": {}, "merged": {}}
    generation = generate(
        model,
        **given,
        on_stage=lambda stage, step, _, latents: stages[stage].setdefault(step, []).append(latents.clone()),
    )
    frames = decode_latents(model, generation.latents, sampler.decode_chunk_size)

    def stacked(stage: str) -> NDArray[np.float32]:
        """[guided steps, calls, T, C, h, w]; a stage that was never reached has no steps."""
        steps = [torch.stack(latents).cpu().numpy() for _, latents in sorted(stages[stage].items())]
        return np.stack(steps) if steps else np.zeros((0, 0), np.float32)

    computed: dict[str, NDArray[Any]] = {
        "timesteps": schedule.timesteps.cpu().numpy(),
        "sigmas": schedule.sigmas.cpu().numpy(),
        "image_embeddings_cfg": conditioning.image_embeddings_21D.cpu().numpy(),
        "image_latents_cfg": conditioning.image_latents_2Chw.cpu().numpy(),
        "losses": generation.losses,
        "latents_before": stacked("before"),
        "latents_after_adamw": stacked("update")[:, :, None],
        "latents_after_fft": stacked("merged"),
        "final_latents": generation.latents.cpu().numpy()[None],
        "frames": frames.cpu().numpy(),
    }
    return golden, computed


def compare(stage: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Difference:
    """The difference of one stage; infinite where the shapes differ or a value is NaN."""
    if ours.size == theirs.size == 0:
        return Difference(stage, 0.0, 0.0)
    if ours.shape != theirs.shape:
        return Difference(stage, float("inf"), float("inf"))
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    if stage == "losses":
        difference = difference / np.maximum(np.abs(theirs), 1e-12)  # two zeros agree
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
        except Exception as error:  # the next case has its own verdict
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
