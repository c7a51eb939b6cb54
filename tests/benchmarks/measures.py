"""What each measure that changes the speed and not the result is worth: every one alone against the model as it is.

    python -m tests.benchmarks.measures [--model embedded] [--samples 5] [--only NAME ...]
    python -m tests.benchmarks.measures --model tests/golden/checkpoint --case tests/golden/case-a
    python -m tests.benchmarks.full_size FOLDER && python -m tests.benchmarks.measures --model FOLDER

A measure that is taken is left out, one that is not taken is added; `none taken` leaves all out. The model as it is
stays loaded, and beside it one variant at a time, whose samples are made in turns with those of the model as it is:
`as it is s` is what these took, seconds are medians, and a ratio above 1 means that the variant is slower. `peak GiB`
is the most that torch held on a GPU while a sample was made, the variant's own weights included and those of the model
as it is left out. A variant that finds no room for both has a row that says so. With `--case` the settings, the picture
and the noise are those of a conformance case, and the case is held against its golden numbers too.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import sgi2v.features
import sgi2v.model
from sgi2v.compiled import compile_blocks
from sgi2v.config import DType, MemoryTier
from sgi2v.convolution import replace_temporal_convolutions
from sgi2v.errors import is_out_of_memory
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
    dtype: DType = "auto"


def _in_channels_last(model: VideoModel) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for part in (model.unet, model.vae):
        for weight in part.parameters():
            if weight.ndim in formats:
                weight.data = weight.data.contiguous(memory_format=formats[weight.ndim])


def _in_two_dimensions(model: VideoModel) -> None:
    for part in (model.unet, model.vae):
        replace_temporal_convolutions(part)


def _branch_by_branch(model: VideoModel) -> None:
    """The branches of classifier-free guidance in a pass of their own each."""
    forward = model.unet.forward

    def one_by_one(*, timestep: Tensor, return_dict: bool = True, **batched: Tensor) -> Any:
        def branch(number: int) -> dict[str, Tensor]:
            return {name: value[number : number + 1] for name, value in batched.items()}

        branches = range(len(batched["sample"]))
        if len(branches) == 1:
            return forward(timestep=timestep, return_dict=return_dict, **batched)
        return (torch.cat([forward(timestep=timestep, return_dict=False, **branch(n))[0] for n in branches]),)

    model.unet.forward = one_by_one


@contextmanager
def _to_the_end() -> Iterator[None]:
    """Guided passes that go on after the last guided layer."""
    with mock.patch.object(sgi2v.features._Recorder, "add", lambda self, features: self.features.append(features)):
        yield


def _wanting_gradients(model: VideoModel) -> None:
    model.unet.requires_grad_(True)


def _unprepared(model: VideoModel) -> None:
    _wanting_gradients(model)
    _branch_by_branch(model)


@contextmanager
def _nothing_left_out() -> Iterator[None]:
    with _to_the_end(), sdpa_kernel(SDPBackend.MATH):
        yield


CROSS_ATTENTION, CONVOLUTIONS = "replace_cross_attention", "replace_temporal_convolutions"


def variants_on(device: str) -> dict[str, Variant]:
    """The measures that are taken on a device, `none taken`, and those that are not taken."""
    taken: dict[str, Variant] = {
        "cross-attention to one token in full": Variant(loading=(CROSS_ATTENTION,)),
        "passes that go on after the last guided layer": Variant(running=_to_the_end),
        "attention without a fused kernel": Variant(running=partial(sdpa_kernel, SDPBackend.MATH)),
        "weights that want gradients": Variant(change=_wanting_gradients),
        "a pass for each branch of classifier-free guidance": Variant(change=_branch_by_branch),
    }
    not_taken: dict[str, Variant] = {
        "medium memory tier": Variant(memory=MemoryTier.MEDIUM),
        "low memory tier": Variant(memory=MemoryTier.LOW),
        "channels last": Variant(change=_in_channels_last),
        "compiled blocks": Variant(change=lambda model: compile_blocks(model.unet)),
    }
    if device == "cpu":
        taken["temporal convolutions in three dimensions"] = Variant(loading=(CONVOLUTIONS,))
    else:
        not_taken["weights in float32"] = Variant(dtype="float32")
        not_taken["weights in float16"] = Variant(dtype="float16")
        not_taken["temporal convolutions in two dimensions"] = Variant(change=_in_two_dimensions)
    none_taken = Variant((CROSS_ATTENTION, CONVOLUTIONS), _unprepared, _nothing_left_out)
    return {**taken, NONE_TAKEN: none_taken, **not_taken}


def load(source: str, variant: Variant) -> VideoModel:
    """A model of its own for a variant."""
    with ExitStack() as stack:
        for name in variant.loading:
            stack.enter_context(mock.patch.object(sgi2v.model, name))
        model = load_model(source, dtype=variant.dtype)
    if variant.change is not None:
        variant.change(model)
    return model


@dataclass
class Made:
    """What a variant made."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    frames: Any = None
    peak_bytes: int | None = None

    def add(self, generation: Generation, weights_beside: int) -> None:
        """weights_beside: bytes of another model that is on the device."""
        self.seconds.append(generation.seconds)
        self.frames = generation.frames
        if generation.peak_gpu_bytes is not None:
            self.peak_bytes = generation.peak_gpu_bytes - weights_beside

    def median(self, *phases: str) -> float:
        return float(np.median([sum(each[phase] for phase in phases or each) for each in self.seconds]))


