"""Rows that end their worker: quarantined with the right code, and everybody else is done."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.outcome import IS_WHOLE, scaled
from tests.chaos.poisoned import CRASHES_IMAGE, CRASHES_VIDEO, EATS, HANGS, KILLS
from tests.pipeline.runs import TINY, command, picture, records, row, table, write_rows

pytestmark = pytest.mark.slow

GOOD = scaled(5, 27)
TIMEOUT_S = 10
"""Of a sample: more than a worker's restart takes, also while others restart."""
LIMIT_S = 400.0


def run(manifest: Path, output: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """A run whose stages cannot bear some rows, and its seconds."""
    words = ["run", manifest, "--output", output, *TINY, "--workers", "2", "--sample-timeout", str(TIMEOUT_S)]
    start = time.monotonic()
    done = subprocess.run(
        command(*words, module="tests.chaos.poisoned"), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return done, time.monotonic() - start


def test_poison_rows_are_quarantined_and_the_others_done(tmp_path: Path) -> None:
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
    done, seconds = run(manifest, output)
    assert done.returncode == 1, done.stderr
    if IS_WHOLE:
        clean = write_rows(tmp_path / "clean.parquet", [row(name) for name in names])
        alone, clean_seconds = run(clean, tmp_path / "clean")
        assert alone.returncode == 0, alone.stderr
        print(f"{GOOD} rows and {len(poison)} poison rows: {seconds:.0f} s; the {GOOD} alone: {clean_seconds:.0f} s")
    found = records(output)
    assert sorted(found) == sorted((*names, *poison))
    assert {name for name in names if found[name]["status"] != "committed"} == set()
    codes = {name: found[name]["error_code"] for name in poison}
    assert codes == {**dict.fromkeys(poison, "worker_died"), "hangs": "timed_out", "eats": "out_of_memory"}
    assert f"within {TIMEOUT_S} s in 3 attempts" in found["hangs"]["message"]
    assert "died in `generate` in 3 attempts of 3" in found["kills"]["message"]
    for name, stage in {"crashes-image": "load", "crashes-video": "commit"}.items():
        assert f"died in `{stage}` in 3 attempts of 3" in found[name]["message"]
        assert "it crashed a library\nFatal Python error: Segmentation fault" in found[name]["message"]
    assert sorted(table(output)["sample_id"].to_pylist()) == names
    assert table(output, "failures.parquet").num_rows == len(poison)
    assert len(list((output / "videos").iterdir())) == GOOD, "no sample was made twice"
