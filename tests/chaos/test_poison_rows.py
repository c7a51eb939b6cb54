"""Rows that end their worker: quarantined with the right code, and everybody else is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.poisoned import EATS, HANGS, KILLS
from tests.pipeline.runs import TINY, picture, records, row, table, write_rows

pytestmark = pytest.mark.slow

GOOD = int(os.environ.get("SGI2V_CHAOS_ROWS", "5"))
TIMEOUT_S = 8
"""Of a sample: about ten times what a good one takes."""
LIMIT_S = 400.0


def test_poison_rows_are_quarantined_and_the_others_done(tmp_path: Path) -> None:
    poison = {"kills": KILLS, "hangs": HANGS, "eats": EATS}
    names = [f"good-{number:02d}" for number in range(GOOD)]
    for number, name in enumerate((*names, *poison)):
        picture(number).save(tmp_path / f"{name}.png")
    rows = [row(name) for name in names]
    for at, (name, seed) in enumerate(poison.items()):
        rows.insert(2 * at + 1, row(name, seed=seed))
    manifest, output = write_rows(tmp_path / "m.parquet", rows), tmp_path / "out"
    words = ["run", manifest, "--output", output, *TINY, "--workers", "2", "--sample-timeout", TIMEOUT_S]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.poisoned", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = records(output)
    assert sorted(found) == sorted((*names, *poison))
    assert {name for name in names if found[name]["status"] != "committed"} == set()
    codes = {name: found[name]["error_code"] for name in poison}
    assert codes == {"kills": "worker_died", "hangs": "timed_out", "eats": "out_of_memory"}
    assert f"within {TIMEOUT_S} s in 3 attempts" in found["hangs"]["message"]
    assert "died in `generate` in 3 attempts of 3" in found["kills"]["message"]
    assert sorted(table(output)["sample_id"].to_pylist()) == names
    assert table(output, "failures.parquet").num_rows == len(poison)
    assert len(list((output / "videos").iterdir())) == GOOD, "no sample was made twice"
