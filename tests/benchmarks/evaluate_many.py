"""How long `evaluate` takes on many videos, with Ray, killed in the middle once.

    python -m tests.benchmarks.evaluate_many FOLDER [--videos 1000]

Makes 20 tiny videos (4 frames of 48 x 64 px) in FOLDER, to which the rows refer in turn, starts `evaluate`, kills it
when it has written its second part, starts it again, and prints the seconds of both, the CPU seconds of the driver, and
whether the result is that of an undisturbed evaluation.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.pipeline.evaluate.videos import frames_of, row, write_rows, write_video
from tests.pipeline.runs import until

DISTINCT = 20
"""Videos that are made."""


def main() -> None:
    """Make the videos, and measure them twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=1000)
    given = parser.parse_args()
    videos = given.folder / "videos"
    for number in range(DISTINCT):
        if not (videos / f"s{number}.mp4").exists():
            write_video(videos, f"s{number}", frames_of(number % 4, number, num_frames=4)[:, 8:56, :64])
    write_rows(videos / "boxes.jsonl", [_row(number) for number in range(given.videos)])
    killed, whole = given.folder / "killed", given.folder / "whole"
    start = time.monotonic()
    process = subprocess.Popen(_command(videos, killed), start_new_session=True)
    parts = killed / "parts"
    until("two parts", lambda: len(list(parts.glob("*.parquet"))) >= 2 or process.poll() is not None, 3600)
    os.killpg(process.pid, 9)
    process.wait()
    print(f"killed after {time.monotonic() - start:.1f} s")
    _run(videos, killed)
    _run(videos, whole)
    first, second = (_values(folder) for folder in (killed, whole))
    print(f"{first.num_rows} of {given.videos} measured; the same as undisturbed: {first.equals(second)}")


def _row(number: int) -> dict[str, object]:
    box = [10, 12, 34, 36]
    centres = [[22 + (number % 4) * t, 24] for t in range(4)]
    named = f"s{number % DISTINCT}"
    place = {"boxes": [box], "trajectories": [centres], "image": f"{named}.png", "video": f"{named}.mp4"}
    return row(f"s{number}") | place


def _command(videos: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "sgi2v_batch", "evaluate", str(videos), "-o", str(output)]


def _run(videos: Path, output: Path) -> None:
    start, before = time.monotonic(), _cpu_seconds()
    subprocess.run(_command(videos, output), check=False)
    print(f"{output.name}: {time.monotonic() - start:.1f} s, {_cpu_seconds() - before:.1f} CPU seconds of the driver")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _values(output: Path) -> object:
    return pq.read_table(output / "metadata.parquet").drop_columns(["seconds_measure"])


if __name__ == "__main__":
    main()
