"""The README names every command, every option of `run` and every error code; every help text has an example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipeline.cli.main import app
from sgi2v.errors import ErrorCode

README = (Path(__file__).parents[1] / "README.md").read_text()


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_is_in_the_readme_and_its_help_ends_with_an_example(path: tuple[str, ...]) -> None:
    words = " ".join(("sgi2v-batch", *path))
    assert words in README
    text = COMMANDS[path].epilog or COMMANDS[path].help
    assert f"Example: {words}" in text.replace("\n", " ")


def test_every_option_of_run_is_in_the_readme() -> None:
    options = [option for parameter in COMMANDS["run",].params for option in parameter.opts if option.startswith("--")]
    assert [option for option in options if f"`{option}`" not in README and option != "--help"] == []


def test_every_error_code_is_in_the_readme() -> None:
    assert [code for code in ErrorCode if f"`{code}`" not in README] == []
