"""The command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec

import typer

from pipeline.cli import bench, exit_codes, manifest, outputs, run

Parameters = ParamSpec("Parameters")

app = typer.Typer(
    name="sgi2v-batch",
    help="Make videos whose objects follow given paths, over whole manifests of images (SG-I2V on Stable Video "
    "Diffusion), and measure how well each one does.\n\nExample: sgi2v-batch run manifest.parquet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(run.app)
app.add_typer(outputs.app)
app.add_typer(bench.app)
app.add_typer(manifest.app, name="manifest")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sgi2v-batch {version('sgi2v-batch')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""


def reporting(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
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
            sys.exit(exit_codes.LOST if isinstance(error, (StorageError, ClusterError)) else exit_codes.BAD_INPUT)
        except KeyboardInterrupt:
            sys.exit(exit_codes.INTERRUPTED)

    return guarded


@reporting
def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job or pod ends as cleanly as Ctrl-C
    app()


if __name__ == "__main__":
    main()
