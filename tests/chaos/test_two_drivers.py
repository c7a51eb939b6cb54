"""Two drivers start on one output at the same time: one runs, the other says who has the output and stops."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.faulty import read_journal
from tests.chaos.outcome import IS_WHOLE, outcome, scaled
from tests.chaos.test_faults import RUN_S, scene
from tests.stand_in import SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROWS = 3


@pytest.mark.skipif(
    not IS_WHOLE, reason="tests/pipeline/output/test_lease.py starts drivers together in every test run"
)
@pytest.mark.parametrize("store", ["disk", "s3"])
def test_one_of_two_drivers_runs(tmp_path: Path, store: str, request: pytest.FixtureRequest) -> None:
    root = str(tmp_path) if store == "disk" else request.getfixturevalue("bucket")
    ran: Counter[int] = Counter()
    for number in range(scaled(1, 20)):
        folder = tmp_path / str(number)
        folder.mkdir()
        at = scene(folder, ROWS, f"{root}/out-{number}", **{SECONDS: "0.5"})
        drivers = [
            subprocess.Popen(
                at.command(), env=at.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        errors = [driver.communicate(timeout=RUN_S)[1] for driver in drivers]
        assert sorted(driver.returncode for driver in drivers) == [0, 2], errors
        loser = drivers[1].returncode == 2
        assert "is in use by another run: " in errors[loser]
        ran[int(not loser)] += 1
        generated = read_journal(at.journal, "generated")
        assert sorted(generated) == sorted(set(generated)), "no sample is generated twice"
        result = outcome("", at.manifest, at.output, at.journal, 0, 0.0)
        assert (result.rows, result.lost, result.doubled, result.quarantined, result.orphans) == (ROWS, 0, 0, 0, 0)
    print(f"two drivers on {store}: {dict(ran)}")
