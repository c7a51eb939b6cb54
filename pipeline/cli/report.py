"""`report` and `inspect`: pages that show what a run made, and a picture of how the model made one sample."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.outputs import Output
from sgi2v.wording import counted

app = typer.Typer()


@app.command(epilog="Example: sgi2v-batch report runs/moves runs/moves-unguided -o report")
def report(
    output: Output,
    baselines: Annotated[
        list[str] | None, typer.Argument(metavar="[BASELINE...]", help="Results to compare with, sample by sample.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Folder or URL for the pages.  [default: OUTPUT-report]", show_default=False
        ),
    ] = None,
    copy_videos: Annotated[
        bool, typer.Option(help="Copy the videos into the report, so that it can be moved or published alone.")
    ] = False,
    inspections: Annotated[
        str | None,
        typer.Option(help="Folder in which `inspect` wrote.  [default: OUTPUT-inspect]", show_default=False),
    ] = None,
) -> None:
    """Write pages that show a run's videos, metrics and failures: one folder, for a browser without a server."""
    write_report(output, baselines or [], target, copy_videos, inspections)


def write_report(
    output: str,
    baselines: list[str] | None = None,
    target: str | None = None,
    copy_videos: bool = False,
    inspections: str | None = None,
) -> None:
    """Build a report and say where it lies."""
    from pipeline.cli.lines import Counting, print_progress
    from pipeline.report.build import build_report, page_of

    built = build_report(output, baselines or [], target, copy_videos, inspections, Counting("report: "))
    if not built.plays and built.committed:
        print_progress("the pages cannot reach the videos from there: add --copy-videos")
    missing = f", {counted(built.videos_missing, 'video')} missing" if built.videos_missing else ""
    typer.echo(f"report of {counted(built.committed, 'video')} and {counted(built.failed, 'failure')}{missing}")
    typer.echo(f"  open {page_of(built)}")


@app.command(epilog="Example: sgi2v-batch inspect runs/moves car-17")
def inspect(
    output: Output,
    sample_id: Annotated[str, typer.Argument(help="Which sample.")],
    target: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder or URL of the picture and the arrays.  [default: OUTPUT-inspect]",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            min=0, help="Guided step whose features are shown, from 0.  [default: the middle one]", show_default=False
        ),
    ] = None,
) -> None:
    """Make one sample again and draw what guidance saw and did: features, changes of the latents, losses."""
    import torch

    from pipeline.cli.lines import print_progress
    from pipeline.cli.progress import ReplayProgress
    from pipeline.inspect.inside import look_inside
    from pipeline.report.build import default_target
    from pipeline.report.figure import save_inside
    from sgi2v.errors import ConfigError, SampleError

    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = target or default_target(output, "inspect")
    try:
        inside = look_inside(
            output, sample_id, device, step, lambda model: print_progress(f"loading {model}"), ReplayProgress()
        )
    except SampleError as error:
        raise ConfigError(f"{sample_id} cannot be made again: {error}") from error
    for written in save_inside(inside, sample_id, target):
        typer.echo(f"wrote {written}")
    same = "the same frames as in the output, bit for bit" if inside.identical else "other frames than in the output"
    typer.echo(f"{sample_id}: {same}; features of step {inside.step}")
