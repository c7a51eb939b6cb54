"""`sgi2v-batch` whose stages break on some rows: `python -m tests.chaos.poisoned run ...`.

The generator is the stand-in, everything else is real. A row's seed decides what happens while it is generated, or
which decoder crashes on it: that of images, or that of videos.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

import pipeline.flow.load
import pipeline.run
import sgi2v.video
from pipeline.cli.main import main
from pipeline.flow.commit import Commit
from pipeline.flow.load import Load
from pipeline.flow.row import InFlight
from tests.stand_in import StandIn, install

KILLS, HANGS, EATS = 666_001, 666_002, 666_003
"""Seeds of rows that kill their process, never end, or use up the memory."""
CRASHES_IMAGE, CRASHES_VIDEO = 666_004, 666_005
"""Seeds of rows on which the decoder of images, or that of videos, crashes."""
MEMORY = 2 << 40
"""Address space that a process of the memory eater may use, bytes."""


class Poisoned(StandIn):
    """The stand-in, which looks at the seed first."""

    def _sample(self, model: Any, image: Any, tracks: Any, sampler: Any, guidance: Any, seed: int) -> Any:
        if seed == KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == HANGS:
            time.sleep(3600)
        if seed == EATS:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
            hoard = []
            while True:
                hoard.append(np.empty(64 << 30, np.uint8))
        return super()._sample(model, image, tracks, sampler, guidance, seed)


def crash(*data: Any) -> NoReturn:
    """Crash this thread as a faulty decoder in C would."""
    ctypes.string_at(0)
    raise AssertionError("this process should be dead")


class PoisonedLoad(Load):
    """The stage with a decoder that crashes on some rows."""

    def _load(self, table: pa.Table) -> pa.Table:
        if table["seed"][0].as_py() == CRASHES_IMAGE:
            pipeline.flow.load.decode_picture = crash
        return super()._load(table)


class PoisonedCommit(Commit):
    """The stage with a decoder that crashes on some rows."""

    def _finish(self, table: pa.Table, state: InFlight) -> tuple[bytes, InFlight]:
        if state.seed == CRASHES_VIDEO:
            sgi2v.video.decode_mp4 = crash
        return super()._finish(table, state)


if __name__ == "__main__":
    install(Poisoned)
    pipeline.run.Load = PoisonedLoad  # type: ignore[misc]
    pipeline.run.Commit = PoisonedCommit  # type: ignore[misc]
    main()
