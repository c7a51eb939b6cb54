"""`status`, `verify`, `replay` and `sheet`: commands that look at an output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import exit_codes
from pipeline.cli.run import Manifest
from sgi2v.wording import counted

app = typer.Typer()

Output = Annotated[str, typer.Argument(help="Folder or URL of a run's results.")]


@app.command(epilog="Example: sgi2v-batch status s3://bucket/moves --watch")
def status(
    output: Output,
    watch: Annotated[bool, typer.Option(help="Print again and again, until the run is over.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json/--no-json", help="Print one JSON object; with --watch, one a line.")
    ] = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus/--no-prometheus", help="Print OpenMetrics text, which Prometheus reads.")
    ] = False,
) -> None:
    """Print how a run stands, from its output alone, while it goes on or after."""
    from pipeline.cli.watch import print_openmetrics, print_status, watch_status
    from sgi2v.errors import ConfigError

    if prometheus and (watch or as_json):
        raise ConfigError("--prometheus prints once, and no JSON: leave out --watch and --json")
    if prometheus:
        print_openmetrics(output)
        return
    (watch_status if watch else print_status)(output, as_json)


@app.command(epilog="Example: sgi2v-batch verify s3://bucket/moves --repair")
def verify(
    output: Output,
    repair: Annotated[
        bool, typer.Option(help="Remove damaged samples and orphaned videos; the next run makes the samples again.")
    ] = False,
    images: Annotated[
        bool, typer.Option(help="Read every image again, and compare it with the one that the sample was made from.")
    ] = False,
) -> None:
    """Check every record, video, table and manifest row of a run against each other; or every shard of an export.

    Exit 1 where something is wrong or left; a repair that leaves nothing wrong exits with 0.
    """
    from pipeline.cli.export import verify_if_export
    from pipeline.inspect.verify import NOT_REPAIRED
    from pipeline.inspect.verify import repair as remove_flawed
    from pipeline.inspect.verify import verify as check

    if verify_if_export(output, repair):
        return
    verdict = check(output, images)
    for flaw in verdict.flaws:
        typer.echo(str(flaw))
    if verdict.active_run:
        typer.echo(
            f"a run is writing to it ({verdict.active_run}): videos without a record and tables that lag are not judged"
        )
    if verdict.young_videos:
        videos = counted(verdict.young_videos, "video")
        typer.echo(f"{videos} without a record: less than an hour old, so not judged, since a record may be on its way")
    if verdict.manifest_problem:
        typer.echo(f"the number of rows is checked against run.json only: {verdict.manifest_problem}")
    if verdict.images_unrecorded:
        typer.echo(f"{counted(verdict.images_unrecorded, 'sample')} without a digest of the image: not compared")
    limited = "" if verdict.limit_of is None else f" (--limit; the manifest has {verdict.limit_of})"
    counts = (
        f"{verdict.committed} made, {verdict.failed} failed, {verdict.left} left, "
        f"of {counted(verdict.rows, 'row')}{limited}"
    )
    if verdict.is_complete:
        typer.echo(f"{counts}: everything is there and whole")
        return
    result = counted(len(verdict.flaws), "flaw") if verdict.flaws else "no flaws, but the run is not finished"
    typer.echo(f"{counts}: {result}")
    stay = sum(flaw.code in NOT_REPAIRED for flaw in verdict.flaws)
    if repair and verdict.flaws:
        removed = remove_flawed(output, verdict.flaws)
        if len(verdict.flaws) > stay:
            typer.echo(f"repaired: the next run makes {counted(removed, 'sample')} again")
        if not stay:
            return
        typer.echo(f"not repaired: {counted(stay, 'flaw')} of the manifest or of images")
    raise typer.Exit(exit_codes.FAILED_ROWS)


@app.command(epilog="Example: sgi2v-batch replay s3://bucket/moves car-17")
def replay(
    output: Output,
    sample_id: Annotated[str, typer.Argument(help="Which sample.")],
    candidate: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Another of its candidates, by number from 0.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline/--no-baseline", help="Its baseline.")] = False,
) -> None:
    """Make one sample again, without Ray, and compare it to the bit; exit 1 where it differs."""
    import torch

    from pipeline.cli.lines import print_progress
    from pipeline.cli.progress import ReplayProgress
    from pipeline.inspect.replay import Which
    from pipeline.inspect.replay import replay as make_again
    from sgi2v.errors import ConfigError, SampleError

    if baseline and candidate is not None:
        raise ConfigError("--baseline and --candidate name two videos: give one of them")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        replayed = make_again(
            output,
            sample_id,
            device,
            lambda model: print_progress(f"loading {model}"),
            ReplayProgress(),
            Which(candidate, baseline),
        )
    except SampleError as error:
        raise ConfigError(f"{sample_id} cannot be made again: {error}") from error
    if replayed.identical:
        typer.echo(f"{sample_id}: bit-identical")
        return
    recorded = f"{replayed.record.device}, {replayed.record.dtype}"
    typer.echo(f"{sample_id}: not bit-identical (made on {recorded}; now on {device})")
    if device == "cuda" and replayed.record.guided:
        typer.echo("  a GPU may add up a guided step's gradients in another order each time")
    if replayed.mean_difference is not None:
        typer.echo(f"  mean difference from the stored video: {replayed.mean_difference:.2f} of 255 levels")
    raise typer.Exit(exit_codes.FAILED_ROWS)


@app.command(epilog="Example: sgi2v-batch sheet manifest.parquet runs/manifest -o sheet.png")
def sheet(
    manifest: Manifest,
    outputs: Annotated[list[str], typer.Argument(metavar="OUTPUT...", help="Results of one or more runs of it.")],
    picture: Annotated[Path, typer.Option("--output", "-o", help="Picture to write. A .webp or .gif moves.")] = Path(
        "sheet.png"
    ),
    frames: Annotated[int, typer.Option(min=2, help="Frames shown of each video, in a picture that stands.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="Only the first N rows of the manifest.")] = 12,
) -> None:
    """Draw one picture: the boxes and paths of each sample, beside frames of what each run made of it."""
    from manifests.draw import save_moving_picture, save_picture
    from manifests.io import read_manifest
    from pipeline.inspect.sheet import contact_sheet, moving_sheet

    rows = read_manifest(manifest).slice(0, limit)
    if picture.suffix.lower() in {".webp", ".gif"}:
        save_moving_picture(moving_sheet(rows, manifest, outputs), picture)
    else:
        save_picture(contact_sheet(rows, manifest, outputs, frames), picture)
    typer.echo(f"wrote {picture}")
