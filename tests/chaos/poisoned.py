"""`sgi2v-batch` whose generator cannot bear some rows: `python -m tests.chaos.poisoned run ...`.

The generator is the stand-in, all else is real. A row's seed says what happens while it is generated.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from typing import Any

import numpy as np

from pipeline.cli import main
from sgi2v.generate import Generation
from tests.stand_in import StandIn, install

KILLS, HANGS, EATS = 666_001, 666_002, 666_003
"""Seeds: the process is killed, the sample never ends, memory is used up."""
MEMORY = 2 << 40
"""More than the limit that the eater runs under, bytes of address space."""


class Poisoned(StandIn):
    """Looks at the seed first."""

    @staticmethod
    def stand_in(
        model: Any, image: Any, tracks: Any, sampler: Any, guidance: Any, seed: int, memory: Any
    ) -> Generation:
        if seed == KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == HANGS:
            time.sleep(3600)
        if seed == EATS:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
            hoard = []
            while True:
                hoard.append(np.empty(64 << 30, np.uint8))
        return StandIn.stand_in(model, image, tracks, sampler, guidance, seed, memory)


if __name__ == "__main__":
    install(Poisoned)
    main()
