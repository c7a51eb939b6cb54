"""`sgi2v-batch` whose workers die at chosen moments: `python -m tests.chaos.faulty run ...`.

The generator is the stand-in. A seed decides for each row what happens, and each event is a line of a journal file:
`generated ID` or `killed STAGE ID`. Settings come from the environment, which Ray passes on to its workers.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pipeline.output.catalog
import pipeline.run
from pipeline.cli.main import main
from pipeline.flow.attempts import MAX_ATTEMPTS
from pipeline.flow.commit import Commit
from pipeline.flow.row import state_of
from pipeline.output.records import RECORDS
from pipeline.output.storage import Storage
from tests.stand_in import StandIn, install

JOURNAL = "SGI2V_CHAOS_JOURNAL"
"""Environment variable: path of the journal."""
DEATHS = "SGI2V_CHAOS_DEATHS"
"""Environment variable: `STAGES:SHARE:SEED`. In each stage that share of rows kills its worker once or twice."""
PART_ROWS = "SGI2V_CHAOS_PART_ROWS"
"""Environment variable: records of a sealed part."""


def note(line: str) -> None:
    """Append a line to the journal in one write, since several processes do so."""
    with Path(os.environ[JOURNAL]).open("ab", buffering=0) as journal:
        journal.write(f"{line}\n".encode())


def read_journal(journal: Path, words: str) -> list[str]:
    """Sample ids of the journal's lines that begin with these words, in order."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [line.rpartition(" ")[2] for line in lines if line.startswith(f"{words} ")]


def die_if_drawn(stage: str, sample_id: str) -> None:
    """Kill this process if the row has deaths left in this stage."""
    stages, _, rest = os.environ.get(DEATHS, "").partition(":")
    if stage not in stages.split(","):
        return
    share, _, seed = rest.partition(":")
    rng = random.Random(f"{seed}/{stage}/{sample_id}")
    deaths = rng.randint(1, MAX_ATTEMPTS - 1) if rng.random() < float(share) else 0
    words = f"killed {stage}"
    if read_journal(Path(os.environ[JOURNAL]), words).count(sample_id) < deaths:
        note(f"{words} {sample_id}")
        os.kill(os.getpid(), signal.SIGKILL)


class FaultyGenerate(StandIn):
    """A worker that dies inside a sample."""

    def _generate(self, table: Any) -> Any:
        self.sample_id = state_of(table).sample_id
        return super()._generate(table)

    def _sample(self, *arguments: Any) -> Any:
        die_if_drawn("generate", self.sample_id)
        generation = super()._sample(*arguments)
        note(f"generated {self.sample_id}")
        return generation


class FaultyStorage(Storage):
    """A store whose process dies between the upload of a video and that of its record."""

    def put_new(self, key: str, data: bytes) -> bool:
        if key.startswith(f"{RECORDS}/"):
            die_if_drawn("commit", Path(key).stem)
        return super().put_new(key, data)


class FaultyCommit(Commit):
    """The stage with that store."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.storage = FaultyStorage(self.config.output)


if __name__ == "__main__":
    install(FaultyGenerate)
    pipeline.run.Commit = FaultyCommit  # type: ignore[misc]
    pipeline.output.catalog.PART_ROWS = int(os.environ.get(PART_ROWS, pipeline.output.catalog.PART_ROWS))
    main()
