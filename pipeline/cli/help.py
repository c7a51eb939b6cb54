"""Help of a command with many options: in groups, as plain text. Typer has groups in its coloured help only."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

GROUPS = {
    "Model": ("model", "revision", "dtype", "compile", "memory"),
    "Video": ("preset", "height", "width", "fit", "frames", "steps", "seed", "unguided"),
    "Rows and results": (
        "output",
        "shard",
        "limit",
        "retry_failed",
        "redo_changed",
        "another_manifest",
        "take_over",
        "notify",
        "dry_run",
    ),
    "Images": ("check_images", "strict", "untrusted", "root"),
    "Workers": ("workers", "gpus_per_worker", "accelerator_type", "wait_for_gpus", "sample_timeout", "address"),
}
"""Title of a group -> its options, by parameter name. The others stand under the last title, `Options`."""


class GroupedCommand(TyperCommand):
    """A command whose help shows GROUPS."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options, one section a group."""
        titles = {name: title for title, names in GROUPS.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            title = "Arguments" if is_argument else titles.get(parameter.name or "", "Options")
            if (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(title, []).append(record)
        for title in ("Arguments", *GROUPS, "Options"):
            if title in sections:
                with formatter.section(title):
                    formatter.write_dl(sections[title])
