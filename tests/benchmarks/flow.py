"""What does the flow keep of the pace of a bare loop over `generate`, on the same rows?

    python -m tests.benchmarks.flow FOLDER [--workers 2] [--steps 8] [--repeats 3]
    python -m tests.benchmarks.flow FOLDER --waiting 5

A loop, a run, the loop once more, and so on: a run's pace is held against those of the loops before and after it. The
loop is as many processes as the run has workers, with the same threads, and nothing but `generate` in them. With
`--waiting` a sample only waits that long and takes no CPU, as if it were on a GPU: then the pace of the loop is known,
and only the run is made. Pace is counted between the first and the last few ends, so that neither the start nor the
last rows, for which there are too few to go round, are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from manifests.io import read_manifest
from pipeline.config import RunConfig, resolve
from pipeline.in_flight import InFlight, pixels_of, state_of
from pipeline.records import SampleRecord
from pipeline.run import Observer, run
from pipeline.stages import Load
from sgi2v.generate import generate
from sgi2v.model import load_model
from sgi2v.sampling import PHASES
from sgi2v.tiny.training import in_processes
from sgi2v.trajectory import BoxTracks
from tests import stand_in

DEMO = Path(__file__).parents[2] / "manifests" / "demo" / "demo.parquet"
EDGE_ROUNDS = 2
"""Rows a worker at each end that do not count."""


def rows_of_demo(count: int) -> pa.Table:
    """As many manifest rows, the demo's over and over: pictures by absolute paths, ids and so noise of their own."""
    demo = read_manifest(str(DEMO))
    rows = [row for row in demo.to_pylist() if row["boxes"]]
    chosen = [rows[number % len(rows)] for number in range(count)]
    for number, row in enumerate(chosen):
        chosen[number] = {**row, "sample_id": f"{row['sample_id']}-{number}", "image": str(DEMO.parent / row["image"])}
    return pa.Table.from_pylist(chosen, demo.schema)


@dataclass(frozen=True)
class Leg:
    """One loop or one run."""

    pace: float
    """Samples a second, between the first and the last few ends."""
    seconds: float
    """Of the generation of a sample, mean."""
    share: float
    """Of a core that a worker's generating thread had: unlike pace it does not change with the clock of the cores."""


def pace(ends: list[float], workers: int) -> float:
    """Samples a second between the first and the last few ends."""
    edge = EDGE_ROUNDS * workers
    counted = sorted(ends)[edge - 1 : len(ends) - edge]
    return (len(counted) - 1) / (counted[-1] - counted[0])


def _loop(rank: int, processes: int, config: RunConfig, rows: pa.Table, folder: Path) -> None:
    torch.set_num_threads(config.execution.threads_per_worker)
    model, load, sampler = load_model(config.model), Load(config), config.sampler
    shape = (sampler.height, sampler.width, 3)
    loaded = [load(InFlight.begin(rows.slice(number, 1))) for number in range(rank, rows.num_rows, processes)]
    ends = []
    start, start_cpu = time.time(), time.thread_time()
    for table in loaded:
        state, image_HWC = state_of(table), pixels_of(table, "first_frame", shape)
        tracks = BoxTracks(np.array(state.boxes_NT4), sampler.height, sampler.width)
        made = generate(model, image_HWC, tracks, sampler, config.guidance, state.seed)
        ends.append((time.time(), sum(made.seconds.values())))
    share = (time.thread_time() - start_cpu) / (time.time() - start)
    (folder / f"{rank}.json").write_text(json.dumps([ends, share]))


def bare_loop(config: RunConfig, rows: pa.Table, workers: int, folder: Path) -> Leg:
    """Make the samples in as many processes as there are workers."""
    folder.mkdir(parents=True)
    in_processes(_loop, (config, rows, folder), workers)
    told = [json.loads(file.read_text()) for file in folder.iterdir()]
    ends = [end for each, _ in told for end in each]
    seconds = sum(seconds for _, seconds in ends) / len(ends)
    return Leg(pace([at for at, _ in ends], workers), seconds, sum(share for _, share in told) / len(told))


