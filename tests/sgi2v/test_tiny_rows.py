"""The rows that the embedded checkpoint's tables are made of: they belong to the weights and settings that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from tests.benchmarks import control, presets
from tests.benchmarks.measured import GUIDED, MADE, UNGUIDED, read_rows, what_is_made

ROWS = Path(control.__file__).parent / "rows"
TOLD = sorted(ROWS.glob(f"*/{MADE}"))


def test_there_are_rows_that_say_what_they_are_made_of() -> None:
    assert ROWS / "control-test" / MADE in TOLD


@pytest.mark.parametrize("file", TOLD, ids=[file.parent.name for file in TOLD])
def test_rows_are_of_the_weights_and_settings_that_ship(file: Path) -> None:
    checkpoint = open_checkpoint(ModelConfig(source="embedded"), weights=False)
    settings = checkpoint.sampler(), checkpoint.guidance()
    every = control.variants_of(list(control.GROUPS), *settings) | presets.variants_of(*settings)
    told = json.loads(file.read_text())
    assert told == what_is_made("embedded", told["split"], {name: every[name] for name in told["variants"]})
    assert {UNGUIDED, GUIDED} <= set(told["variants"])
    assert set(told["variants"]) == {row["variant"] for row in read_rows(file.parent)}
