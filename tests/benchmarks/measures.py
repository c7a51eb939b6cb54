"""Effect of each optimisation on the time and memory of a sample.

    python -m tests.benchmarks.measures [--model embedded] [--samples 5] [--only NAME ...]
    python -m tests.benchmarks.measures --model tests/golden/checkpoint --case tests/golden/case-a
    python -m tests.benchmarks.full_size FOLDER && python -m tests.benchmarks.measures --model FOLDER

An optimisation changes the speed and not the result. Each variant differs from the unchanged model in one thing: it
leaves out an optimisation that we use, or adds one that we do not use. `no optimisations` leaves all out. Samples of
the variant and of the unchanged model are made in turns, with both loaded. Seconds are medians. `unchanged s` belongs
to the unchanged model; a ratio above 1 means that the variant is slower. `peak GiB` is the most GPU memory that torch
held during a sample, with the variant's weights and without those of the unchanged model. A variant that does not fit
into memory beside it has a row that says so. With `--case` the settings, the picture and the noise are those of a
conformance case, and the result is also compared with its golden numbers.
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
from torch.nn.attention import SDPBackend, sdpa_kernel

import sgi2v.features
import sgi2v.model
from sgi2v.compiled import compile_blocks
from sgi2v.config import DType, KernelConfig, MemoryTier, ModelConfig
from sgi2v.errors import is_out_of_memory
from sgi2v.generate import Generation, generate
from sgi2v.model import VideoModel, load_model
from sgi2v.trial import moving_box
from tests.conformance import read_inputs, run_case

UNCHANGED, NO_OPTIMISATIONS = "unchanged", "no optimisations"


@dataclass(frozen=True)
class Variant:
    """How a model is loaded, changed and run."""

    disabled: tuple[str, ...] = ()
    """Functions of `sgi2v.model` that are disabled while the model is loaded."""
    kernels: KernelConfig = field(default_factory=KernelConfig)
    change: Callable[[VideoModel], object] | None = None
    """Applied to the loaded model."""
    running: Callable[[], Any] = nullcontext
    """Context manager around each sample."""
    memory: MemoryTier = MemoryTier.HIGH
    dtype: DType = "auto"


@contextmanager
def _full_passes() -> Iterator[None]:
    """Guided passes run to the end of the U-Net, not only to the last guided layer."""
    with mock.patch.object(sgi2v.features._Recorder, "add", lambda self, features: self.features.append(features)):
        yield


def _compile(model: VideoModel) -> None:
    compile_blocks(model.unet)


def _enable_weight_gradients(model: VideoModel) -> None:
    model.unet.requires_grad_(True)


@contextmanager
def _full_passes_without_fused_attention() -> Iterator[None]:
    with _full_passes(), sdpa_kernel(SDPBackend.MATH):
        yield


CROSS_ATTENTION = "replace_cross_attention"
UNFUSED = KernelConfig(spatial_attention="math", frame0_attention="math", temporal_attention="math")


def variants_on(device: str) -> dict[str, Variant]:
    """The variants for a device: those that leave an optimisation out, the one without any, those that add one."""
    left_out: dict[str, Variant] = {
        "cross-attention to one token in full": Variant(disabled=(CROSS_ATTENTION,)),
        "passes that go on after the last guided layer": Variant(running=_full_passes),
        "attention without a fused kernel": Variant(kernels=UNFUSED),
        "weights that want gradients": Variant(change=_enable_weight_gradients),
        "a pass for each branch of classifier-free guidance": Variant(kernels=KernelConfig(cfg_passes=2)),
    }
    added: dict[str, Variant] = {
        "medium memory tier": Variant(memory=MemoryTier.MEDIUM),
        "low memory tier": Variant(memory=MemoryTier.LOW),
        "channels last": Variant(kernels=KernelConfig(channels_last=True)),
        "compiled blocks": Variant(change=_compile),
        "compiled blocks, channels last": Variant(kernels=KernelConfig(channels_last=True), change=_compile),
        "temporal convolutions as matrix products": Variant(kernels=KernelConfig(temporal_convolution="matmul")),
        "packed temporal attention": Variant(kernels=KernelConfig(temporal_attention="packed")),
    }
    if device == "cpu":
        left_out["temporal convolutions in three dimensions"] = Variant(
            kernels=KernelConfig(temporal_convolution="conv3d")
        )
    else:
        added["weights in float32"] = Variant(dtype="float32")
        added["weights in float16"] = Variant(dtype="float16")
        added["temporal convolutions in two dimensions"] = Variant(kernels=KernelConfig(temporal_convolution="conv2d"))
        added["attention kernels of torch's choice"] = Variant(
            kernels=KernelConfig(spatial_attention="torch", frame0_attention="torch", temporal_attention="torch")
        )
    no_optimisations = Variant(
        disabled=(CROSS_ATTENTION,),
        kernels=UNFUSED.replace(temporal_convolution="conv3d", cfg_passes=2),
        change=_enable_weight_gradients,
        running=_full_passes_without_fused_attention,
    )
    return {**left_out, NO_OPTIMISATIONS: no_optimisations, **added}


def load(source: str, variant: Variant) -> VideoModel:
    """Load a new model for a variant."""
    with ExitStack() as stack:
        for name in variant.disabled:
            stack.enter_context(mock.patch.object(sgi2v.model, name))
        model = load_model(ModelConfig(source=source, dtype=variant.dtype, kernels=variant.kernels))
    if variant.change is not None:
        variant.change(model)
    return model


@dataclass
class Results:
    """Timings of the samples of one model, and the last sample's frames."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    frames: Any = None
    peak_bytes: int | None = None

    def add(self, generation: Generation, weights_beside: int) -> None:
        """Add a sample. weights_beside: bytes of the other model on the device."""
        self.seconds.append(generation.seconds)
        self.frames = generation.frames
        if generation.peak_gpu_bytes is not None:
            self.peak_bytes = generation.peak_gpu_bytes - weights_beside

    def median(self, *phases: str) -> float:
        """Median seconds of these phases together; of the whole sample if none is given."""
        return float(np.median([sum(seconds[phase] for phase in phases or seconds) for seconds in self.seconds]))


