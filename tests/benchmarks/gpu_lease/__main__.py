"""Everything that only a GPU can tell, in the minutes of one lease, the most valuable first.

    python -m tests.benchmarks.gpu_lease FOLDER [--minutes 9]            full-size SVD on a GPU
    python -m tests.benchmarks.gpu_lease FOLDER --tiny --device cpu      the same code with the golden checkpoint

It writes FOLDER/NAME.json, where NAME is the device's, again after every figure: a lease that is cut short leaves what
was found by then. The embedded checkpoint's further training is in FOLDER/further. FOLDER may have earlier results.
Files for `tests/benchmarks/gpu/` are made this way.

1. checks    the golden checkpoint: conformance in three types, memory tiers, out-of-memory recovery, a compiled block
2. units     full-size SVD with random weights at the paper's settings: one update, step and decode of every variant
3. authors   the authors' code beside ours, unit by unit (only with --authors)
4. samples   two whole samples, by the fastest variant and as it is
5. further   more training of the embedded checkpoint: `python -m tools.tiny further`

It needs torch, transformers, accelerate, NumPy, diffusers and pydantic, and neither Ray nor a video library. To a
machine without a network that has the first four, these go as wheels: diffusers, pydantic, pydantic_core,
annotated_types, typing_inspection.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from sgi2v.config import GuidanceConfig, SamplerConfig
from sgi2v.model import quiet_libraries
from tests.benchmarks.full_size import write_configs, write_weights
from tests.benchmarks.gpu_lease import authors, checks, further, samples, units
from tests.benchmarks.gpu_lease.lease import Figures, Lease, Part, RunningPart, finish, release_memory, say
from tests.benchmarks.gpu_lease.table import describe
from tests.benchmarks.gpu_lease.units import Bench, Work

TINY_SAMPLER = SamplerConfig(height=64, width=64, num_frames=2, steps=2)
TINY_GUIDANCE = GuidanceConfig(guided_steps=(0,), iterations=2)
PARTS = ("checks", "units", "authors", "samples", "further")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything; default: 9")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="the golden checkpoint in place of full-size SVD")
    parser.add_argument("--authors", type=Path, metavar="DIR", help="checkout of the authors' repository")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run; default: all")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU; default: 1")
    options = parser.parse_args()
    if options.device == "cpu":
        if not options.tiny:
            parser.error("full-size SVD takes hours on a CPU: add --tiny")
        torch.set_num_threads(options.threads)
    quiet_libraries()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as weights:
        lease = Lease(options.folder / f"{slug(options)}.json", header(options), options.minutes)
        lease.run(parts(options, Path(weights)))
    say("\n".join([*describe(lease.report), f"written to {lease.file}"]))
    finish(0)


def parts(options: argparse.Namespace, weights: Path) -> list[Part]:
    """The parts to run, in order of value. weights: folder for full-size weights."""
    device, on_gpu, folder = torch.device(options.device), options.device == "cuda", options.folder
    if options.tiny:
        work = Work(checks.CHECKPOINT, TINY_SAMPLER, TINY_GUIDANCE, device)
    else:
        work = Work(str(weights), SamplerConfig(), GuidanceConfig(), device)
    bench = Bench(work)
    wanted = set(options.parts)
    if options.authors is None:
        wanted.discard("authors")
    if not options.tiny and wanted & {"units", "authors", "samples"}:
        wanted.add("weights")
    all_parts = [
        Part("checks", partial(checks.run, device=device), share=0.15, least_s=10),
        Part("weights", partial(write_random_weights, folder=weights, device=options.device), share=0.1, least_s=10),
        Part("units", partial(units.run, bench=bench), share=0.4, least_s=20),
        Part("authors", partial(authors.run, work=work, checkout=options.authors), share=0.08, least_s=20),
        Part("samples", partial(samples.run, bench=bench), share=0.17, least_s=20),
        Part("further", partial(further.run, folder=folder, on_gpu=on_gpu), share=0.15, least_s=90 if on_gpu else 45),
    ]
    return [part for part in all_parts if part.name in wanted]


def write_random_weights(part: RunningPart, folder: Path, device: str) -> None:
    """Write full-size weights, which the next parts load."""

    def write() -> Figures:
        write_weights(write_configs(folder), device)
        return {"bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors"))}

    part.figure("random weights", write)
    release_memory()


def header(options: argparse.Namespace) -> Figures:
    """What the figures belong to: the device, the versions, the sizes."""
    packages = ("torch", "diffusers", "transformers", "accelerate", "numpy", "safetensors", "pydantic")
    header: Figures = {
        "device": device_name(options),
        "sizes": "golden checkpoint" if options.tiny else "full-size SVD, random weights",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        header["capability"] = f"{properties.major}.{properties.minor}"
        header["memory_bytes"] = properties.total_memory
        header["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    else:
        header["threads"] = options.threads
    return header


def device_name(options: argparse.Namespace) -> str:
    """The GPU's name, or the kind of CPU."""
    return torch.cuda.get_device_name() if options.device == "cuda" else f"CPU {platform.machine()}"


def slug(options: argparse.Namespace) -> str:
    """The device's name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(options).lower()).strip("-")


def _commit() -> str | None:
    """The checkout's commit; None where git does not tell."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    main()
