"""What one row costs the driver, the ledger and the store, each measured alone: the numbers of docs/scale.md.

    python -m tests.benchmarks.scale FOLDER [--rows 100000]

CPU seconds, bytes and counts of calls, which a loaded machine does not change; nothing is generated. `flow` of
`tests.benchmarks.million_rows` measures the rows a second of the whole dataflow with a stand-in generator.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from pipeline.flow.attempts import Ledger
from pipeline.flow.notes import Note
from pipeline.output.catalog import Catalog
from pipeline.output.lease import acquire, check_epoch
from pipeline.output.log import RunLog
from pipeline.output.records import SampleRecord, commit, video_key
from pipeline.output.storage import Storage
from pipeline.output.tables import write_tables
from tests.pipeline.output.outputs import committed

VIDEO = bytes(1000)
WORKERS = 1000
CALLS = ("put", "put_new", "get", "keys", "delete", "delete_many")


def record(number: int) -> SampleRecord:
    """A record with as many values as a real one."""
    sample_id = f"sample-{number:08d}"
    made: SampleRecord = committed(sample_id)
    losses: list[float | None] = [0.5] * 16
    return replace(made, file_name=video_key(sample_id, "0123abcd"), loss_first=losses, loss_last=losses)


@dataclass
class Cost:
    """CPU seconds of this process and calls of a store in a block."""

    cpu_s: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)


@contextmanager
def costs(storage: Storage | None = None) -> Iterator[Cost]:
    """Measure a block. storage: counts its calls."""
    cost = Cost()
    originals: dict[str, Any] = {}
    for name in CALLS if storage is not None else ():
        originals[name] = getattr(storage, name)

        def counted(*arguments: Any, name: str = name, **options: Any) -> Any:
            cost.calls[name] += 1
            return originals[name](*arguments, **options)

        setattr(storage, name, counted)
    start = time.process_time()
    try:
        yield cost
    finally:
        cost.cpu_s = time.process_time() - start
        for name, original in originals.items():
            setattr(storage, name, original)


def show(what: str, value: float, unit: str) -> None:
    """Print one line."""
    print(f"{what:<58} {value:>10.4g} {unit}", flush=True)


def measure_ledger(calls: int) -> None:
    """CPU of a ledger call, without Ray's part and with it."""
    ledger = Ledger(set, 4 * WORKERS)
    with costs() as cost:
        for number in range(calls):
            for stage in ("load", "generate", "commit"):
                ledger.start(stage, f"s{number}", "n")
                ledger.finish(stage, f"s{number}")
            ledger.admit(f"s{number}", "n")
            ledger.release(f"s{number}")
    show("ledger: CPU of a row's 8 calls, without Ray", cost.cpu_s / calls * 1e6, "us")

    import ray

    from pipeline.flow.attempts import LedgerActor

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actor = LedgerActor(4 * WORKERS, "")
    actor.admit("s")
    process = next(each for each in psutil.process_iter() if each.name().startswith("ray::Ledger"))
    before, wall = sum(process.cpu_times()[:2]), time.monotonic()
    for number in range(calls):
        actor.note(Note(f"host/{number % WORKERS}", 1.0, "s", 3, 20))
        if number % 100 == 99:
            actor.admit("s")  # waits until the notes have arrived
    actor.admit("s")
    used = sum(process.cpu_times()[:2]) - before
    show("ledger: CPU of one call through Ray", used / calls * 1e6, "us")
    show("ledger: calls a second of one client, this machine as it is", calls / (time.monotonic() - wall), "/s")
    ray.shutdown()


def measure_commit(storage: Storage, epoch: int, rows: int) -> None:
    """Calls of the store for one sample."""
    with costs(storage) as cost:
        for number in range(rows):
            commit(storage, record(number), VIDEO, lambda: check_epoch(storage, epoch))
    for name, calls in sorted(cost.calls.items()):
        show(f"commit: `{name}` of the store, a sample", calls / rows, "calls")


def size(storage: Storage, place: str) -> int:
    """Bytes of a file, or of all files of a folder, of an output on this machine's disk."""
    root = Path(storage.root) / place
    return sum(each.stat().st_size for each in ([root] if root.is_file() else root.rglob("*.*")))


def measure_driver(storage: Storage, epoch: int, rows: int) -> None:
    """What the driver does for each finished sample; then one renewal of the tables."""
    lines = [record(number).to_json() for number in range(rows)]
    show("record: JSON", sum(map(len, lines)) / rows, "bytes")
    resident = psutil.Process().memory_info().rss
    catalog = Catalog(storage)
    with costs(storage) as cost, RunLog(storage, epoch) as log:
        for line in lines:
            made = SampleRecord.from_json(line)
            catalog.add(made)
            log.write("sample_committed", sample_id=made.sample_id, file_name=made.file_name, attempts=1)
            catalog.seal_if_due(epoch)
    show("driver: CPU to take in a finished row", cost.cpu_s / rows * 1e6, "us")
    for name, calls in sorted(cost.calls.items()):
        show(f"driver: `{name}` of the store, a million rows", calls / rows * 1e6, "calls")
    del lines
    show("driver: memory of the catalog, a row", (psutil.Process().memory_info().rss - resident) / rows, "bytes")
    show("log: bytes a row", size(storage, "logs") / rows, "bytes")
    show("parts: bytes a row", size(storage, "parts") / rows, "bytes")
    manifest = pa.table({"sample_id": catalog.index["sample_id"], "image": ["a.png"] * catalog.index.num_rows})
    with costs() as cost:
        write_tables(catalog, manifest, epoch)
    show("tables: CPU of one renewal, a row", cost.cpu_s / rows * 1e6, "us")
    show("tables: bytes a row", size(storage, "metadata.parquet") / rows, "bytes")
    with costs() as cost:
        Catalog(storage)
    show("start of a run: CPU to read the catalog, a row", cost.cpu_s / rows * 1e6, "us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="empty folder for an output")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the driver's part")
    arguments = parser.parse_args()
    print(f"{arguments.rows} rows, {os.cpu_count()} CPUs")
    for name, measure, rows in (("commit", measure_commit, 500), ("driver", measure_driver, arguments.rows)):
        storage = Storage(str(arguments.folder / name))
        with acquire(storage) as lease:
            measure(storage, lease.epoch, rows)
    measure_ledger(5000)


if __name__ == "__main__":
    main()
