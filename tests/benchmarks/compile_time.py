"""How long `--compile` delays the first sample: on a machine's first start (cold) and on a later one (warm).

    python -m tests.benchmarks.compile_time [--model embedded] [--frames 14]

Two processes run one after the other and share a compile cache, which is empty before the first. The sample is the
shortest one that runs all blocks, with and without gradients. Each process first makes it without compiling, so that
the device's own start-up does not count. The time of the compiled sample, made once more, is printed and subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import torch

from sgi2v.compiled import compile_blocks
from sgi2v.estimate import choose_tier
from sgi2v.generate import generate
from sgi2v.model import load_model
from sgi2v.trial import moving_box, shortest


def first_and_second_s(source: str, frames: int | None, threads: int) -> tuple[float, float]:
    """Seconds of a compiled model's first sample, and of the same sample made again."""
    torch.set_num_threads(threads)
    model = load_model(source)
    sampler, guidance = shortest(model.checkpoint.sampler(), model.checkpoint.guidance())
    sampler = sampler.replace(num_frames=frames or sampler.num_frames)
    image_HWC, tracks = moving_box(sampler)
    tier = choose_tier("auto", model, sampler, guidance)

    def seconds() -> float:
        start = time.perf_counter()
        generate(model, image_HWC, tracks, sampler, guidance, memory=tier)
        return time.perf_counter() - start

    seconds()
    compile_blocks(model.unet)
    return seconds(), seconds()


def in_new_process(source: str, frames: int | None, threads: int, cache: str) -> tuple[float, float]:
    """`first_and_second_s` in a new process. cache: folder of the compile cache."""
    command = [sys.executable, "-m", "tests.benchmarks.compile_time", "--model", source, "--here"]
    command += ["--threads", str(threads)]
    command += ["--frames", str(frames)] if frames else []
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    first_s, second_s = json.loads(done.stdout.splitlines()[-1])
    return first_s, second_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="checkpoint: a folder, an id, or embedded")
    parser.add_argument("--frames", type=int, help="frames of the sample; default: the checkpoint's own")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(first_and_second_s(options.model, options.frames, options.threads)))
        return
    with tempfile.TemporaryDirectory() as cache:
        cold_s, sample_s = in_new_process(options.model, options.frames, options.threads, cache)
        warm_s, _ = in_new_process(options.model, options.frames, options.threads, cache)
    print(f"{options.model} on {'cuda' if torch.cuda.is_available() else 'cpu'}")
    print(f"first sample: cold {cold_s:.1f} s, warm {warm_s:.1f} s; a sample once compiled: {sample_s:.1f} s")
    cold_s, warm_s = cold_s - sample_s, warm_s - sample_s
    print(f"compilation alone: cold {cold_s:.1f} s, warm {warm_s:.1f} s, ratio {cold_s / warm_s:.1f}")


if __name__ == "__main__":
    main()
