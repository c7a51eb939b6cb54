"""Writes docs/commands.md, the reference of every command: python -m tools.reference.

The commands are declared in pipeline/cli/. A test holds that the page is as it is written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from pipeline.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """# Commands

This page is generated from the program (`python -m tools.reference`). `sgi2v-batch COMMAND --help` prints the same.
"""


def commands(group: Any = None, path: tuple[str, ...] = ("sgi2v-batch",)) -> Iterator[tuple[str, Any]]:
    """Every command with its words: `sgi2v-batch manifest make`."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def reference() -> str:
    """The page, in Markdown."""
    return HEAD + "".join(_section(words, command) for words, command in commands() if not command.hidden)


def _section(words: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    names = [_argument(each) for each in arguments]
    parts = [f"\n## {words.removeprefix('sgi2v-batch ')}\n", _joined(command.help), ""]
    parts += ["```text", " ".join([words, *names, "[OPTIONS]"]), "```", ""]
    parts += [f"- `{name}`: {_joined(each.help)}" for name, each in zip(names, arguments, strict=True)]
    if options:
        parts += ["", "| option | meaning | default |", "| --- | --- | --- |", *map(_row, options)]
    if command.epilog:
        parts += ["", f"Example: `{_joined(command.epilog).removeprefix('Example: ')}`"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)) + "\n"


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _row(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    meaning, _, default = _joined(option.help or "").partition("[default: ")
    default = default.removesuffix("]")
    if not default and option.is_flag:
        default = "off" if not option.default else "on"
    elif not default and option.default not in (None, ()) and not callable(option.default):
        default = str(getattr(option.default, "value", option.default))
    if option.required:
        default = "required"
    cells = (flags, meaning.strip().replace("<", "&lt;"), default.replace("<", "&lt;"))
    return f"| {' | '.join(cells)} |".replace("  |", " |")


def _joined(text: str) -> str:
    """Text on one line, paragraphs too. A bar would end a cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference())
