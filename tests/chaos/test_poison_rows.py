"""Rows that end their worker are quarantined with the right code, and all other rows are made."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.outcome import IS_WHOLE, scaled
from tests.chaos.poisoned import CRASHES_IMAGE, CRASHES_VIDEO, EATS, HANGS, KILLS
from tests.pipeline.runs import TINY, command, picture, records, row, table, write_rows

pytestmark = pytest.mark.slow

GOOD = scaled(3, 27)
TIMEOUT_S = 10
"""Seconds of a sample; a worker needs fewer to restart, even while others restart."""
LIMIT_S = 400.0


def run(manifest: Path, output: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """A run whose stages break on some rows, and its seconds."""
    words = ["run", manifest, "--output", output, *TINY, "--workers", "2", "--sample-timeout", str(TIMEOUT_S)]
    start = time.monotonic()
    process = subprocess.run(
        command(*words, module="tests.chaos.poisoned"), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return process, time.monotonic() - start


def test_poison_rows_are_quarantined_and_all_others_made(tmp_path: Path) -> None:
    poison = {
        "kills": KILLS,
        "hangs": HANGS,
        "eats": EATS,
        "crashes-image": CRASHES_IMAGE,
        "crashes-video": CRASHES_VIDEO,
    }
    names = [f"good-{number:02d}" for number in range(GOOD)]
    for number, name in enumerate((*names, *poison)):
        picture(number).save(tmp_path / f"{name}.png")
    rows = [row(name) for name in names]
    for at, (name, seed) in enumerate(poison.items()):
        rows.insert(2 * at + 1, row(name, seed=seed))
    manifest, output = write_rows(tmp_path / "m.parquet", rows), tmp_path / "out"
    process, seconds = run(manifest, output)
    assert process.returncode == 1, process.stderr
    if IS_WHOLE:
        clean = write_rows(tmp_path / "clean.parquet", [row(name) for name in names])
        alone, clean_seconds = run(clean, tmp_path / "clean")
        assert alone.returncode == 0, alone.stderr
        print(f"{GOOD} rows and {len(poison)} poison rows: {seconds:.0f} s; the {GOOD} alone: {clean_seconds:.0f} s")
    written = records(output)
    assert sorted(written) == sorted((*names, *poison))
    assert {name for name in names if written[name]["status"] != "committed"} == set()
    codes = {name: written[name]["error_code"] for name in poison}
    assert codes == {**dict.fromkeys(poison, "worker_died"), "hangs": "timed_out", "eats": "out_of_memory"}
    assert f"`generate` took more than {TIMEOUT_S} s in 3 attempts of 3" in written["hangs"]["message"]
    assert "died in `generate` in 3 attempts of 3" in written["kills"]["message"]
    for name, stage in {"crashes-image": "load", "crashes-video": "commit"}.items():
        assert f"died in `{stage}` in 3 attempts of 3" in written[name]["message"]
        assert "a library crashed\nFatal Python error: Segmentation fault" in written[name]["message"]
    assert sorted(table(output)["sample_id"].to_pylist()) == names
    assert table(output, "failures.parquet").num_rows == len(poison)
    assert len(list((output / "videos").iterdir())) == GOOD, "no sample has two videos"
