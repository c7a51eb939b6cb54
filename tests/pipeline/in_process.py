"""`sgi2v-batch` in the process of a test, with a bare loop in place of Ray: for tests that are about neither."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pytest

import pipeline.run
import sgi2v.retry
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.flow.commit import Commit
from pipeline.flow.load import Load
from pipeline.flow.pools import Pool, Pools
from sgi2v.config import MemoryTier
from sgi2v.costs import Cost
from tests.pipeline.runs import TINY
from tests.stand_in import StandIn

ONE_ACTOR = Pool(1, 1, num_cpus=1.0)
PARTS = ("encode", "update", "step", "frame", *(f"update_{tier}" for tier in MemoryTier))
A_COST = Cost(10**8, dict.fromkeys(PARTS, 1e12), dict.fromkeys(PARTS, 10**9))
"""What a dry run here says of a sample."""


def here(*words: str | Path) -> CompletedProcess[str]:
    """Run `sgi2v-batch WORDS` in this process until it ends."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["sgi2v-batch", *map(str, words)])
        patch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)
        if "--dry-run" in words:  # counting takes half a minute for each combination of settings
            patch.setattr("pipeline.cli.dry_run.estimate_cost", lambda *_, **__: A_COST)
        before = signal.getsignal(signal.SIGTERM)
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            signal.signal(signal.SIGTERM, before)
    return CompletedProcess(list(map(str, words)), code, out.getvalue(), err.getvalue())


def run_tiny_here(manifest: str | Path, output: str | Path, *words: str | Path) -> CompletedProcess[str]:
    """`sgi2v-batch run` in this process with the tiny settings."""
    return here("run", manifest, "--output", output, *TINY, *words)


def bare_flow(
    config: RunConfig, todo: pa.Table, pools: Pools, epoch: int, *_: object
) -> Generator[dict[str, Any], None, None]:
    """The dataflow of a run without Ray: one row after the other, with a generator that takes no time."""
    load, generate, commit = Load(config), StandIn(config, pools.device), Commit(config, epoch)
    for number in range(todo.num_rows):
        yield from commit(generate(load(todo.slice(number, 1)))).to_pylist()


@contextmanager
def no_session(*_: object) -> Iterator[Pools]:
    """In place of `ray_session`."""
    yield Pools(ONE_ACTOR, ONE_ACTOR, ONE_ACTOR, "no Ray")


@contextmanager
def without_ray() -> Iterator[None]:
    """Let runs of this process use the bare loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.run, "ray_session", no_session)
        patch.setattr(pipeline.run, "flow", bare_flow)
        yield
