"""What each measure that changes the speed and not the result is worth: every one alone against the model as it is.

    python -m tests.benchmarks.measures [--model embedded] [--samples 5] [--only NAME ...]
    python -m tests.benchmarks.measures --model tests/golden/checkpoint --case tests/golden/case-a
    python -m tests.benchmarks.full_size FOLDER && python -m tests.benchmarks.measures --model FOLDER

A measure that is taken is left out, one that is not taken is added; `none taken` leaves all out. Samples are made in
turns, and seconds are medians; a ratio above 1 means that the variant is slower. With `--case` the settings, the
picture and the noise are those of a conformance case, and the case is held against its golden numbers too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import sgi2v.features
import sgi2v.model
from sgi2v.compiled import compile_blocks
from sgi2v.config import MemoryTier
from sgi2v.generate import Generation, generate
from sgi2v.model import VideoModel, load_model
from sgi2v.trial import moving_box
from tests.conformance import read_inputs, run_case

AS_IT_IS, NONE_TAKEN = "as it is", "none taken"


@dataclass(frozen=True)
class Variant:
    """How a model is loaded, changed and run."""

    loading: tuple[str, ...] = ()
    """Functions of `sgi2v.model` that do nothing while it is loaded."""
    change: Callable[[VideoModel], object] | None = None
    running: Callable[[], Any] = nullcontext
    memory: MemoryTier = MemoryTier.HIGH


def _in_channels_last(model: VideoModel) -> None:
    for part in (model.unet, model.vae):
        part.to(memory_format=torch.channels_last)


@contextmanager
def _to_the_end() -> Iterator[None]:
    """Guided passes that go on after the last guided layer."""
    with mock.patch.object(sgi2v.features._Recorder, "add", lambda self, features: self.features.append(features)):
        yield


def _wanting_gradients(model: VideoModel) -> None:
    model.unet.requires_grad_(True)


@contextmanager
def _nothing_left_out() -> Iterator[None]:
    with _to_the_end(), sdpa_kernel(SDPBackend.MATH):
        yield


CROSS_ATTENTION, CONVOLUTIONS = "replace_cross_attention", "replace_temporal_convolutions"
VARIANTS: dict[str, Variant] = {
    AS_IT_IS: Variant(),
    "cross-attention to one token in full": Variant(loading=(CROSS_ATTENTION,)),
    "temporal convolutions in three dimensions": Variant(loading=(CONVOLUTIONS,)),
    "passes that go on after the last guided layer": Variant(running=_to_the_end),
    "attention without a fused kernel": Variant(running=partial(sdpa_kernel, SDPBackend.MATH)),
    "weights that want gradients": Variant(change=_wanting_gradients),
    NONE_TAKEN: Variant((CROSS_ATTENTION, CONVOLUTIONS), _wanting_gradients, _nothing_left_out),
    "low memory tier": Variant(memory=MemoryTier.LOW),
    "channels last": Variant(change=_in_channels_last),
    "compiled blocks": Variant(change=lambda model: compile_blocks(model.unet)),
}
"""The last three are not taken; two of them can be asked for."""


def load(source: str, variant: Variant) -> VideoModel:
    """A model of its own for a variant."""
    with ExitStack() as stack:
        for name in variant.loading:
            stack.enter_context(mock.patch.object(sgi2v.model, name))
        model = load_model(source)
    if variant.change is not None:
        variant.change(model)
    return model


@dataclass
class Made:
    """What a variant made."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    frames: Any = None
    peak_bytes: int | None = None

    def add(self, generation: Generation) -> None:
        self.seconds.append(generation.seconds)
        self.frames, self.peak_bytes = generation.frames, generation.peak_gpu_bytes

    def median(self, *phases: str) -> float:
        return float(np.median([sum(each[phase] for phase in phases or each) for each in self.seconds]))


def sample_of(model: VideoModel, case: Path | None) -> dict[str, Any]:
    """Arguments of `generate`: those of a case, or noise for a picture and one box that crosses it."""
    if case is not None:
        return read_inputs(case, dict(np.load(case / "golden.npz", allow_pickle=False)))
    sampler, guidance = model.checkpoint.sampler(), model.checkpoint.guidance()
    image_HWC, tracks = moving_box(sampler)
    return {"image": image_HWC, "tracks": tracks, "sampler": sampler, "guidance": guidance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--case", type=Path)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    variants = {name: VARIANTS[name] for name in dict.fromkeys([AS_IT_IS, *options.only])}
    models = {name: load(options.model, variant) for name, variant in variants.items()}
    sample = sample_of(models[AS_IT_IS], options.case)
    made = {name: Made() for name in variants}
    for number in range(options.samples + 1):
        for name, variant in variants.items():
            with variant.running():
                generation = generate(models[name], **sample, memory=variant.memory)
            if number:  # the first one only warms up
                made[name].add(generation)
    base = made[AS_IT_IS]
    print(f"{options.model} on {models[AS_IT_IS].device}, {models[AS_IT_IS].dtype}, {options.samples} samples")
    print("| variant | guide s | denoise s | decode s | sample s | ratio | peak GiB | largest difference of 255 |")
    print("|" + " --- |" * 8)
    for name, each in made.items():
        differs = int(np.abs(each.frames.astype(int) - base.frames).max())
        peak = "" if each.peak_bytes is None else f"{each.peak_bytes / 2**30:.1f}"
        phases = " | ".join(f"{each.median(phase):.3f}" for phase in ("guide", "denoise", "decode"))
        ratio = each.median() / base.median()
        print(f"| {name} | {phases} | {each.median():.3f} | {ratio:.3f} | {peak} | {differs} |")
    if options.case:
        for name, variant in variants.items():
            with variant.running():
                found = run_case(models[name], options.case)
            worst = max(found, key=lambda each: each.largest / each.tolerance)
            share = worst.largest / worst.tolerance
            print(f"{name}: at most {share:.1%} of a tolerance, of {worst.stage}; conforms: {share <= 1}")


if __name__ == "__main__":
    main()
