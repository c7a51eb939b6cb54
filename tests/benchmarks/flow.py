"""How fast is a run, compared with a bare loop over `generate` or with the run of another checkout?

    python -m tests.benchmarks.flow FOLDER [--rows 16] [--steps 8] [--workers 2] [--rounds 3]
    python -m tests.benchmarks.flow FOLDER --against OTHER_CHECKOUT

Both sides make the same samples with the embedded checkpoint. They take turns, whole run by whole run, so that a
machine whose speed changes over minutes treats both alike. The loop is as many processes as the run has workers, with
the same threads, and calls nothing but `generate`.

Columns: `first`, seconds from the command's start to its first finished sample; `total`, seconds to its end;
`per min`, samples a minute from the moment when every worker has finished a sample until workers run out of samples;
`CPU s`, user and system time of all its processes, which tells more than seconds where the machine is not idle.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.io import read_manifest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "manifests" / "demo" / "demo.parquet"
FINISHED = re.compile(r"\[\d+/\d+\] ")
"""How a line about a finished sample begins, in the output of both sides."""
CPU_POLL_S = 0.5


@dataclass(frozen=True)
class Timing:
    """One turn of one side."""

    first_s: float
    total_s: float
    per_minute: float
    cpu_s: float

    def line(self, name: str) -> str:
        return f"{name:8} {self.first_s:7.1f} {self.total_s:7.1f} {self.per_minute:8.2f} {self.cpu_s:7.1f}"


def rows_of_demo(count: int) -> pa.Table:
    """The demo's rows with boxes, repeated up to a count, with ids of their own and absolute image paths."""
    demo = read_manifest(str(DEMO))
    rows = [row for row in demo.to_pylist() if row["boxes"]]
    repeated = [
        {**row, "sample_id": f"{row['sample_id']}-{number}", "image": str(DEMO.parent / row["image"])}
        for number, row in enumerate((rows * count)[:count])
    ]
    return pa.Table.from_pylist(repeated, demo.schema)


def cpu_seconds(root: psutil.Process, seen: dict[psutil.Process, float]) -> float:
    """User and system time of a process tree; seen: what earlier calls saw, processes that have ended included."""
    with suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seen[process] = times.user + times.system
    return sum(seen.values())


def run_command(checkout: Path) -> list[str]:
    """The command line of the checkout's `sgi2v-batch run`."""
    scripts = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["sgi2v-batch"].partition(":")
    return [sys.executable, "-P", "-c", f"from {module} import {function}; {function}()", "run"]


def timed(command: Sequence[str], checkout: Path, folder: Path, workers: int) -> Timing:
    """Run a command of a checkout, in a folder, that writes a line per finished sample on standard error."""
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    seen: dict[psutil.Process, float] = {}

    def watch_cpu() -> None:
        while process.poll() is None:
            cpu_seconds(psutil.Process(process.pid), seen)
            time.sleep(CPU_POLL_S)

    threading.Thread(target=watch_cpu, daemon=True).start()
    assert process.stderr is not None
    lines = [(time.monotonic() - start, line) for line in process.stderr]
    assert process.wait() == 0, "".join(line for _, line in lines)
    ends = [at for at, line in lines if FINISHED.match(line)]
    steady = ends[workers - 1 : len(ends) - (workers - 1)]
    per_minute = 60 * (len(steady) - 1) / (steady[-1] - steady[0])
    return Timing(ends[0], time.monotonic() - start, per_minute, sum(seen.values()))


def loop(rank: int, processes: int, manifest: str, steps: int | None) -> None:
    """Make every `processes`-th sample of a manifest, without Ray and without an output."""
    import torch

    from pipeline.config import resolve
    from pipeline.flow.load import Load
    from pipeline.flow.row import InFlight, pixels_of, state_of, tracks_of
    from sgi2v.generate import generate
    from sgi2v.model import load_model

    flags: dict[str, Any] = {"model": {"source": "embedded"}, "sampler": {"steps": steps} if steps else {}}
    config, _ = resolve(manifest, None, {}, flags)
    sampler, rows = config.sampler, InFlight.begin(read_manifest(manifest))
    torch.set_num_threads(config.execution.threads_per_worker)
    model, load = load_model(config.model), Load(config)
    for number in range(rank, rows.num_rows, processes):
        row = load(rows.slice(number, 1))
        state, image_HWC = state_of(row), pixels_of(row, "first_frame", (sampler.height, sampler.width, 3))
        tracks = tracks_of(state, sampler)
        generate(model, image_HWC, tracks, sampler, config.guidance, state.seed)
        print(f"[{number + 1}/{rows.num_rows}] {state.sample_id}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="emptied first")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, help="sampling steps, which decide how long a sample takes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with its run, not with the loop")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    manifest = folder / "manifest.parquet"
    if options.loop:
        from tools.tiny.training import in_processes

        in_processes(loop, (str(manifest), options.steps), options.workers)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pq.write_table(rows_of_demo(options.rows), manifest)
    sizes = ["--workers", str(options.workers), *(["--steps", str(options.steps)] if options.steps else [])]
    arguments = [str(manifest), "--model", "embedded", *sizes, "--output"]
    sides = {"run": (ROOT, [*run_command(ROOT), *arguments])}
    if options.against:
        other = options.against.absolute()
        sides["against"] = (other, [*run_command(other), *arguments])
    else:
        sides["loop"] = (ROOT, [sys.executable, "-m", "tests.benchmarks.flow", *sizes, "--loop"])
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    print(f"{'side':8} {'first':>7} {'total':>7} {'per min':>8} {'CPU s':>7}")
    for number in range(options.rounds):
        for name, (checkout, words) in sides.items():
            place = folder if name == "loop" else folder / f"{name}-{number}"
            timing = timed([*words, str(place)], checkout, folder, options.workers)
            timings[name].append(timing)
            print(timing.line(name), flush=True)
    ours, theirs = (statistics.median(timing.per_minute for timing in timings[name]) for name in sides)
    print(f"median samples a minute: {ours:.2f} in the run, {theirs:.2f} in the other: {ours / theirs:.1%}")


if __name__ == "__main__":
    main()
