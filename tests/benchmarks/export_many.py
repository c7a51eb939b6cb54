"""Export many samples to a real S3 server, undisturbed and killed twice, and compare every byte.

Usage: python -m tests.benchmarks.export_many [--samples 10000] [--format webdataset] [--output-on-s3]
The samples are tiny real videos with labels of two boxes, as tests/pipeline/export/stand_in_output.py makes them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.pipeline.conftest import S3Process
from tests.pipeline.export.stand_in_output import ids, make_output
from tests.pipeline.runs import command, until

BUCKET = "export-bench"


def start(
    source: str, target: str, options: argparse.Namespace, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    words = ["--format", options.format, "--shard-samples", str(options.shard_samples), *options.words]
    return subprocess.Popen(command("export", source, "-o", target, *words), env={**os.environ, **environment})


def finish(process: subprocess.Popen[bytes], begin: float) -> str:
    """Wait for an export, and say what it took."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    return (
        f"{time.monotonic() - begin:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of CPU, "
        f"{usage.ru_maxrss / 1024:.0f} MB at its peak"
    )


def objects(filesystem: Any, target: str) -> dict[str, str]:
    """The digest of every object of an export, but for its lease."""
    keys = filesystem.find(target.removeprefix("s3://"))
    names = {key: key.removeprefix(f"{target.removeprefix('s3://')}/") for key in keys}
    return {
        name: hashlib.sha256(filesystem.cat_file(key)).hexdigest()
        for key, name in names.items()
        if not name.startswith("lease/")
    }


def rows_of_lance(target: str, environment: dict[str, str]) -> str:
    """A digest of all rows of a Lance export, whose files have random names."""
    os.environ.update(environment)
    import lance

    digest = hashlib.sha256()
    for split in ("train", "test"):
        options = {"aws_endpoint": environment["AWS_ENDPOINT_URL"], "allow_http": "true"}
        for batch in lance.dataset(f"{target}/{split}.lance", storage_options=options).to_batches():
            for row in batch.to_pylist():
                digest.update(repr(row).encode())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--format", default="webdataset")
    parser.add_argument("--shard-samples", type=int, default=500)
    parser.add_argument("--output-on-s3", action="store_true", help="read the samples from the server too")
    options, options.words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        output = make_output(Path(folder) / "out", *ids(options.samples))
        (Path(folder) / "s3").mkdir()
        server = S3Process(Path(folder) / "s3")
        try:
            server.start()
            measure(str(output), options, server)
        finally:
            server.kill()


def measure(output: str, options: argparse.Namespace, server: S3Process) -> None:
    filesystem, environment = server.server.filesystem(), dict(server.server.environment)
    filesystem.makedirs(BUCKET, exist_ok=True)
    if options.output_on_s3:
        filesystem.put(output, f"{BUCKET}/out", recursive=True)
        output = f"s3://{BUCKET}/out"
    one, two = f"s3://{BUCKET}/one", f"s3://{BUCKET}/two"
    begin = time.monotonic()
    print("undisturbed:", finish(start(output, one, options, environment), begin))
    shards = len(json.loads(filesystem.cat_file(f"{BUCKET}/one/shards.json"))["shards"])
    for share in (1 / 3, 2 / 3):
        process = start(output, two, options, environment)
        wanted = max(1, int(shards * share))
        until(
            f"{wanted} shards are there",
            lambda wanted=wanted: len(filesystem.find(f"{BUCKET}/two/index")) >= wanted,
            timeout_s=1200,
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed with {len(filesystem.find(f'{BUCKET}/two/index'))} of {shards} shards listed")
    begin = time.monotonic()
    print("the rest:", finish(start(output, two, options, environment), begin))
    if options.format == "lance":
        same = rows_of_lance(one, environment) == rows_of_lance(two, environment)
    else:
        same = objects(filesystem, one) == objects(filesystem, two)
    print("equal to the undisturbed one:", same)
    begin = time.monotonic()
    verified = subprocess.Popen(command("verify", two), env={**os.environ, **environment})
    print("verify:", finish(verified, begin))
    again = time.monotonic()
    print("a second call:", finish(start(output, two, options, environment), again))


if __name__ == "__main__":
    main()
