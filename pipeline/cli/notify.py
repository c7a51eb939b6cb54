"""`run --notify`: tell a web hook or a command how a run has ended. It never changes the run's exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pipeline.cli import exit_codes
from pipeline.cli.lines import print_progress
from pipeline.config import RunConfig
from pipeline.output.catalog import count, failed_by_code, mean_fidelity
from pipeline.run import RunResult
from sgi2v.errors import ConfigError
from sgi2v.wording import counted

HOOK_TIMEOUT_S = 10.0
"""Seconds that a web hook may take to answer."""
HOOK_ATTEMPTS = 3
"""Attempts at a web hook that does not answer or has a fault."""
COMMAND_TIMEOUT_S = 60.0
"""Seconds that a command may take."""
PREFIX = "SGI2V_"
"""What the names of a command's variables begin with."""

Summary = dict[str, Any]
"""How a run has ended, as docs/monitoring.md describes it."""


def check_target(target: str) -> None:
    """Raise ConfigError for a target that can be told nothing; at the end of the run that would be too late."""
    if not target.strip():
        raise ConfigError("--notify is empty: give a URL, a command, or leave it out")
    name = re.fullmatch(r"\$\{?(\w+)\}?", target.strip())
    if name is not None and not os.environ.get(name[1]):
        raise ConfigError(f"--notify names the environment variable {name[1]}, which is not set here")
    protocol = re.match(r"(\w+)://", _expanded(target))
    if protocol is not None and protocol[1].lower() not in {"http", "https"}:
        raise ConfigError(f"--notify takes http:// and https:// URLs and commands, and not {protocol[1]}://")
    if _is_url(_expanded(target)) and not urlsplit(_expanded(target)).hostname:
        raise ConfigError("--notify is a URL without a host")


class Notification:
    """What is sent at the end of a run."""

    def __init__(self, target: str | None, config: RunConfig) -> None:
        """target: of --notify; None sends nothing."""
        self._target = target
        self._config = config
        self._is_sent = False

    def send(self, result: RunResult | None, exit_code: int, error: str | None = None) -> None:
        """Send it, once, and say so on standard error if it fails. result: None if the run has none."""
        if self._target is None or self._is_sent:
            return
        self._is_sent = True
        url = _expanded(self._target)
        try:
            summary = summary_of(self._config, result, exit_code, error)
            # a shell expands the variables of a command itself
            problem = _post(url, summary) if _is_url(url) else _run(self._target, summary)
        except Exception as failure:  # of many kinds; a message could hold the target, which may be a secret
            problem = f"it failed with {type(failure).__name__}"
        if problem is not None:
            print_progress(f"--notify: {problem}. The run itself is not affected")

    def send_lost(self, message: str) -> None:
        """Send it for a run that ends because Ray is lost."""
        self.send(None, exit_codes.LOST, message)


@contextmanager
def notifying(target: str | None, config: RunConfig) -> Iterator[Notification]:
    """Send a notification if the block ends with an error; else the block sends it."""
    notification = Notification(target, config)
    try:
        yield notification
    except BaseException as error:
        notification.send(None, exit_codes.of_error(error), str(error) or type(error).__name__)
        raise


def summary_of(config: RunConfig, result: RunResult | None, exit_code: int, error: str | None) -> Summary:
    """The summary of a run. `text` is what chat services show."""
    from manifests.access import display_uri, without_secrets

    outcome = {0: "finished", exit_codes.FAILED_ROWS: "finished", exit_codes.INTERRUPTED: "interrupted"}
    summary: Summary = {
        "outcome": outcome.get(exit_code, "failed"),
        "exit_code": exit_code,
        "output": display_uri(config.output),
        "manifest": display_uri(config.manifest),
        "shard": config.shard,
        "error": None if error is None else without_secrets(error),
    }
    if result is not None:
        finished, means = result.finished, mean_fidelity(result.index)
        failed = count(finished, "failed")
        summary |= {
            "rows": result.plan.total,
            "done_before": result.plan.done,
            "made": finished.num_rows - failed,
            "failed": failed,
            "left": result.plan.todo.num_rows - finished.num_rows,
            "failed_by_code": dict(failed_by_code(finished)),
            "seconds": round(result.seconds, 1),
            "lost_nodes": result.lost_nodes,
            "objmc_px": means.objmc_px,
            "control_gain": means.control_gain,
        }
    return {"text": _text(summary), **summary}


def _text(summary: Summary) -> str:
    where = f"sgi2v-batch {summary['outcome']} (exit code {summary['exit_code']}): {summary['output']}"
    if "made" in summary:
        rows = counted(summary["rows"], "row")
        return f"{where}, {summary['made']} made, {summary['failed']} failed, {summary['left']} left of {rows}"
    return f"{where}: {summary['error']}"


def _expanded(target: str) -> str:
    return os.path.expandvars(target.strip())


def _is_url(target: str) -> bool:
    return re.match(r"(?i)https?://", target) is not None


def _post(url: str, summary: Summary) -> str | None:
    """POST the summary as JSON. Returns what is wrong, without the URL's path, which may be a secret."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    host = urlsplit(url).hostname
    retries = Retry(
        HOOK_ATTEMPTS - 1, backoff_factor=1.0, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None
    )
    with requests.Session() as session:
        for protocol in ("http://", "https://"):
            session.mount(protocol, HTTPAdapter(max_retries=retries))
        try:
            answer = session.post(url, json=summary, timeout=HOOK_TIMEOUT_S)
        except requests.RequestException as error:
            return f"{host} was not told, after {counted(HOOK_ATTEMPTS, 'attempt')} ({type(error).__name__})"
    return None if answer.ok else f"{host} answered with HTTP {answer.status_code}"


def _run(command: str, summary: Summary) -> str | None:
    """Run a shell command with the summary as JSON on its input and in its environment. Returns what is wrong."""
    plain = {name: value for name, value in summary.items() if isinstance(value, (str, int, float))}
    variables = {f"{PREFIX}{name.upper()}": str(value) for name, value in plain.items()}
    try:
        ended = subprocess.run(
            command,
            shell=True,
            input=json.dumps(summary),
            text=True,
            env={**os.environ, **variables},
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the command took more than {COMMAND_TIMEOUT_S:g} s and was stopped"
    return None if ended.returncode == 0 else f"the command ended with {ended.returncode}"