@dataclass(frozen=True)
class Bench:
    """Makes samples with the unchanged model and with its variants."""

    source: str
    base: VideoModel
    sample: dict[str, Any]
    samples: int
    case: Path | None

    def alone(self) -> list[str]:
        """Cells of the row of the unchanged model."""
        results = Results()
        self._make(self.base, Variant())
        for _ in range(self.samples):
            results.add(self._make(self.base, Variant()), weights_beside=0)
        return self._cells(results, results, self.base, Variant())

    def beside(self, variant: Variant) -> list[str]:
        """Cells of the row of a variant. Its samples and those of the unchanged model are made in turns."""
        model = load(self.source, variant)
        base, results = Results(), Results()
        self._make(model, variant)
        for _ in range(self.samples):
            base.add(self._make(self.base, Variant()), model.weights_bytes)
            results.add(self._make(model, variant), self.base.weights_bytes)
        return self._cells(results, base, model, variant)

    def _make(self, model: VideoModel, variant: Variant) -> Generation:
        with variant.running():
            return generate(model, **self.sample, memory=variant.memory)

    def _cells(self, results: Results, base: Results, model: VideoModel, variant: Variant) -> list[str]:
        phases = [results.median(phase) for phase in ("guide", "denoise", "decode")]
        sample_s, base_s = results.median(), base.median()
        seconds = [f"{value:.3f}" for value in (*phases, sample_s, base_s, sample_s / base_s)]
        peak = "" if results.peak_bytes is None else f"{results.peak_bytes / 2**30:.1f}"
        difference = int(np.abs(results.frames.astype(int) - base.frames).max())
        return [*seconds, peak, str(difference), *self._conformance(model, variant)]

    def _conformance(self, model: VideoModel, variant: Variant) -> list[str]:
        if self.case is None:
            return []
        with variant.running():
            worst = max(run_case(model, self.case), key=lambda stage: stage.largest / stage.tolerance)
        return [f"{worst.largest / worst.tolerance:.1%}, of {worst.stage}"]


def or_out_of_memory(measure: Callable[[], list[str]]) -> list[str]:
    """Cells of a row, or one cell that says that memory ran out."""
    try:
        return measure()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return ["out of memory"]


def free_memory() -> None:
    """Free the memory of models that are no longer used, compiled ones too."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def sample_of(model: VideoModel, case: Path | None) -> dict[str, Any]:
    """Arguments of `generate`: those of a conformance case, or a picture of noise and one box that crosses it."""
    if case is not None:
        return read_inputs(case, dict(np.load(case / "golden.npz", allow_pickle=False)))
    sampler, guidance = model.checkpoint.sampler(), model.checkpoint.guidance()
    image_HWC, tracks = moving_box(sampler)
    return {"image": image_HWC, "tracks": tracks, "sampler": sampler, "guidance": guidance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="checkpoint: a folder, an id, or embedded")
    parser.add_argument("--case", type=Path, help="folder of a conformance case")
    parser.add_argument("--samples", type=int, default=5, help="timed samples of each model; default: 5")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default: 1")
    variants = variants_on("cuda" if torch.cuda.is_available() else "cpu")
    names = f"variants to measure; default: all, which are {', '.join(variants)}"
    parser.add_argument("--only", nargs="*", choices=list(variants), default=list(variants), metavar="NAME", help=names)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load(options.model, Variant())
    bench = Bench(options.model, base, sample_of(base, options.case), options.samples, options.case)
    print(f"{options.model} on {base.device}, {base.dtype}, {options.samples} samples")
    header = ["variant", "guide s", "denoise s", "decode s", "sample s", f"{UNCHANGED} s", "ratio", "peak GiB"]
    header += ["largest difference of 255", *(["largest share of a tolerance"] if options.case else [])]
    print_row(header)
    print_row(["---"] * len(header))
    print_row([UNCHANGED, *bench.alone()])
    for name in options.only:
        print_row([name, *or_out_of_memory(partial(bench.beside, variants[name]))], len(header))
        free_memory()


def print_row(cells: list[str], columns: int = 0) -> None:
    """Print a row of a table at once. Missing cells are empty."""
    print(f"| {' | '.join(cells + [''] * (columns - len(cells)))} |", flush=True)


if __name__ == "__main__":
    main()
