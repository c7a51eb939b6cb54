"""`select`: keep the samples of an output that are good enough."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.command(
    epilog='Example: sgi2v-batch select runs/moves --where "control_gain > 0.6 and flicker < 10" -o kept.parquet'
)
def select(
    output: Annotated[str, typer.Argument(help="Folder or URL of a run's results, or a selection of them.")],
    target: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Selection to write: a Parquet file.")],
    where: Annotated[
        list[str], typer.Option(metavar="CONDITION", help="Condition on columns of metadata.parquet; repeatable.")
    ] = [],  # noqa: B006 - Typer takes it for a default only
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Conditions by name: `strict`, `balanced`.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="At most N samples of each group.")] = None,
    per: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="Groups for --top: samples with the same value; repeatable.")
    ] = [],  # noqa: B006
    by: Annotated[str | None, typer.Option(metavar="METRIC", help="Metric whose best samples --top keeps.")] = None,
    source: Annotated[
        str | None, typer.Option(metavar="OUT", help="Where the results of a selection are, if they were moved.")
    ] = None,
) -> None:
    """Choose samples by their metrics; print what each condition took away, and write the rows that are kept.

    docs/selecting.md explains conditions and presets.
    """
    from pipeline.export.select import choice, lines
    from pipeline.export.select import select as write_selection
    from pipeline.export.source import check_free_or_selection, open_source
    from sgi2v.errors import ConfigError

    if not target.endswith(".parquet"):
        raise ConfigError(f"--output {target}: a selection is a Parquet file, so its name ends with .parquet")
    check_free_or_selection(target)
    chosen = choice(where, preset, top, per, by)
    with open_source(output, source) as opened:
        selected = write_selection(opened, chosen, target)
    typer.echo("\n".join(lines(selected)))
    if not selected.kept:
        typer.echo("no sample is kept: the table says which condition takes most")
    if opened.is_running:
        typer.echo(
            f"a run is writing to {opened.storage.url}: samples that it makes from now on are not in this selection"
        )
    typer.echo(f"wrote {target}")
