"""The command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from pipeline.cli import bench, evaluate, exit_codes, export, manifest, merge, outputs, report, run, select, submit
from pipeline.cli.printing import safe_streams
from pipeline.output.local_disk import full_disk_as_storage_error
from sgi2v.errors import SGI2VError

USAGE_ERROR: Any = typer.BadParameter.__base__
"""Every error of a command line; Typer itself exports only this one of its subclasses."""
BUG = (
    "error: the lines above show a fault of sgi2v-batch. Please report them with the command that you ran. "
    "Committed samples are safe"
)

app = typer.Typer(
    name="sgi2v-batch",
    help="Make videos whose objects follow given paths, over whole manifests of images (SG-I2V on Stable Video "
    "Diffusion), and measure how well each one does.\n\nExample: sgi2v-batch run manifest.parquet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(run.app)
app.add_typer(submit.app)
app.add_typer(outputs.app)
app.add_typer(evaluate.app)
app.add_typer(merge.app)
app.add_typer(report.app)
app.add_typer(bench.app)
app.add_typer(select.app)
app.add_typer(export.app)
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


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command that returns its exit code or None, and give every end its code and its message.

    A traceback is for bugs only, which never end with the code of failed rows.
    """
    try:
        with full_disk_as_storage_error():
            code = command()
    except SGI2VError as error:
        typer.echo(f"error: {error}", err=True)
        return exit_codes.of_error(error)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except USAGE_ERROR as error:
        error.show()
        return exit_codes.BAD_INPUT
    except BaseException as error:  # also what does not derive from Exception: SystemExit, a panic of a Rust library
        if isinstance(error, SystemExit) and not error.code:
            return 0
        traceback.print_exception(error)
        typer.echo(BUG, err=True)
        return exit_codes.LOST
    return code if isinstance(code, int) else 0


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt: a stopped job or pod ends as cleanly as Ctrl-C.

    SIGINT also where it was ignored at the start, as a shell does for `command &` in a script: such a run could be
    stopped by SIGTERM only. An ignored SIGHUP stays so, because nohup asks for that.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in signals}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)  # a closed terminal sends it twice; the second would cut the end short
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the console script."""
    with safe_streams(), interruptible():
        code = exit_code_of(lambda: app(standalone_mode=False))
    sys.exit(code)


if __name__ == "__main__":
    main()
