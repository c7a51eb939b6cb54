"""The process of a stage's actor ends, whatever native code would do at its exit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.flow.actor_end import exits_at_once
from pipeline.flow.load import Load

ROOT = Path(__file__).parents[3]
SCRIPT = """
import atexit, ctypes
from pipeline.flow.actor_end import exits_at_once

class Stage:
    def __init__(self, word):
        atexit.register(print, "the library's end", flush=False)
        self.word = word

libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.pause, ctypes.c_void_p), None, None)  # as Ray's: never comes back
print({stage}("made").word)
"""


def output_of(stage: str, timeout_s: float) -> str:
    command = [sys.executable, "-c", SCRIPT.format(stage=stage)]
    return subprocess.run(command, check=True, capture_output=True, timeout=timeout_s, text=True, cwd=ROOT).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the exit handlers are glibc's")
def test_what_native_code_does_at_exit_does_not_keep_the_process() -> None:
    assert output_of("exits_at_once(Stage)", 60) == "made\nthe library's end\n"
    with pytest.raises(subprocess.TimeoutExpired):
        output_of("Stage", 3)


def test_a_stage_keeps_its_name() -> None:
    assert exits_at_once(Load).__name__ == "Load"
