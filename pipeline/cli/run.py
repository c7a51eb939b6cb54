"""`run`: a manifest to committed results."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import exit_codes
from pipeline.cli.help import GroupedCommand
from pipeline.cli.lines import print_progress
from pipeline.cli.options import (
    LocalRunOptions,
    settle,
    takes,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from manifests.shards import Shard
    from pipeline.config import RunConfig
    from pipeline.plan import Wanted
    from sgi2v.checkpoint import Checkpoint

app = typer.Typer()

Manifest = Annotated[str, typer.Argument(help="Manifest: Parquet, CSV or JSONL; a path or any fsspec URL.")]


@dataclass(frozen=True)
class Request:
    """What `run` was asked to do, settled."""

    config: RunConfig
    checkpoint: Checkpoint
    wanted: Wanted
    take_over: bool
    dry_run: bool
    strict: bool
    shard: Shard | None
    notify: str | None
    allow_failed: bool
    report: bool


def request_of(manifest: str, options: LocalRunOptions) -> Request:
    """Settle the options of `run`. Raises ConfigError or ModelError."""
    from manifests.shards import Shard

    shard = None if options.shard is None else Shard.parse(options.shard)
    config, checkpoint = settle(manifest, options.output, options, weights=not options.dry_run)
    if shard is not None:
        config = replace(config, output=shard.output_below(config.output), shard=str(shard))
    from pipeline.plan import Wanted

    wanted = Wanted(**{field.name: getattr(options, field.name) for field in fields(Wanted)})
    if options.notify is not None:
        from pipeline.cli.notify import check_target

        check_target(options.notify)
    switches = options.take_over, options.dry_run, options.strict
    return Request(config, checkpoint, wanted, *switches, shard, options.notify, options.allow_failed, options.report)


@app.command(
    cls=GroupedCommand,
    epilog="Example: sgi2v-batch run manifest.parquet --output s3://bucket/moves --height 576 --width 1024",
)
@takes(LocalRunOptions)
def run(manifest: Manifest, options: LocalRunOptions) -> None:
    """Make and measure every video of a manifest. The same command goes on where an earlier run stopped."""
    from manifests.io import load_manifest

    _refuse_job_of_other_version()
    loaded = load_manifest(manifest)
    request = request_of(manifest, options)
    if request.shard is not None:
        loaded = request.shard.part_of(loaded)
    if request.dry_run:
        from pipeline.cli.dry_run import dry_run

        raise typer.Exit(dry_run(request, loaded))
    if request.strict:
        _refuse_implausible(request, loaded.table)
    if request.report:
        from pipeline.report.build import check_target, default_target
        from pipeline.report.needs import check_installed

        check_installed()
        check_target(default_target(request.config.output), request.config.output)
    from pipeline.cli.notify import notifying
    from pipeline.cli.progress import observer_for
    from pipeline.cli.summary import print_summary
    from pipeline.run import run as run_all
    from sgi2v.wording import counted

    with notifying(request.notify, request.config) as notification:
        with observer_for(request.config, notification.send_lost) as observer:
            result = run_all(request.config, loaded, request.wanted, observer, request.take_over)
        print_summary(result)
        if request.report and not result.interrupted:
            from pipeline.cli.report import write_report

            write_report(request.config.output)
        code = exit_codes.INTERRUPTED if result.interrupted else exit_codes.FAILED_ROWS if result.failed_rows else 0
        if code == exit_codes.FAILED_ROWS and request.allow_failed:
            print_progress(
                f"The exit code is 0 although {counted(result.failed_rows, 'row')} failed, as --allow-failed asks."
            )
            code = 0
        notification.send(result, code)
    raise typer.Exit(code)


def _refuse_job_of_other_version() -> None:
    """Raise ConfigError in a job of a cluster that another version of this package has submitted."""
    from jobs.submit import other_version
    from sgi2v.errors import ConfigError

    if (problem := other_version(os.environ)) is not None:
        raise ConfigError(problem)


def _refuse_implausible(request: Request, table: pa.Table) -> None:
    """Raise ConfigError if any row looks wrong. Reads the image of every row."""
    from manifests.plausible import describe
    from manifests.validate import check
    from sgi2v.errors import ConfigError

    config = request.config
    rows = table.slice(0, request.wanted.limit)
    findings = check(rows, config.manifest, access=config.execution.access, video_size=config.video_size)
    warnings = describe(findings.warnings)
    if warnings:
        raise ConfigError("\n".join(["rows look wrong, and --strict refuses them:", *warnings]))
