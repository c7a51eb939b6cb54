"""`sgi2v-batch` whose model cannot bear some rows: `python -m tests.chaos.poisoned run ...`.

The command line is the real one. A row's seed says what happens while it is generated.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from typing import Any

import numpy as np

import pipeline.run
from pipeline.cli import main
from pipeline.stages import Generate

KILLS, HANGS, EATS = 666_001, 666_002, 666_003
"""Seeds: the process is killed, the sample never ends, memory is used up."""
MEMORY = 2 << 40
"""More than the limit that the eater runs under, bytes of address space."""


class Poisoned(Generate):
    """The stage as it is, around a `generate` that looks at the seed first."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        import sgi2v.generate

        generate = sgi2v.generate.generate

        def poisoned(model: Any, image: Any, tracks: Any, sampler: Any, guidance: Any, seed: int) -> Any:
            if seed == KILLS:
                os.kill(os.getpid(), signal.SIGKILL)
            if seed == HANGS:
                time.sleep(3600)
            if seed == EATS:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
                hoard = []
                while True:
                    hoard.append(np.empty(64 << 30, np.uint8))
            return generate(model, image, tracks, sampler, guidance, seed)

        sgi2v.generate.generate = poisoned


if __name__ == "__main__":
    pipeline.run.Generate = Poisoned  # type: ignore[misc]
    main()
