"""Writes the table of `run`'s options in README.md: python -m tools.reference.

The options are declared in pipeline/cli/options.py. A test holds that the README has the table as it is written here.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from typer.models import OptionInfo

from pipeline.cli.options import LocalRunOptions, flag_of

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- options of run: python -m tools.reference -->\n", "<!-- end of options -->"


def options_table() -> str:
    """Markdown: a row per option with its flags, its meaning and its default."""
    hints = get_type_hints(LocalRunOptions, include_extras=True)
    rows = ["| option | meaning | default |", "| --- | --- | --- |"]
    for field in fields(LocalRunOptions):
        (option,) = (each for each in hints[field.name].__metadata__ if isinstance(each, OptionInfo))
        meaning, _, default = (option.help or "").partition("  [default: ")
        if not default and isinstance(field.default, bool):
            default = "off"
        rows.append(f"| {_flags(field.name, hints[field.name])} | {meaning} | {default.removesuffix(']')} |")
    return "\n".join(rows) + "\n"


def _flags(name: str, annotation: Any) -> str:
    """The flags of an option; `--no-...` for one that can be switched off."""
    flag = flag_of(name)
    can_be_switched = bool in {annotation.__origin__, *getattr(annotation.__origin__, "__args__", ())}
    return f"`{flag}`, `{flag.replace('--', '--no-', 1)}`" if can_be_switched else f"`{flag}`"


def with_table(readme: str) -> str:
    """The README with the table in its place."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{options_table()}{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
