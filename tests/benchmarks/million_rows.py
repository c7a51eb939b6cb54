"""A large manifest: validate it, plan it, go on with it at 99 % done; seconds, and the driver's peak memory.

    python -m tests.benchmarks.million_rows FOLDER [--rows 1000000] [--todo 10000] [--only flow]

Every figure comes from a process of its own that runs the command line; the last one also says how many rows a
second go through the whole flow with a stand-in generator. FOLDER keeps the manifest and the output for a next call.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.schema import MANIFEST_SCHEMA, row_digest
from pipeline.output.catalog import PART_ROWS
from pipeline.output.records import RECORD_SCHEMA
from pipeline.output.storage import Storage
from tests.pipeline.runs import picture

IMAGES = 100
POINTS = 14
AT_ONCE = 50_000
SETTINGS = ("--model", "embedded", "--height", "64", "--width", "64", "--frames", "4", "--steps", "3")


def write_manifest(folder: Path, rows: int) -> Path:
    """Rows of one box and a path of 14 points, over 100 images."""
    file = folder / "manifest.parquet"
    if file.exists() and pq.read_metadata(file).num_rows == rows:
        return file
    for number in range(IMAGES):
        picture(number).save(folder / f"{number}.png")
    with pq.ParquetWriter(file, MANIFEST_SCHEMA) as writer:
        for first in range(0, rows, AT_ONCE):
            count = min(AT_ONCE, rows - first)
            points = np.random.default_rng(first).uniform(8, 56, (count, 1, POINTS, 2)).round(2)
            columns = {
                "sample_id": [f"sample-{first + number:08d}" for number in range(count)],
                "image": [f"{(first + number) % IMAGES}.png" for number in range(count)],
                "boxes": [[[16.0, 16.0, 40.0, 40.0]]] * count,
                "trajectories": points.tolist(),
                "scales": [None] * count,
                "seed": [None] * count,
            }
            writer.write_table(pa.table(columns, schema=MANIFEST_SCHEMA))
    return file


def write_done(manifest: Path, output: Path, todo: int) -> None:
    """The sealed parts of a run that has all rows but the last `todo` behind it. Their videos are not there."""
    storage = Storage(str(output))
    if storage.keys("parts"):
        return
    rows = pq.ParquetFile(manifest)
    left = rows.metadata.num_rows - todo
    values = dict.fromkeys(RECORD_SCHEMA.names)
    values |= {"status": "committed", "attempts": 1, "fingerprint": "f" * 16, "guided": True, "num_boxes": 1}
    values |= {"num_frames": 4, "height": 64, "width": 64, "fps": 7, "loss_first": [0.5] * 16, "loss_last": [0.1] * 16}
    values |= {"objmc_px": 2.0, "static_objmc_px": 8.0, "control_gain": 0.75, "objmc_px_per_box": [2.0]}
    values |= {"dtype": "float32", "device": "cpu", "host": "host", "video_sha256": "0" * 64, "frames_sha256": "0" * 64}
    for number, batch in enumerate(rows.iter_batches(PART_ROWS)):
        taken = batch.slice(0, max(left - number * PART_ROWS, 0)).to_pylist()
        if not taken:
            break
        records = [
            {
                **values,
                "sample_id": row["sample_id"],
                "row_digest": row_digest(row),
                "file_name": f"videos/{row['sample_id']}.0123abcd.mp4",
                "finished_at": "2026-01-31T22:04:00",
            }
            for row in taken
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(records, RECORD_SCHEMA), sink, compression="zstd")
        storage.put(f"parts/000001-{number:04d}.parquet", sink.getvalue().to_pybytes())


def measured(name: str, *words: str | Path) -> None:
    """Run a command to its end and print what it took; of a run also when it had its plan, and its pace."""
    start = time.monotonic()
    environment = {**os.environ, "SGI2V_STAND_IN_SECONDS": "0"}
    command = [sys.executable, "-m", "tests.stand_in", *map(str, words)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    told: dict[str, tuple[float, int]] = {}
    last = ""
    assert process.stderr is not None
    for line in process.stderr:
        last = line
        if re.search(r"rows: \d+ done before|worker|\[\d+/", line):
            now = time.monotonic() - start
            number = re.match(r"\[(\d+)/", line)
            told["last" if number else "plan" if "done before" in line else "workers"] = (now, _peak(process.pid))
            if number and int(number[1]) == 1:
                told["first"] = (now, 1)
            if number:
                told["count"] = (now, int(number[1]))
    stdout = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    print(
        f"{name}: exit {os.waitstatus_to_exitcode(status)}, {seconds:.1f} s, "
        f"driver's peak {usage.ru_maxrss / 2**20:.2f} GiB"
    )
    if "plan" in told:
        print(f"  planned after {told['plan'][0]:.1f} s, resident then {told['plan'][1] / 2**30:.2f} GiB")
    if "count" in told and told["count"][1] > 1:
        (first, _), (end, count) = told["first"], told["count"]
        print(f"  {count} rows, {(count - 1) / (end - first):.1f} rows/s; tables and end {seconds - end:.1f} s")
    print("  " + (stdout.splitlines() or [last])[0][:150])


def _peak(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--todo", type=int, default=10_000)
    parser.add_argument("--flow-rows", type=int, help="of those left, how many go through the flow; all unless given")
    parser.add_argument("--only", choices=("validate", "plan", "flow", "status"), action="append")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(folder, arguments.rows)
    output = folder / "out"
    run = ("run", manifest, "--output", output, *SETTINGS)
    steps = arguments.only or ("validate", "plan", "status", "flow")
    if not (output / "run.json").exists():
        measured("a run of one row, for its run.json", *run, "--limit", "1")
    write_done(manifest, output, arguments.todo)
    print(f"{arguments.rows} rows, manifest of {manifest.stat().st_size / 2**20:.0f} MiB")
    if "validate" in steps:
        measured("manifest validate", "manifest", "validate", manifest)
    if "plan" in steps:
        measured("run --dry-run", *run, "--dry-run")
    if "status" in steps:
        measured("status", "status", output)
    if "flow" in steps:
        done = arguments.rows - arguments.todo
        limit = () if arguments.flow_rows is None else ("--limit", str(done + arguments.flow_rows))
        measured(f"run, {done} rows done before", *run, *limit)


if __name__ == "__main__":
    main()
