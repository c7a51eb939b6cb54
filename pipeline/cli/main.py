"""The command line: the only file that imports every folder, and only once a command needs it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from pipeline.cli import manifest as manifest_commands
from pipeline.cli import options

EXIT_FAILED_ROWS = 1
EXIT_BAD_INPUT = 2
EXIT_LOST = 3
EXIT_INTERRUPTED = 130

Parameters = ParamSpec("Parameters")

app = typer.Typer(
    name="sgi2v-batch",
    help="Make videos whose objects follow given paths, over whole manifests of images (SG-I2V on Stable Video "
    "Diffusion), with a motion-fidelity measurement of each.\n\nExample: sgi2v-batch run manifest.parquet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(manifest_commands.app, name="manifest")


@app.command(epilog="Example: sgi2v-batch run manifest.parquet --output s3://bucket/moves --height 576 --width 1024")
def run(
    manifest: options.Manifest,
    output: options.Output = None,
    model: options.Model = None,
    revision: options.Revision = None,
    dtype: options.DType = None,
    config: options.Config = None,
    preset: options.Preset = None,
    workers: options.Workers = None,
    gpus_per_worker: options.GpusPerWorker = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    steps: options.Steps = None,
    seed: options.Seed = None,
    limit: options.Limit = None,
    retry_failed: options.RetryFailed = False,
    unguided: options.Unguided = False,
    sample_timeout: options.SampleTimeout = None,
    memory: options.Memory = None,
    compile: options.Compile = False,
    untrusted: options.Untrusted = False,
    root: options.Roots = None,
    take_over: options.TakeOver = False,
    dry_run: options.DryRun = False,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster to attach to.  [default: Ray on this machine]")
    ] = None,
) -> None:
    """Generate every video of a manifest, measure it, and record it; start again to go on where it stopped."""
    from manifests.io import read_manifest
    from pipeline.config import read_toml, resolve

    flags = options.by_section(locals())
    if address is not None:
        flags.setdefault("run", {})["address"] = address
    table = read_manifest(manifest)
    settled, checkpoint = resolve(manifest, output, read_toml(config) if config else {}, flags, unguided, not dry_run)
    if dry_run:
        from pipeline.cli.dry_run import dry_run as describe

        raise typer.Exit(describe(settled, checkpoint, table, retry_failed, limit))
    from pipeline.cli.progress import observer_for
    from pipeline.cli.summary import print_summary
    from pipeline.output.catalog import count
    from pipeline.run import run as run_all

    with observer_for(settled) as observer:
        result = run_all(settled, table, retry_failed, limit, observer, take_over)
    print_summary(result)
    if result.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if count(result.index, "failed"):
        raise typer.Exit(EXIT_FAILED_ROWS)


@app.command(
    epilog="Example: sgi2v-batch submit s3://bucket/manifest.parquet --output s3://bucket/moves "
    "--address http://HEAD:8265 --env AWS_PROFILE"
)
def submit(
    manifest: options.Manifest,
    address: Annotated[str, typer.Option("--address", help="URL of the Ray cluster's dashboard: http://HEAD:8265.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="URL or shared folder for the results; a job has no default.")
    ] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    dtype: options.DType = None,
    config: options.Config = None,
    preset: options.Preset = None,
    workers: options.Workers = None,
    gpus_per_worker: options.GpusPerWorker = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    steps: options.Steps = None,
    seed: options.Seed = None,
    limit: options.Limit = None,
    retry_failed: options.RetryFailed = False,
    unguided: options.Unguided = False,
    sample_timeout: options.SampleTimeout = None,
    memory: options.Memory = None,
    compile: options.Compile = False,
    untrusted: options.Untrusted = False,
    root: options.Roots = None,
    take_over: options.TakeOver = False,
    dry_run: options.DryRun = False,
    shared_path: Annotated[
        list[str] | None,
        typer.Option(
            "--shared-path", metavar="DIR", help="A folder that every node sees at the same path; repeatable."
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="KEY[=VALUE]",
            help="Environment variable of the job, with its value here if none is given; repeatable. Whoever can read "
            "the dashboard can read it.",
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job: say how, and return.")] = False,
) -> None:
    """Run a manifest as a job of a Ray cluster, and follow it; the exit code is the run's."""
    flags = dict(locals())
    for own in ("address", "shared_path", "env", "no_wait"):
        del flags[own]
    from jobs.submit import SubmissionError, environment, visible_locations
    from jobs.submit import submit as submit_job
    from pipeline.flow.session import quiet_ray
    from sgi2v.errors import ConfigError

    quiet_ray()
    try:
        flags |= visible_locations(_locations(manifest, output, model, config), shared_path or [])
        file = config if config is not None and "://" not in config else None
        if file is not None:
            flags["config"] = Path(file).name
        words = options.command_line(flags.pop("manifest"), flags)
        code = submit_job(address, words, environment(env or []), file, wait=not no_wait)
    except SubmissionError as error:
        raise ConfigError(str(error)) from error
    raise typer.Exit(code)


def _locations(manifest: str, output: str | None, model: str | None, config: str | None) -> dict[str, str]:
    """Where a run reads and writes, by what it is. Raises ConfigError without an output."""
    from pipeline.config import read_toml
    from sgi2v.config import ModelConfig
    from sgi2v.errors import ConfigError

    if output is None:
        raise ConfigError("a job needs --output, such as s3://bucket/name: the default folder is on one machine only")
    source = model or (read_toml(config) if config else {}).get("model", {}).get("source", ModelConfig.source)
    is_place = "://" in source or source.startswith((".", "/", "~")) or Path(source).exists()
    return {"manifest": manifest, "output": output, **({"model": source} if is_place else {})}


