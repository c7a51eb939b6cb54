"""`submit`: a run as a job of a Ray cluster, or written down for one on Kubernetes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.help import GroupedCommand
from pipeline.cli.options import (
    RunOptions,
    check_condition,
    command_line,
    errors_name_flags,
    settings_file_of,
    settings_of,
    takes,
)
from pipeline.cli.run import Manifest

app = typer.Typer()


@app.command(
    cls=GroupedCommand,
    epilog="Example: sgi2v-batch submit s3://bucket/manifest.parquet --output s3://bucket/moves "
    "--address http://HEAD:8265 --env AWS_PROFILE",
)
@takes(RunOptions)
def submit(
    manifest: Manifest,
    options: RunOptions,
    address: Annotated[
        str | None, typer.Option(help="URL of the Ray cluster's dashboard: http://HEAD:8265.", show_default=False)
    ] = None,
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
    ship: Annotated[
        bool,
        typer.Option(
            "--ship/--no-ship", help="Send this package along: pip installs it on every node, for this job alone."
        ),
    ] = False,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes/--no-kubernetes", help="Write a RayJob for KubeRay; with --print and --image.")
    ] = False,
    print_: Annotated[
        bool, typer.Option("--print/--no-print", help="Print the RayJob, for `kubectl apply -f -`. Nothing is sent.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Image of the pods (`make image` builds it).", show_default=False),
    ] = None,
) -> None:
    """Run a manifest as a job of a Ray cluster, and follow it; the exit code is the run's."""
    from jobs.submit import SubmissionError
    from sgi2v.errors import ConfigError

    settings = _settings_of_job(options)
    _check_choice(kubernetes, print_, image, address, ship, wait)
    try:
        if kubernetes:
            typer.echo(_rayjob(manifest, options, settings, str(image), shared_path or [], env or []), nl=False)
            return
        code = _submit_job(manifest, options, settings, str(address), shared_path or [], env or [], wait, ship)
    except SubmissionError as error:
        raise ConfigError(str(error)) from error
    raise typer.Exit(code)


def _check_choice(
    kubernetes: bool, print_: bool, image: str | None, address: str | None, ship: bool, wait: bool
) -> None:
    """Raise ConfigError for options that do not go together."""
    from sgi2v.errors import ConfigError

    if not kubernetes:
        if print_ or image is not None:
            raise ConfigError(f"{'--print' if print_ else '--image'} has no effect without --kubernetes")
        if address is None:
            raise ConfigError(
                "give --address, the URL of a Ray cluster's dashboard (http://HEAD:8265), or --kubernetes --print"
            )
    elif not print_:
        raise ConfigError(
            "--kubernetes sends nothing itself: add --print, and pass what it prints to `kubectl apply -f -`"
        )
    elif image is None:
        raise ConfigError("a RayJob needs --image, an image in a registry of your cluster; `make image` builds one")
    elif address is not None or ship or not wait:
        given = "--address" if address is not None else "--ship" if ship else "--no-wait"
        raise ConfigError(f"{given} has no effect with --kubernetes, which prints a RayJob and sends nothing")


def _settings_of_job(options: RunOptions) -> dict[str, dict[str, Any]]:
    """The settings of the file and of the options. Raises ConfigError without an output, and for a bad setting."""
    from pipeline.config import check_settings, merge
    from sgi2v.errors import ConfigError

    if options.output is None:
        raise ConfigError("a job needs --output, such as s3://bucket/name: the default folder is on one machine only")
    settings = merge(settings_file_of(options), settings_of(options))
    check_condition(settings)
    with errors_name_flags(options):
        check_settings(settings)
    return settings


def _submit_job(
    manifest: str,
    options: RunOptions,
    settings: dict[str, dict[str, Any]],
    address: str,
    shared: list[str],
    env: list[str],
    wait: bool,
    ship: bool,
) -> int:
    from jobs.submit import environment
    from jobs.submit import submit as submit_job
    from pipeline.flow.session import quiet_ray

    quiet_ray()
    config = _local_file(options.config)
    if config is not None:
        options = replace(options, config=Path(config).name)
    words = _words_on_cluster(manifest, options, settings, shared)
    return submit_job(address, words, environment(env), config, wait=wait, ship=ship)


def _rayjob(
    manifest: str,
    options: RunOptions,
    settings: dict[str, dict[str, Any]],
    image: str,
    shared: list[str],
    env: list[str],
) -> str:
    """The RayJob of a run; it waits for GPUs unless it was told to use none, and its failed rows are no failure."""
    from jobs.rayjob import rayjob_yaml
    from jobs.submit import environment
    from pipeline.config import RunSettings
    from sgi2v.errors import ConfigError

    if (config := _local_file(options.config)) is not None:
        raise ConfigError(f"--config {config} is on this machine, and a RayJob carries no files: give it a URL")
    run = RunSettings(**settings.get("run", {}))
    gpus = 1.0 if run.gpus_per_worker is None else run.gpus_per_worker
    options = replace(options, gpus_per_worker=gpus, allow_failed=True)
    words = _words_on_cluster(manifest, options, settings, shared)
    least = run.min_workers if isinstance(run.workers, str) else 0
    return rayjob_yaml(
        words, str(options.output), image, environment(env), (least, run.max_workers), gpus, run.accelerator_type
    )


def _local_file(config: str | None) -> str | None:
    """The settings file, if it is on this machine."""
    return config if config is not None and "://" not in config else None


def _words_on_cluster(
    manifest: str, options: RunOptions, settings: dict[str, dict[str, Any]], shared: list[str]
) -> list[str]:
    """The command of the job, with locations as every node sees them. Raises SubmissionError for one that none sees."""
    from jobs.submit import visible_locations
    from sgi2v.config import ModelConfig

    source = ModelConfig(**settings["model"]).source
    is_place = "://" in source or source.startswith((".", "/", "~")) or Path(source).exists()
    locations = {"manifest": manifest, "output": str(options.output), **({"model": source} if is_place else {})}
    visible = visible_locations(locations, shared)
    options = replace(options, output=visible["output"], model=visible.get("model", options.model))
    return command_line(visible["manifest"], options)
