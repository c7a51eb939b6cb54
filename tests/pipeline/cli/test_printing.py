"""What the command line prints: secrets masked, control characters escaped, and nobody needs to read it."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.cli.summary  # so that a test replaces a function of it  # noqa: F401
from pipeline.cli import exit_codes
from pipeline.cli.main import exit_code_of, main
from pipeline.cli.printing import SafeStream, drawing, safe_streams
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import TINY, records, row, write_good, write_rows

SECRET = "hunter2"
URL = f"http://me:{SECRET}@127.0.0.1:9/a.png?size=10,20&token={SECRET}"
HOSTILE = "a\x1b[2J\n[1/1] s00 done\r\u202e.png"


class Failing(io.StringIO):
    """A stream whose writes fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError(errno.ENOSPC, "No space left on device"),
        BlockingIOError(errno.EAGAIN, "write could not complete without blocking"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_a_stream_that_fails_raises_nothing(error: Exception) -> None:
    stream = SafeStream(Failing(error))
    print("a", file=stream, flush=True)
    print("b", end="", file=stream)
    stream.end()


def test_a_full_disk_takes_text_again_when_there_is_room() -> None:
    below = Failing(OSError(errno.ENOSPC, "No space left on device"))
    stream = SafeStream(below)
    print("lost", file=stream)
    below.error = None
    print("kept", file=stream)
    assert below.getvalue() == "kept\n"


def test_a_closed_pipe_is_replaced_so_that_the_flush_at_exit_works() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        stream = SafeStream(pipe)
        print("nobody reads this", file=stream)
        stream.end()
        pipe.write("nor this")
        pipe.flush()


def test_text_that_the_stream_cannot_encode_is_shown_as_escapes() -> None:
    below = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("日本 \ud83d", file=SafeStream(below))
    assert below.buffer.getvalue() == b"\\u65e5\\u672c \\ud83d\n"


def test_a_secret_that_is_written_in_parts_is_masked() -> None:
    below = io.StringIO()
    print("https://h/a?token=", SECRET[:3], SECRET[3:], sep="", file=SafeStream(below))
    assert below.getvalue() == "https://h/a?***\n"


def test_layout_and_the_redrawing_of_progress_bars_pass_and_other_control_characters_do_not() -> None:
    below = io.StringIO()
    stream = SafeStream(below)
    for part in ("\r 10%|#", "\x1b[A\x1b[A", "\n\ta\x1b[31m\rb\n"):
        stream.write(part)
    stream.flush()
    assert below.getvalue() == "\r 10%|#\x1b[A\x1b[A\n\ta\\x1b[31m\\rb\n"


def test_what_draws_on_a_terminal_may_move_its_cursor() -> None:
    below = io.StringIO()
    print("\x1b[2K", f"https://h/a?{SECRET}", file=drawing(SafeStream(below)))  # type: ignore[arg-type]
    assert below.getvalue() == "\x1b[2K https://h/a?***\n"


def test_closed_standard_streams_are_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with safe_streams():
        print("to nowhere")
        assert not sys.stdout.isatty()
    assert sys.stdout is None


def panic() -> None:
    raise BaseException("a panic of a Rust library")


def eof() -> None:
    raise EOFError("Ran out of input")


def pipe_of_a_library() -> None:
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    "bug", [panic, eof, pipe_of_a_library, lambda: sys.exit(1), lambda: sys.exit("no"), lambda: int("x")]
)
def test_a_bug_never_ends_with_the_code_of_failed_rows(
    bug: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.cli.watch.read_status", lambda output: bug())
    ended = here("status", tmp_path)
    assert ended.returncode == exit_codes.LOST == 3
    assert "Traceback (most recent call last)" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: the lines above show a fault of sgi2v-batch. Please report")


def test_a_secret_in_a_traceback_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError(f"cannot open {URL}")

    with safe_streams():
        assert exit_code_of(fail) == exit_codes.LOST
    text = capsys.readouterr().err
    assert SECRET not in text
    assert "cannot open http://***@127.0.0.1:9/a.png?***" in text


@pytest.mark.parametrize(
    "words",
    [
        ("run", "{good}", "-o", "{out}", "--model", f"http://me:{SECRET}@127.0.0.1:9/svd?token={SECRET}"),
        ("run", "{good}", "-o", "{out}", "--height", URL),
        ("run", "{good}", URL),
        ("manifest", "validate", URL.replace("a.png", "m.parquet")),
        ("manifest", "validate", "{bad}"),
        ("status", f"s3://KEY:{SECRET}@bucket/moves"),
        ("status", f"no-such://me:{SECRET}@host/moves"),
        ("submit", "s3://b/m", "-o", "s3://b/o", "--address", f"me:{SECRET}@host"),
        ("submit", "s3://b/m", "-o", "s3://b/o", "--address", "http://127.0.0.1:9", "--env", f"={SECRET}"),
    ],
)
def test_no_command_prints_a_secret(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    places = {"good": write_good(tmp_path, 1), "out": tmp_path / "out"}
    places["bad"] = write_rows(tmp_path / "bad.parquet", [row("s00", image=URL)])
    ended = here(*(word.format(**places) for word in words))
    assert ended.returncode in (exit_codes.BAD_INPUT, exit_codes.LOST)
    assert "Traceback" not in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert ended.stdout + ended.stderr


def test_names_from_a_manifest_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    manifest = write_rows(tmp_path / "m.parquet", [row("s00", image=HOSTILE), row(f"s01{HOSTILE}")])
    ended = here("manifest", "validate", manifest)
    (tmp_path / "n").mkdir()
    with without_ray():
        ran = run_tiny_here(write_rows(tmp_path / "n.parquet", [row("s00", image=HOSTILE)]), tmp_path / "out")
    assert (ended.returncode, ran.returncode) == (exit_codes.BAD_INPUT, exit_codes.FAILED_ROWS)
    for text in (ended.stdout, ended.stderr, ran.stdout, ran.stderr):
        assert not {"\x1b", "\r", "\u202e"} & set(text)
        assert "\n[1/1] s00 done" not in text
    assert "a\\x1b[2J\\n[1/1] s00 done\\r\\u202e.png" in ran.stderr
    assert records(tmp_path / "out")


def test_a_run_whose_reader_is_gone_ends_as_if_it_were_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sgi2v-batch", "run", str(write_good(tmp_path, 3)), "--output", str(tmp_path / "out"), *TINY]
    monkeypatch.setattr(sys, "argv", words)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Failing(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    with without_ray(), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert len(records(tmp_path / "out")) == 3