@app.command(epilog="Example: sgi2v-batch status s3://bucket/moves")
def status(output: Annotated[str, typer.Argument(help="Folder or URL of a run's results.")]) -> None:
    """Say how a run stands, from its output alone, while it goes on or after."""
    from pipeline.cli.summary import print_status

    print_status(output)


@app.command(epilog="Example: sgi2v-batch verify s3://bucket/moves --repair")
def verify(
    output: Annotated[str, typer.Argument(help="Folder or URL of a run's results.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Take flawed samples and orphans away; the next run makes them again.")
    ] = False,
) -> None:
    """Hold every record, video and table of a run against each other; exit 1 where something is wrong or left."""
    from pipeline.inspect.verify import repair as take_away
    from pipeline.inspect.verify import verify as check

    verdict = check(output)
    for flaw in verdict.flaws:
        typer.echo(str(flaw))
    if verdict.active_run:
        told = "videos without a record and tables that lag behind are no flaws"
        typer.echo(f"a run is at work on it ({verdict.active_run}): {told}")
    if verdict.manifest_problem:
        typer.echo(f"counts were held against run.json alone: {verdict.manifest_problem}")
    count = f"{verdict.committed} made, {verdict.failed} failed, {verdict.left} left, of {verdict.rows} rows"
    if verdict.is_complete:
        typer.echo(f"{count}: everything is there and whole")
        return
    told = f"{len(verdict.flaws)} flaws" if verdict.flaws else "no flaws, but the run is not finished"
    typer.echo(f"{count}: {told}")
    if repair and verdict.flaws:
        again = take_away(output, verdict.flaws)
        typer.echo(f"repaired: {again} samples will be made again by the next run")
    raise typer.Exit(EXIT_FAILED_ROWS)


@app.command(epilog="Example: sgi2v-batch replay s3://bucket/moves car-17")
def replay(
    output: Annotated[str, typer.Argument(help="Folder or URL of a run's results.")],
    sample_id: Annotated[str, typer.Argument(help="Which sample.")],
) -> None:
    """Make one sample again, without Ray, and say whether it is the same to the bit; exit 1 where it is not."""
    import torch

    from pipeline.inspect.replay import replay as make_again
    from sgi2v.errors import ConfigError, SampleError

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        made = make_again(output, sample_id, device)
    except SampleError as error:
        raise ConfigError(f"{sample_id} cannot be made again: {error}") from error
    if made.identical:
        typer.echo(f"{sample_id}: bit-identical")
        return
    there, here = f"{made.record.device}, {made.record.dtype}", device
    typer.echo(f"{sample_id}: not bit-identical (made on {there}; now on {here})")
    if device == "cuda" and made.record.guided:
        typer.echo("  a GPU may add up a guided step's gradients in another order each time")
    typer.echo(f"  mean difference to the stored video: {made.mean_difference:.2f} of 255")
    raise typer.Exit(EXIT_FAILED_ROWS)


@app.command(epilog="Example: sgi2v-batch sheet manifest.parquet runs/manifest -o sheet.png")
def sheet(
    manifest: options.Manifest,
    outputs: Annotated[list[str], typer.Argument(metavar="OUTPUT...", help="Results of one or more runs of it.")],
    picture: Annotated[Path, typer.Option("--output", "-o", help="Picture to write.")] = Path("sheet.png"),
    frames: Annotated[int, typer.Option("--frames", min=2, help="Frames shown of each video.")] = 5,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Only the first N rows of the manifest.")] = 12,
) -> None:
    """Draw what was asked of each sample beside what runs made of it, on one picture."""
    from manifests.draw import save_picture
    from manifests.io import read_manifest
    from pipeline.inspect.sheet import contact_sheet

    drawn = contact_sheet(read_manifest(manifest).slice(0, limit), manifest, outputs, frames)
    save_picture(drawn, picture)
    typer.echo(f"wrote {picture}")


@app.command(epilog="Example: sgi2v-batch bench --model embedded --json bench.json")
def bench(
    model: options.Model = None,
    revision: options.Revision = None,
    dtype: options.DType = None,
    config: options.Config = None,
    preset: options.Preset = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    steps: options.Steps = None,
    memory: options.Memory = None,
    compile: options.Compile = False,
    unguided: options.Unguided = False,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Videos to measure, after one to warm up.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure seconds, FLOP/s and memory of a sample on this machine, phase by phase; no manifest, no Ray."""
    import json

    from pipeline.config import read_toml, resolve
    from sgi2v.bench import benchmark, lines
    from sgi2v.model import quiet_libraries

    flags = options.by_section(locals())
    settled, _ = resolve("bench.parquet", None, read_toml(config) if config else {}, flags, unguided)
    quiet_libraries()
    execution = settled.execution
    found = benchmark(
        settled.model,
        settled.sampler,
        settled.guidance,
        samples,
        execution.threads_per_worker,
        execution.memory,
        execution.compile,
    )
    typer.echo("\n".join(lines(found)))
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


def _reporting(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Turn the project's errors into one message and an exit code; a traceback is for bugs only."""

    @wraps(command)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        from pipeline.output.local_disk import full_disk_as_storage_error
        from sgi2v.errors import ClusterError, SGI2VError, StorageError

        try:
            with full_disk_as_storage_error():
                command(*args, **kwargs)
        except SGI2VError as error:
            typer.echo(f"error: {error}", err=True)
            sys.exit(EXIT_LOST if isinstance(error, (StorageError, ClusterError)) else EXIT_BAD_INPUT)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)

    return guarded


@_reporting
def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job or pod ends as cleanly as Ctrl-C
    app()


if __name__ == "__main__":
    main()