@dataclass(frozen=True)
class Bench:
    """The model as it is, and what is made with it and with each variant."""

    source: str
    base: VideoModel
    sample: dict[str, Any]
    samples: int
    case: Path | None

    def alone(self) -> list[str]:
        """Cells of the model as it is."""
        made = Made()
        self._make(self.base, Variant())
        for _ in range(self.samples):
            made.add(self._make(self.base, Variant()), weights_beside=0)
        return self._cells(made, made, self.base, Variant())

    def beside(self, variant: Variant) -> list[str]:
        """Cells of a variant, in turns with the model as it is."""
        model = load(self.source, variant)
        base, made = Made(), Made()
        self._make(model, variant)
        for _ in range(self.samples):
            base.add(self._make(self.base, Variant()), model.weights_bytes)
            made.add(self._make(model, variant), self.base.weights_bytes)
        return self._cells(made, base, model, variant)

    def _make(self, model: VideoModel, variant: Variant) -> Generation:
        with variant.running():
            return generate(model, **self.sample, memory=variant.memory)

    def _cells(self, made: Made, base: Made, model: VideoModel, variant: Variant) -> list[str]:
        seconds = [made.median(phase) for phase in ("guide", "denoise", "decode")]
        peak = "" if made.peak_bytes is None else f"{made.peak_bytes / 2**30:.1f}"
        differs = int(np.abs(made.frames.astype(int) - base.frames).max())
        cells = [f"{each:.3f}" for each in (*seconds, made.median(), base.median(), made.median() / base.median())]
        return [*cells, peak, str(differs), *self._conformance(model, variant)]

    def _conformance(self, model: VideoModel, variant: Variant) -> list[str]:
        if self.case is None:
            return []
        with variant.running():
            worst = max(run_case(model, self.case), key=lambda each: each.largest / each.tolerance)
        return [f"{worst.largest / worst.tolerance:.1%}, of {worst.stage}"]


def or_out_of_memory(measure: Callable[[], list[str]]) -> list[str]:
    """A row's cells; where memory runs out, one that says so."""
    try:
        return measure()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return ["out of memory"]


def free_memory() -> None:
    """Of models that nothing uses, compiled ones too."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


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
    variants = variants_on("cuda" if torch.cuda.is_available() else "cpu")
    told = f"all of them if left out: {', '.join(variants)}"
    parser.add_argument("--only", nargs="*", choices=list(variants), default=list(variants), metavar="NAME", help=told)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load(options.model, Variant())
    bench = Bench(options.model, base, sample_of(base, options.case), options.samples, options.case)
    print(f"{options.model} on {base.device}, {base.dtype}, {options.samples} samples")
    header = ["variant", "guide s", "denoise s", "decode s", "sample s", f"{AS_IT_IS} s", "ratio", "peak GiB"]
    header += ["largest difference of 255", *(["of a tolerance, at most"] if options.case else [])]
    print_row(header)
    print_row(["---"] * len(header))
    print_row([AS_IT_IS, *bench.alone()])
    for name in options.only:
        print_row([name, *or_out_of_memory(partial(bench.beside, variants[name]))], len(header))
        free_memory()


def print_row(cells: list[str], columns: int = 0) -> None:
    """At once; the cells that are missing are empty."""
    print(f"| {' | '.join(cells + [''] * (columns - len(cells)))} |", flush=True)


if __name__ == "__main__":
    main()
