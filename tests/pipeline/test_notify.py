"""`run --notify`: who is told what at the end of a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import notify
from pipeline.cli.options import RunOptions, command_line
from sgi2v.errors import ClusterError
from tests.pipeline.in_process import run_tiny_here, without_ray
from tests.pipeline.runs import row, write_good, write_rows

SECRET = "T0P-s3cret"


@pytest.fixture(autouse=True)
def bare_loop() -> Iterator[None]:
    with without_ray():
        yield


class Hook:
    """A web hook on this machine."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.answers: list[int] = []
        """Status codes of the next answers; then 200."""
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = hook.answers.pop(0) if hook.answers else 200
                if code == 200:
                    hook.told.append({"path": self.path, **json.loads(body)})
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/{SECRET}"


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()


def test_a_web_hook_gets_the_summary(tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_good(tmp_path, 1)
    write_rows(manifest, [row("s00"), row("missing")])
    monkeypatch.setenv("HOOK", hook.url)
    hook.answers = [503]
    ended = run_tiny_here(manifest, tmp_path / "out", "--notify", "$HOOK")
    assert ended.returncode == 1
    (told,) = hook.told
    assert told["path"] == f"/services/{SECRET}"
    assert told["text"] == (
        f"sgi2v-batch finished (exit code 1): {tmp_path / 'out'}, 1 made, 1 failed, 0 left of 2 rows"
    )
    names = ("outcome", "exit_code", "made", "failed", "left", "failed_by_code", "error", "lost_nodes")
    assert [told[name] for name in names] == ["finished", 1, 1, 1, 0, {"image_missing": 1}, None, 0]
    assert SECRET not in ended.stdout + ended.stderr
    assert not [file for file in (tmp_path / "out").rglob("*.json*") if SECRET in file.read_text()]


def test_a_command_gets_the_summary_as_variables_and_input(tmp_path: Path) -> None:
    command = f"cat > {tmp_path}/told.json; echo $SGI2V_OUTCOME $SGI2V_EXIT_CODE $SGI2V_MADE > {tmp_path}/line"
    assert run_tiny_here(write_good(tmp_path, 2), tmp_path / "out", "--notify", command).returncode == 0
    assert (tmp_path / "line").read_text() == "finished 0 2\n"
    assert json.loads((tmp_path / "told.json").read_text())["rows"] == 2


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("http://127.0.0.1:9/T0P-s3cret", "127.0.0.1 was not told, after 3 attempts (ConnectionError)"),
        ("exit 7 # T0P-s3cret", "the command ended with 7"),
        ("sleep 60; echo T0P-s3cret", "the command took more than 0.1 s and was stopped"),
    ],
)
def test_a_failure_is_said_and_changes_nothing(
    target: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "COMMAND_TIMEOUT_S", 0.1)
    monkeypatch.setattr("urllib3.util.retry.Retry.get_backoff_time", lambda self: 0)
    ended = run_tiny_here(write_good(tmp_path, 1), tmp_path / "out", "--notify", target)
    assert ended.returncode == 0
    assert f"--notify: {problem}. The run itself is not affected" in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr


def test_a_hook_that_refuses_is_said(tmp_path: Path, hook: Hook) -> None:
    hook.answers = [404]
    ended = run_tiny_here(write_good(tmp_path, 1), tmp_path / "out", "--notify", hook.url)
    assert ended.returncode == 0
    assert "--notify: 127.0.0.1 answered with HTTP 404" in ended.stderr


def test_a_run_that_an_error_ends_is_told_too(tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise ClusterError("the Ray cluster failed, with token=abc")

    monkeypatch.setattr("pipeline.run.flow", lost)
    assert run_tiny_here(write_good(tmp_path, 1), tmp_path / "out", "--notify", hook.url).returncode == 3
    (told,) = hook.told
    assert (told["outcome"], told["exit_code"]) == ("failed", 3)
    assert told["error"] == "the Ray cluster failed, with token=***"


@pytest.mark.parametrize(
    ("target", "reason"),
    [("", "empty"), ("$NOT_SET_HERE", "NOT_SET_HERE, which is not set"), ("s3://b/x", "s3://"), ("https:///x", "host")],
)
def test_a_target_that_cannot_be_told_is_refused_before_any_work(target: str, reason: str, tmp_path: Path) -> None:
    ended = run_tiny_here(write_good(tmp_path, 1), tmp_path / "out", "--notify", target)
    assert ended.returncode == 2
    assert reason in ended.stderr
    assert not (tmp_path / "out").exists()


def test_submit_passes_it_on() -> None:
    words = command_line("s3://b/m.parquet", RunOptions(notify="$HOOK", shard="1/3"))
    assert words[-4:] == ["--shard", "1/3", "--notify", "$HOOK"]
