"""`export`: copy the videos and labels of an output into a format that training programs load."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import exit_codes

app = typer.Typer()


@app.command(epilog="Example: sgi2v-batch export runs/moves --format webdataset -o s3://bucket/moves-shards")
def export(
    source: Annotated[
        str,
        typer.Argument(metavar="OUT_OR_SELECTION", help="Folder or URL of a run's results, or what `select` wrote."),
    ],
    format_name: Annotated[
        str, typer.Option("--format", help="videofolder, webdataset, lance, npz (point tracks), coco-video (boxes).")
    ],
    target: Annotated[str, typer.Option("--output", "-o", metavar="DEST", help="Folder or URL of the export.")],
    splits: Annotated[
        str, typer.Option(metavar="NAME=SHARE,...", help="Splits; all samples of an image are in one.")
    ] = "train=0.9,test=0.1",
    split_seed: Annotated[int, typer.Option(help="Decides which images are in which split.")] = 0,
    shard_mb: Annotated[float, typer.Option(min=0.001, help="Largest shard, MB (10^6 bytes).")] = 256.0,
    shard_samples: Annotated[int, typer.Option(min=1, help="Most samples of a shard.")] = 1000,
    link: Annotated[
        bool, typer.Option("--link/--no-link", help="Hard-link the videos: for outputs and exports on one local disk.")
    ] = False,
    moved_to: Annotated[
        str | None, typer.Option("--source", metavar="OUT", help="Where the results of a selection are, if moved.")
    ] = None,
) -> None:
    """Copy what is new since the last export into the shards of a format; the same command goes on after a kill.

    Exit 1 where a video is gone or damaged. docs/exporting.md describes the formats.
    """
    from pipeline.cli.lines import Counting
    from pipeline.export.export import ExportOptions, describe, shown_problems
    from pipeline.export.export import export as copy
    from pipeline.export.splits import parse_splits

    options = ExportOptions(
        format_name, parse_splits(splits), split_seed, round(shard_mb * 10**6), shard_samples, link, moved_to
    )
    exported = copy(source, target, options, Counting("exported "))
    for line in shown_problems(exported):
        typer.echo(line)
    for line in describe(exported, target):
        typer.echo(line)
    if exported.problems:
        raise typer.Exit(exit_codes.FAILED_ROWS)


def verify_if_export(location: str, repair: bool) -> bool:
    """Verify, and print what was found, if an export is there; False if none is. Raises typer.Exit for flaws."""
    from pipeline.export.verify import is_export, lines, repair_export, verify_export

    if not is_export(location):
        return False
    verdict = verify_export(location)
    for line in lines(verdict):
        typer.echo(line)
    if verdict.flaws:
        if repair:
            lost = repair_export(location, verdict)
            typer.echo(f"repaired: the next export adds {lost} of its samples again")
        raise typer.Exit(exit_codes.FAILED_ROWS)
    return True
