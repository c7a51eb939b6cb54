"""`evaluate`: measure videos of any method, or compare outputs and evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import exit_codes

if TYPE_CHECKING:
    from pipeline.evaluate.config import EvaluationConfig

app = typer.Typer()


@app.command(epilog="Example: sgi2v-batch evaluate videos/ --manifest boxes.csv -o evaluation/")
def evaluate(
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEOS...",
            help="An output, an evaluation, a manifest with a column `video`, or a folder of mp4s; with --compare two "
            "or more outputs or evaluations.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder or URL of the results.  [default: evaluation, or comparison]",
            show_default=False,
        ),
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="Boxes and paths of a folder's videos.  [default: the table in it]")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="What is measured; repeatable.  [default: objmc/v2]")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="What follows the points; repeatable.  [default: lucas-kanade]")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Weights of a tracker, or of fid or fvd; repeatable.")
    ] = None,
    fit: Annotated[
        str, typer.Option(help="How the pictures fill the videos: stretch, crop or pad, where no row says.")
    ] = "stretch",
    real: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Real videos, for fid, fvd and motion-fidelity/ditflow.")
    ] = None,
    video_name: Annotated[
        str | None, typer.Option(metavar="NAME.mp4", help="Which mp4 of each sample's folder.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that measure.  [default: one per CPU]")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use.  [default: this machine]")] = None,
    sample_timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that one video may take.")] = 3600.0,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare", help="Compare outputs or evaluations, sample by sample; the first is the base."
        ),
    ] = False,
    published: Annotated[
        bool,
        typer.Option(
            "--published/--no-published", help="With --compare: add the rows that papers publish, apart from ours."
        ),
    ] = False,
) -> None:
    """Measure videos that exist, of any method. The same command goes on where an earlier one stopped.

    Exit 1 where a video could not be measured.
    """
    from sgi2v.errors import ConfigError

    if compare:
        _refuse("--compare", manifest=manifest, protocol=protocol, tracker=tracker, weights=weights, real=real)
        from pipeline.evaluate.compare import compare as compare_all

        typer.echo(compare_all(videos, output or "comparison", published))
        return
    if published:
        raise ConfigError("--published has no effect without --compare")
    if len(videos) > 1:
        raise ConfigError(f"one source is measured at a time, and {len(videos)} are given: to compare, add --compare")
    from pipeline.config import ExecutionConfig
    from pipeline.evaluate.config import settle

    execution = ExecutionConfig(workers=workers, address=address, sample_timeout_s=sample_timeout)
    config = settle(
        videos[0],
        output or "evaluation",
        manifest,
        protocol or ["objmc/v2"],
        tracker or ["lucas-kanade"],
        weights or [],
        fit,
        real,
        video_name,
        execution,
    )
    _measure(config)


def _refuse(option: str, **given: object) -> None:
    """Raise ConfigError for options that have no effect with another one."""
    from sgi2v.errors import ConfigError

    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect with {option}: leave it out")


def _measure(config: EvaluationConfig) -> None:
    from pipeline.cli.lines import Counting, print_progress
    from pipeline.evaluate.run import evaluate as evaluate_all
    from pipeline.evaluate.text import summary_text
    from sgi2v.tracking import TRACKERS

    for name in config.trackers:
        print_progress(f"tracker {name}: {TRACKERS[name].licence}")
    counting = Counting("measured ")
    result = evaluate_all(config, print_progress, lambda done, total: counting("video", done, total))
    typer.echo(summary_text(result))
    if result.interrupted:
        raise typer.Exit(exit_codes.INTERRUPTED)
    if result.failed:
        raise typer.Exit(exit_codes.FAILED_ROWS)
