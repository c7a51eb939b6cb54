"""What does the flow keep of the pace of a bare loop over `generate`, on the same rows?

    python -m tests.benchmarks.flow FOLDER [--workers 2] [--steps 8] [--rows 160] [--turn 10]
    python -m tests.benchmarks.flow FOLDER --waiting 5

A run and a loop, each alone on the machine in turns of some seconds: while one has it, every process of the other is
stopped, so that a clock that rises and falls over minutes is the same for both. Pace is samples by the time that a
side had the machine, between the first and the last few ends, so that neither the start nor the last rows, for which
there are too few to go round, are in it. The loop is as many processes as the run has workers, with the same threads,
and nothing but `generate` in them. With `--waiting` a sample only waits that long and takes no CPU, as if it were on a
GPU: then the pace of the loop is known, and only the run is made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from manifests.io import read_manifest
from pipeline.config import RunConfig, resolve
from pipeline.flow.load import Load
from pipeline.flow.row import InFlight, pixels_of, state_of
from pipeline.output.records import SampleRecord
from pipeline.run import Observer, run
from sgi2v.generate import generate
from sgi2v.model import load_model
from sgi2v.trajectory import BoxTracks
from tests import stand_in
from tools.tiny.training import in_processes

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


class Tree:
    """A process and what it starts; it can be stopped where it is, and go on."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._first = get_context("spawn").Process(target=target, args=arguments)
        self._first.start()
        assert self._first.pid is not None
        self._root = psutil.Process(self._first.pid)

    def processes(self) -> list[psutil.Process]:
        """Those that are there now."""
        return [self._root, *self._root.children(recursive=True)]

    def stop(self, known: Iterable[psutil.Process] = ()) -> None:
        """Stop `known`, which takes no time, and then what was started since they were listed."""
        _tell((*known, *self.processes()), psutil.Process.suspend)

    def go_on(self) -> None:
        """Let them go on."""
        _tell(self.processes(), psutil.Process.resume)

    def generating_cpu_s(self, workers: int) -> float:
        """CPU seconds of the busiest threads, each of another process: of those that generate, once they have begun."""
        busiest = []
        for each in self.processes():
            with suppress(psutil.NoSuchProcess):
                busiest.append(max(thread.user_time + thread.system_time for thread in each.threads()))
        return sum(sorted(busiest)[-workers:])

    def has_ended(self) -> bool:
        """Whether the first process has."""
        return not self._first.is_alive()

    def end(self) -> None:
        """End them all."""
        _tell(reversed(self.processes()), psutil.Process.kill)
        self._first.join()


