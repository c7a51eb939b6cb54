"""Help in groups, and what the shell completes."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from pipeline.cli.help import GROUPS
from pipeline.cli.main import app
from pipeline.cli.options import LocalRunOptions
from tests.pipeline.in_process import here


def test_the_options_of_run_are_in_groups() -> None:
    text = here("run", "--help").stdout
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert titles == ["Arguments", *GROUPS, "Options"]
    video = text.partition("Video:\n")[2].partition("\n\n")[0]
    assert "--steps" in video
    assert "--workers" not in video


def test_groups_name_options_that_exist_once() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(set(names)) == sorted(names)
    assert set(names) <= {field.name for field in fields(LocalRunOptions)}


def test_a_command_with_other_options_has_the_groups_that_it_needs() -> None:
    titles = re.findall(r"^(\w.*):$", here("bench", "--help").stdout, re.MULTILINE)
    assert titles == ["Model", "Video", "Options"]


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ru", ["run"]),
        ("run m.parquet --preset ", ["paper", "fast", "scene"]),
        ("run m.parquet --memory m", ["medium"]),
        ("run m.parquet --model e", ["embedded"]),
        ("run m.parquet --model stabil", []),
        ("bench --dtype f", ["float32", "float16"]),
        ("run m.parquet --ste", ["--steps"]),
        ("manifest v", ["validate"]),
    ],
)
def test_the_shell_completes(typed: str, completed: list[str]) -> None:
    environment = {
        "_SGI2V_BATCH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"sgi2v-batch {typed}",
        "COMP_CWORD": str(len(typed.split(" "))),
    }
    assert CliRunner().invoke(app, [], env=environment, prog_name="sgi2v-batch").stdout.split() == completed


def test_a_mistyped_option_or_command_is_answered_with_the_right_one() -> None:
    assert "--steps" in here("run", "m.parquet", "--step", "3").stderr
    assert "Did you mean 'run'?" in here("rnu").stderr
