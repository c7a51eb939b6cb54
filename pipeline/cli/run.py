"""`run` and `submit`: a manifest to committed results, here or as a job of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import exit_codes
from pipeline.cli.help import GroupedCommand
from pipeline.cli.options import (
    LocalRunOptions,
    RunOptions,
    command_line,
    errors_name_flags,
    settings_file_of,
    settings_of,
    settle,
    takes,
)

if TYPE_CHECKING:
    import pyarrow as pa

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
    report: bool


def request_of(manifest: str, options: LocalRunOptions) -> Request:
    """Settle the options of `run`. Raises ConfigError or ModelError."""
    config, checkpoint = settle(manifest, options.output, options, weights=not options.dry_run)
    from pipeline.plan import Wanted

    wanted = Wanted(**{field.name: getattr(options, field.name) for field in fields(Wanted)})
    return Request(config, checkpoint, wanted, options.take_over, options.dry_run, options.strict, options.report)


@app.command(
    cls=GroupedCommand,
    epilog="Example: sgi2v-batch run manifest.parquet --output s3://bucket/moves --height 576 --width 1024",
)
@takes(LocalRunOptions)
def run(manifest: Manifest, options: LocalRunOptions) -> None:
    """Make and measure every video of a manifest. The same command goes on where an earlier run stopped."""
    from manifests.io import load_manifest

    loaded = load_manifest(manifest)
    request = request_of(manifest, options)
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
    from pipeline.cli.progress import observer_for
    from pipeline.cli.summary import print_summary
    from pipeline.run import run as run_all

    with observer_for(request.config) as observer:
        result = run_all(request.config, loaded, request.wanted, observer, request.take_over)
    print_summary(result)
    if result.interrupted:
        raise typer.Exit(exit_codes.INTERRUPTED)
    if request.report:
        from pipeline.cli.report import write_report

        write_report(request.config.output)
    if result.failed_rows:
        raise typer.Exit(exit_codes.FAILED_ROWS)


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


@app.command(
    cls=GroupedCommand,
    epilog="Example: sgi2v-batch submit s3://bucket/manifest.parquet --output s3://bucket/moves "
    "--address http://HEAD:8265 --env AWS_PROFILE",
)
@takes(RunOptions)
def submit(
    manifest: Manifest,
    address: Annotated[str, typer.Option(help="URL of the Ray cluster's dashboard: http://HEAD:8265.")],
    options: RunOptions,
    shared_path: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="A folder that every node sees at the same path; repeatable."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]",
            help="Environment variable of the job; without a value, the value here; repeatable. Whoever can read the "
            "dashboard can read it.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end.")] = True,
) -> None:
    """Run a manifest as a job of a Ray cluster, and follow it; the exit code is the run's."""
    from dataclasses import replace

    from jobs.submit import SubmissionError, environment, visible_locations
    from jobs.submit import submit as submit_job
    from pipeline.flow.session import quiet_ray
    from sgi2v.errors import ConfigError

    quiet_ray()
    locations = _locations(manifest, options)
    try:
        visible = visible_locations(locations, shared_path or [])
        config = options.config
        local_config = config if config is not None and "://" not in config else None
        if local_config is not None:
            config = Path(local_config).name
        model = visible.get("model", options.model)
        options = replace(options, config=config, output=visible["output"], model=model)
        words = command_line(visible["manifest"], options)
        code = submit_job(address, words, environment(env or []), local_config, wait=wait)
    except SubmissionError as error:
        raise ConfigError(str(error)) from error
    raise typer.Exit(code)


def _locations(manifest: str, options: RunOptions) -> dict[str, str]:
    """Where a run reads and writes, by option. Raises ConfigError without an output, and for a bad setting."""
    from pipeline.config import check_settings, merge
    from sgi2v.config import ModelConfig
    from sgi2v.errors import ConfigError

    if options.output is None:
        raise ConfigError("a job needs --output, such as s3://bucket/name: the default folder is on one machine only")
    settings = merge(settings_file_of(options), settings_of(options))
    with errors_name_flags(options):
        check_settings(settings)
    source = ModelConfig(**settings["model"]).source
    is_place = "://" in source or source.startswith((".", "/", "~")) or Path(source).exists()
    return {"manifest": manifest, "output": options.output, **({"model": source} if is_place else {})}