def _tell(processes: Iterable[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            act(each)


class Side:
    """A run or a loop: its processes, the ends of its samples, and when it had the machine."""

    def __init__(self, target: Callable[..., None], config: RunConfig, rows: pa.Table, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._workers = folder, workers_of(config)
        self._edge = EDGE_ROUNDS * self._workers
        self._last = rows.num_rows - self._edge
        self._turns: list[tuple[float, float]] = []
        self._cpu_s: list[float] = []
        self.tree = Tree(target, config, rows, folder)

    def ends(self) -> list[float]:
        """When samples ended, sorted."""
        return noted_ends(self._folder)

    def is_near_its_end(self) -> bool:
        """Whether all samples but the last few have ended."""
        return len(self.ends()) >= self._last

    def warm_up(self) -> None:
        """Have the machine until the first few samples have ended."""
        while len(self.ends()) < self._edge:
            assert not self.tree.has_ended(), "it ended before it had begun: its error is above"
            time.sleep(0.5)
        self.tree.stop()

    def take_turn(self, seconds: float) -> None:
        """Have the machine for some seconds."""
        assert not self.tree.has_ended(), "it ended too early: its error is above, or give more rows"
        known, before = self.tree.processes(), self.tree.generating_cpu_s(self._workers)
        self.tree.go_on()
        begin = time.time()
        time.sleep(seconds)
        end = time.time()
        self.tree.stop(known)
        self._turns.append((begin, end))
        self._cpu_s.append(self.tree.generating_cpu_s(self._workers) - before)

    def pace(self) -> float:
        """Samples a second of its turns."""
        return pace_in_turns(self.ends()[: self._last], self._turns)

    def share(self) -> float:
        """Of a core that a worker's generating thread had in its turns."""
        return sum(self._cpu_s) / sum(end - begin for begin, end in self._turns) / self._workers


def pace_in_turns(ends: list[float], turns: list[tuple[float, float]]) -> float:
    """Samples a second of the turns' own time, from the first end in them to the last; what is outside does not count.

    ends: sorted. turns: when each began and ended, one after the other.
    """
    before = np.cumsum([0.0, *(end - begin for begin, end in turns)])
    at = [
        earlier + each - begin
        for earlier, (begin, end) in zip(before, turns, strict=False)
        for each in ends
        if begin <= each <= end
    ]
    return (len(at) - 1) / (at[-1] - at[0])


def workers_of(config: RunConfig) -> int:
    """As many as `--workers` says."""
    assert config.execution.workers is not None
    return config.execution.workers


def note_end(folder: Path, rank: int = 0) -> None:
    """A sample has ended now."""
    with (folder / f"ends-{rank}").open("a") as file:
        file.write(f"{time.time()}\n")


def noted_ends(folder: Path) -> list[float]:
    """When samples ended, sorted."""
    lines = [line for file in folder.glob("ends-*") for line in file.read_text().splitlines()]
    return sorted(float(line) for line in lines)


def loop(config: RunConfig, rows: pa.Table, folder: Path) -> None:
    """Make the samples in as many processes as there are workers."""
    in_processes(_loop, (config, rows, folder), workers_of(config))


def _loop(rank: int, processes: int, config: RunConfig, rows: pa.Table, folder: Path) -> None:
    torch.set_num_threads(config.execution.threads_per_worker)
    model, load, sampler = load_model(config.model), Load(config), config.sampler
    shape = (sampler.height, sampler.width, 3)
    loaded = [load(InFlight.begin(rows.slice(number, 1))) for number in range(rank, rows.num_rows, processes)]
    for table in loaded:
        state, image_HWC = state_of(table), pixels_of(table, "first_frame", shape)
        tracks = BoxTracks(np.array(state.boxes_NT4), sampler.height, sampler.width)
        generate(model, image_HWC, tracks, sampler, config.guidance, state.seed)
        note_end(folder, rank)


class _Ends(Observer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def finished(self, record: SampleRecord) -> None:
        assert record.status == "committed", record.message
        note_end(self._folder)


def flow(config: RunConfig, rows: pa.Table, folder: Path) -> None:
    """Make the samples in a run."""
    run(config, rows, observer=_Ends(folder))


def in_turns(config: RunConfig, rows: pa.Table, folder: Path, turn_s: float) -> tuple[Side, Side]:
    """The run and the loop, once all but the last few rows of one are made."""
    sides: list[Side] = []
    try:
        for target in (flow, loop):
            sides.append(Side(target, config, rows, folder / target.__name__))
            sides[-1].warm_up()
        while not any(side.is_near_its_end() for side in sides):
            for side in sides:
                side.take_turn(turn_s)
    finally:
        for side in sides:
            side.tree.end()
    return sides[0], sides[1]


def pace_of_waiting(config: RunConfig, rows: pa.Table, folder: Path, seconds: float) -> float:
    """Samples a second of a run whose samples only wait."""
    os.environ[stand_in.SECONDS] = str(seconds)
    stand_in.install()
    folder.mkdir(parents=True)
    run(config, rows, observer=_Ends(folder))
    edge = EDGE_ROUNDS * workers_of(config)
    ends = noted_ends(folder)[edge - 1 : rows.num_rows - edge]
    return pace_in_turns(ends, [(ends[0], ends[-1])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of the embedded checkpoint: how long a sample takes")
    parser.add_argument("--turn", type=float, default=10.0, metavar="SECONDS", help="that a side has the machine")
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
        found = pace_of_waiting(config, rows, folder / "ends", options.waiting)
        ideal = options.workers / options.waiting
        print(f"run {60 * found:.2f} samples a minute of {60 * ideal:.2f}: {found / ideal:.1%}")
        return
    ran, looped = in_turns(config, rows, folder, options.turn)
    for word, side in (("run", ran), ("loop", looped)):
        print(f"{word}: {60 * side.pace():.2f} samples a minute of its turns, {len(side.ends())} in all")
    print(f"the run keeps {ran.pace() / looped.pace():.1%} of the loop's pace")
    share, alone = ran.share(), looped.share()
    print(f"a worker's generating thread has {share:.1%} of a core, {alone:.1%} in the loop: {share / alone:.1%}")


if __name__ == "__main__":
    main()
