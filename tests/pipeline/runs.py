"""Images, manifests, and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from manifests.schema import MANIFEST_SCHEMA

SIDE = 64
FRAMES = 4
TINY = (
    *("--model", "embedded", "--height", str(SIDE), "--width", str(SIDE)),
    *("--frames", str(FRAMES), "--steps", "3", "--preset", "fast"),
)
"""Settings of a run whose samples take about a second each."""
RUN_TIMEOUT_S = 150.0
BOX = [8.0, 8.0, 40.0, 40.0]
PATH = [[24.0, 24.0], [40.0, 24.0]]


def picture(kind: int = 0, side: int = SIDE) -> Image.Image:
    """A picture with texture to track; each `kind` is different."""
    coarse = np.random.default_rng(kind).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def row(sample_id: str, **changes: Any) -> dict[str, Any]:
    """A valid row with one box that moves to the right; `changes` replace its values."""
    values = {"sample_id": sample_id, "image": f"{sample_id}.png", "boxes": [BOX], "trajectories": [PATH]}
    return {**values, "scales": None, "seed": None, **changes}


def write_rows(path: Path, rows: list[dict[str, Any]], **columns: pa.Array) -> Path:
    """Write a Parquet manifest of these rows, with more columns."""
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_good(folder: Path, count: int, name: str = "m.parquet") -> Path:
    """Write a manifest of valid rows s00, s01, ... with an image each."""
    ids = [f"s{number:02d}" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample_id in enumerate(ids):
        picture(number).save(folder / f"{sample_id}.png")
    return write_rows(folder / name, [row(sample_id) for sample_id in ids])


CLI = "pipeline.cli.main"
STAND_IN = "tests.stand_in"
"""The same command with a generator that takes no time, for tests of everything else."""


def command(*words: str | Path, module: str = CLI) -> list[str]:
    """The command line of `sgi2v-batch WORDS`."""
    return [sys.executable, "-m", module, *map(str, words)]


def cli(*words: str | Path, module: str = CLI, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `sgi2v-batch WORDS` until it ends."""
    return subprocess.run(
        command(*words, module=module),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def run_tiny(
    manifest: str | Path, output: str | Path, *words: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`sgi2v-batch run` with the tiny settings."""
    return cli("run", manifest, "--output", output, *TINY, *words, **environment)


def until(what: str, holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll until `holds` returns true; fail the test if it does not in time. what: for the message."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


@dataclass
class Driver:
    """A run in the background, in its own session, and the processes below it that `look` has seen."""

    process: subprocess.Popen[bytes]
    seen: set[psutil.Process] = field(default_factory=set)

    def look(self) -> None:
        """Note every process below the driver."""
        with suppress(psutil.NoSuchProcess):
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def alive(self) -> list[str]:
        """Command lines of the noted processes that still run."""
        names = []
        for process in self.seen:
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    names.append(" ".join(process.cmdline())[:80])
        return names


@contextmanager
def started(*words: str | Path, module: str = CLI, **options: Any) -> Iterator[Driver]:
    """`sgi2v-batch WORDS` in the background; at the end it and its children are killed."""
    driver = Driver(subprocess.Popen(command(*words, module=module), start_new_session=True, **options))
    try:
        yield driver
    finally:
        driver.look()
        driver.process.kill()
        driver.process.wait()
        for process in driver.seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def records(output: Path) -> dict[str, Mapping[str, Any]]:
    """Loose records of a local output by sample id; the last attempt's if a sample has several."""
    read = [(path.stem, json.loads(path.read_bytes())) for path in sorted((output / "records").rglob("[!.]*.json"))]
    return dict(sorted(read, key=lambda item: item[1]["attempts"]))


def table(output: Path, name: str = "metadata.parquet") -> pa.Table:
    return pq.read_table(output / name)