class _Ends(Observer):
    """When samples were finished, as the driver hears of it, and what their generation took."""

    def __init__(self, rows: int, workers: int) -> None:
        self.at: list[float] = []
        self.seconds: list[float] = []
        self.cpu: list[tuple[float, float]] = []
        """When, and CPU seconds of the generating threads until then: at both edges."""
        self._edges = (EDGE_ROUNDS * workers, rows - EDGE_ROUNDS * workers)

    def finished(self, record: SampleRecord) -> None:
        assert record.status == "committed", record.message
        self.at.append(time.time())
        self.seconds.append(sum(getattr(record, f"seconds_{phase}") for phase in PHASES))
        if len(self.at) in self._edges:
            self.cpu.append((self.at[-1], _generating_cpu_s()))


def _generating_cpu_s() -> float:
    """CPU seconds of the busiest thread of each worker of this process's run."""
    seconds = 0.0
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "MapBatches(Generate)" in " ".join(each.cmdline()):
                seconds += max(thread.user_time + thread.system_time for thread in each.threads())
    return seconds


def of_run(config: RunConfig, rows: pa.Table, workers: int) -> Leg:
    """Make the samples in a run."""
    shutil.rmtree(config.output, ignore_errors=True)
    ends = _Ends(rows.num_rows, workers)
    run(config, rows, observer=ends)
    (first, cpu_before), (last, cpu_after) = ends.cpu
    share = (cpu_after - cpu_before) / (last - first) / workers
    return Leg(pace(ends.at, workers), sum(ends.seconds) / len(ends.seconds), share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of the embedded checkpoint: how long a sample takes")
    parser.add_argument("--repeats", type=int, default=1, help="runs; there is one loop more")
    parser.add_argument("--waiting", type=float, metavar="SECONDS", help="samples that wait and do not work")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = rows_of_demo(options.rows)
    manifest = folder / "manifest.parquet"
    pq.write_table(rows, manifest)
    flags: dict[str, dict[str, Any]] = {
        "model": {"source": "embedded"},
        "run": {"workers": options.workers},
        "sampler": {"steps": options.steps},
    }
    config, _ = resolve(str(manifest), str(folder / "out"), {}, flags)
    if options.waiting:
        os.environ[stand_in.SECONDS] = str(options.waiting)
        stand_in.install()
        found = of_run(config, rows, options.workers).pace
        ideal = options.workers / options.waiting
        print(f"run {60 * found:.2f} samples a minute of {60 * ideal:.2f}: {found / ideal:.1%}")
        return
    loops = [bare_loop(config, rows, options.workers, folder / "loop-0")]
    runs, kept = [], []
    for number in range(options.repeats):
        runs.append(of_run(config, rows, options.workers))
        loops.append(bare_loop(config, rows, options.workers, folder / f"loop-{number + 1}"))
        kept.append(2 * runs[-1].pace / (loops[-2].pace + loops[-1].pace))
        around = " and ".join(f"{60 * each.pace:.2f}" for each in loops[-2:])
        print(f"run {60 * runs[-1].pace:.2f} samples a minute, loop {around}: {kept[-1]:.1%}", flush=True)
    busy = np.mean([each.pace * each.seconds / options.workers for each in runs])
    looped, shared = (float(np.mean([each.share for each in legs])) for legs in (loops, runs))
    print(f"the run keeps {np.mean(kept):.1%} of the loop's pace, of samples that take {loops[0].seconds:.2f} s there")
    print(f"a worker's generating thread has {shared:.1%} of a core, {looped:.1%} in the loop: {shared / looped:.1%}")
    print(f"the run's workers generate {busy:.1%} of the time")


if __name__ == "__main__":
    main()
