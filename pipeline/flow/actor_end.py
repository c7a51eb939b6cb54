"""How the process of a stage's actor ends: at once, when Python has ended in it."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any


def exits_at_once(stage: type) -> type:
    """The stage for an actor whose process takes no part in what Ray's native code does at its exit.

    There it takes itself apart, and may wait for ever for a lock that is gone already: about one run in six left a
    process behind (Ray 2.60), with all that it held, be it a model on a GPU.
    """

    class InActor(stage):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            # before the libraries of the stage have theirs: those come last that were first
            atexit.register(_end)
            super().__init__(*arguments)

    InActor.__name__ = stage.__name__  # by which Ray names the process
    return InActor


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
