"""`sgi2v-batch` whose stages cannot bear some rows: `python -m tests.chaos.poisoned run ...`.

The generator is the stand-in, all else is real. A row's seed says what happens while it is generated, and which library
crashes over it before or after: the decoder of images, or that of videos.
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
"""Seeds: the process is killed, the sample never ends, memory is used up."""
CRASHES_IMAGE, CRASHES_VIDEO = 666_004, 666_005
"""Seeds: the decoder of images dies of a signal, the decoder of videos does."""
MEMORY = 2 << 40
"""More than the limit that the eater runs under, bytes of address space."""


class Poisoned(StandIn):
    """Looks at the seed first."""

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
    """What a decoder in C does on data that its authors have not thought of, in this very thread."""
    ctypes.string_at(0)
    raise AssertionError("this process has ended")


class PoisonedLoad(Load):
    """The stage as it is, with a decoder that crashes on some rows."""

    def _load(self, table: pa.Table) -> pa.Table:
        if table["seed"][0].as_py() == CRASHES_IMAGE:
            pipeline.flow.load.decode_image = crash
        return super()._load(table)


class PoisonedCommit(Commit):
    """The stage as it is, with a decoder that crashes on some rows."""

    def _finish(self, table: pa.Table, state: InFlight) -> tuple[bytes, InFlight]:
        if state.seed == CRASHES_VIDEO:
            sgi2v.video.decode_mp4 = crash
        return super()._finish(table, state)


if __name__ == "__main__":
    install(Poisoned)
    pipeline.run.Load = PoisonedLoad  # type: ignore[misc]
    pipeline.run.Commit = PoisonedCommit  # type: ignore[misc]
    main()
