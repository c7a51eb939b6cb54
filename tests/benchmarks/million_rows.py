"""Time and driver memory for a large manifest: validation, plan, status, and a run that resumes at 99 %.

    python -m tests.benchmarks.million_rows FOLDER [--rows 1000000] [--todo 10000] [--only flow]

Each figure comes from a new process of the command line. The run uses a stand-in generator, and also reports rows per
second through the whole flow. FOLDER keeps the manifest and the output for the next call.
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
BATCH_ROWS = 50_000
SETTINGS = ("--model", "embedded", "--height", "64", "--width", "64", "--frames", "4", "--steps", "3")


def write_manifest(folder: Path, rows: int) -> Path:
    """Write a manifest of rows with one box and a path of 14 points, over 100 images. Returns its file."""
    file = folder / "manifest.parquet"
    if file.exists() and pq.read_metadata(file).num_rows == rows:
        return file
    for number in range(IMAGES):
        picture(number).save(folder / f"{number}.png")
    with pq.ParquetWriter(file, MANIFEST_SCHEMA) as writer:
        for first in range(0, rows, BATCH_ROWS):
            count = min(BATCH_ROWS, rows - first)
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
    """Write the sealed parts of a run that has committed all rows but the last `todo`, without their videos."""
    storage = Storage(str(output))
    if storage.keys("parts"):
        return
    rows = pq.ParquetFile(manifest)
    done = rows.metadata.num_rows - todo
    values = dict.fromkeys(RECORD_SCHEMA.names)
    values |= {"status": "committed", "attempts": 1, "fingerprint": "f" * 16, "guided": True, "num_boxes": 1}
    values |= {"num_frames": 4, "height": 64, "width": 64, "fps": 7, "loss_first": [0.5] * 16, "loss_last": [0.1] * 16}
    values |= {"objmc_px": 2.0, "static_objmc_px": 8.0, "control_gain": 0.75, "objmc_px_per_box": [2.0]}
    values |= {"dtype": "float32", "device": "cpu", "host": "host", "video_sha256": "0" * 64, "frames_sha256": "0" * 64}
    for number, batch in enumerate(rows.iter_batches(PART_ROWS)):
        committed = batch.slice(0, max(done - number * PART_ROWS, 0)).to_pylist()
        if not committed:
            break
        records = [
            {
                **values,
                "sample_id": row["sample_id"],
                "row_digest": row_digest(row),
                "file_name": f"videos/{row['sample_id']}.0123abcd.mp4",
                "finished_at": "2026-01-31T22:04:00",
            }
            for row in committed
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(records, RECORD_SCHEMA), sink, compression="zstd")
        storage.put(f"parts/000001-{number:04d}.parquet", sink.getvalue().to_pybytes())


def measure(name: str, *words: str | Path) -> None:
    """Run a command and print its time and peak memory; for a run also when it was planned, and rows per second."""
    start = time.monotonic()
    environment = {**os.environ, "SGI2V_STAND_IN_SECONDS": "0"}
    command = [sys.executable, "-m", "tests.stand_in", *map(str, words)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    planned: tuple[float, int] | None = None
    first_row_s, last_row_s, count = 0.0, 0.0, 0
    last_line = ""
    assert process.stderr is not None
    for last_line in process.stderr:
        now = time.monotonic() - start
        if re.search(r"rows: \d+ done before", last_line):
            planned = now, _resident_bytes(process.pid)
        elif number := re.match(r"\[(\d+)/", last_line):
            count, last_row_s = int(number[1]), now
            if count == 1:
                first_row_s = now
    stdout = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    print(
        f"{name}: exit {os.waitstatus_to_exitcode(status)}, {seconds:.1f} s, "
        f"driver's peak memory {usage.ru_maxrss / 2**20:.2f} GiB"
    )
    if planned is not None:
        planned_s, resident_bytes = planned
        print(f"  planned after {planned_s:.1f} s, with {resident_bytes / 2**30:.2f} GiB resident")
    if count > 1:
        rate = (count - 1) / (last_row_s - first_row_s)
        print(f"  {count} rows, {rate:.1f} rows/s; tables and end of the run {seconds - last_row_s:.1f} s")
    print("  " + (stdout.splitlines() or [last_line])[0][:150])


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder for the manifest and the output")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the manifest")
    parser.add_argument("--todo", type=int, default=10_000, help="rows that are not done yet")
    parser.add_argument("--flow-rows", type=int, help="rows that the run makes; default: all that are not done yet")
    parser.add_argument("--only", choices=("validate", "plan", "flow", "status"), action="append")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(folder, arguments.rows)
    output = folder / "out"
    run = ("run", manifest, "--output", output, *SETTINGS)
    steps = arguments.only or ("validate", "plan", "status", "flow")
    if not (output / "run.json").exists():
        measure("a run of one row, for its run.json", *run, "--limit", "1")
    write_done(manifest, output, arguments.todo)
    print(f"{arguments.rows} rows, manifest of {manifest.stat().st_size / 2**20:.0f} MiB")
    if "validate" in steps:
        measure("manifest validate", "manifest", "validate", manifest)
    if "plan" in steps:
        measure("run --dry-run", *run, "--dry-run")
    if "status" in steps:
        measure("status", "status", output)
    if "flow" in steps:
        done = arguments.rows - arguments.todo
        limit = () if arguments.flow_rows is None else ("--limit", str(done + arguments.flow_rows))
        measure(f"run, {done} rows done before", *run, *limit)


if __name__ == "__main__":
    main()
