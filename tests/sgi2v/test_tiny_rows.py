"""The measured rows behind the embedded checkpoint's tables belong to the shipped weights and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.metrics import METRICS_VERSION
from tests.benchmarks import control, presets, scene
from tests.benchmarks.measured import GUIDED, PROVENANCE_FILE, UNGUIDED, provenance, read_rows

ROWS = Path(control.__file__).parent / "rows"
FILES = sorted(ROWS.glob(f"*/{PROVENANCE_FILE}"))


def test_rows_of_the_model_card_have_a_provenance_file() -> None:
    assert ROWS / "control-test" / PROVENANCE_FILE in FILES


@pytest.mark.parametrize("file", FILES, ids=[file.parent.name for file in FILES])
def test_rows_come_from_the_shipped_weights_and_settings(file: Path) -> None:
    checkpoint = open_checkpoint(ModelConfig(source="embedded"), weights=False)
    settings = checkpoint.sampler(), checkpoint.guidance()
    variants = (
        control.variants_of(list(control.GROUPS), *settings)
        | presets.variants_of(*settings)
        | scene.variants_of(checkpoint)
    )
    recorded = json.loads(file.read_text())
    shipped = {name: variants[name] for name in recorded["variants"]}
    metrics_version = recorded.pop("metrics_version")
    assert metrics_version in {"objmc/v1", METRICS_VERSION}
    assert recorded.items() < provenance("embedded", recorded["split"], shipped).items()
    assert {UNGUIDED, GUIDED} <= set(recorded["variants"])
    assert set(recorded["variants"]) == {row["variant"] for row in read_rows(file.parent)}
