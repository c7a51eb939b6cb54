"""What is left of the minutes: more training for the embedded checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.gpu_lease.lease import Figures, RunningPart
from tools.tiny.__main__ import FURTHER, NUM_LINES
from tools.tiny.training import LOG_FILE, WEIGHTS_FILE

END_S = 30.0
"""Seconds in which the training's processes start and end."""
LAST_S = 3.0
"""Seconds in which its log is read."""
CPU_LINES = 4


def run(part: RunningPart, folder: Path, on_gpu: bool) -> None:
    """Train in `folder`/further, and say what its log says."""
    part.figure("training", lambda: _train(folder, on_gpu, part.left_s))


def _train(folder: Path, on_gpu: bool, seconds: float) -> Figures:
    # the encoded scenes are too large to be kept with the results
    with tempfile.TemporaryDirectory() as latents:
        command = [sys.executable, "-m", "tools.tiny", "further", str(folder), "--latents", latents]
        command += ["--minutes", str(max(0.1, seconds - END_S) / 60)]
        command += ["--lines", str(NUM_LINES)] if on_gpu else ["--lines", str(CPU_LINES), "--processes", "1"]
        try:
            subprocess.run(command, check=True, timeout=max(1.0, seconds - LAST_S))
            ended = "by itself"
        except subprocess.TimeoutExpired:
            ended = "by the end of the minutes"
    training = folder / FURTHER
    file = training / LOG_FILE
    log = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else [None]
    size = (training / WEIGHTS_FILE).stat().st_size
    return {"ended": ended, "first": log[0], "last": log[-1], "weights_bytes": size}
