"""Submits a command line as a job of a Ray cluster and follows it. Refuses locations that the cluster cannot see."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

EXIT_LOST = 3
EXIT_INTERRUPTED = 130
CONNECT_TIMEOUT_S = 10.0
STOP_WAIT_S = 60
"""Seconds that a stopped job has to write its tables; Ray's own 3 s are too short for a remote store."""
RECONNECT_AFTER_S = 1.0
NOT_FOUND = 127
"""Exit code of a shell that does not find the program."""
DISTRIBUTION = "sgi2v-batch"
SUBMITTED_BY = "SGI2V_BATCH_SUBMITTED_BY"
"""Environment variable of a job: the version of this package that has submitted it."""

_ON_ONE_NODE = frozenset({"file", "local", "memory"})


class SubmissionError(Exception):
    """A job cannot be submitted or followed; the message says what to change."""


def visible_locations(locations: Mapping[str, str], shared: Sequence[str]) -> dict[str, str]:
    """The locations as every node of a cluster sees them: remote URLs unchanged, paths in shared folders absolute.

    locations: option -> location. shared: folders that every node sees at the same path. Raises SubmissionError,
    which lists every location that only this machine sees.
    """
    roots = [_local_path(folder) or folder for folder in shared]
    visible: dict[str, str] = {}
    refused: list[str] = []
    for option, location in locations.items():
        path = _local_path(location)
        if path is not None and not any(Path(path).is_relative_to(root) for root in roots):
            refused.append(f"  {option}: {location}")
        visible[option] = path or location
    if refused:
        raise SubmissionError(
            "the cluster cannot see these locations, which are on this machine:\n"
            + "\n".join(refused)
            + "\nGive URLs such as s3://bucket/name, or name a folder that every node sees at the same path "
            "(NFS, say) with --shared-path."
        )
    return visible


def _local_path(location: str) -> str | None:
    """The absolute path of a local location, the URL itself for `memory://`, None for a remote location."""
    protocols = re.findall(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    if not protocols:
        return os.path.normpath(Path(os.path.expanduser(location)).absolute())  # noqa: PTH111 - Path raises for `~nobody`
    if _ON_ONE_NODE.isdisjoint(protocol.lower() for protocol in protocols):
        return None
    plain = re.fullmatch(r"(?i:file|local)://(?:localhost)?(/.*)", location)
    return os.path.normpath(unquote(plain[1])) if plain else location


def environment(assignments: Sequence[str]) -> dict[str, str]:
    """The variables of `KEY=VALUE`, or of `KEY` with its value here. Raises SubmissionError for a KEY not set here."""
    variables: dict[str, str] = {}
    for assignment in assignments:
        key, given, value = assignment.partition("=")
        if not key:
            raise SubmissionError("an --env has no name before its `=`: write KEY or KEY=VALUE")
        if not given and key not in os.environ:
            raise SubmissionError(f"--env {key}: {key} is not set here; set it, or write --env {key}=VALUE")
        variables[key] = value if given else os.environ[key]
    return variables


def other_version(environ: Mapping[str, str]) -> str | None:
    """What is wrong with a job that another version of this package has submitted; None if nothing is.

    A job asks this itself, before it does anything: Ray tells a submitter its own version only.
    """
    here, there = version(DISTRIBUTION), environ.get(SUBMITTED_BY, "")
    if not there or _public(here) == _public(there):
        return None
    return (
        f"this cluster has {DISTRIBUTION} {here}, and {DISTRIBUTION} {there} submitted the job: use an image with "
        f"{there} on every node, or submit with version {_public(here)}, or add --ship to send the package along"
    )


def _public(text: str) -> str:
    """A version without what `--ship` adds to it."""
    return text.partition("+")[0]


def check_ray(cluster_has: str, address: str) -> None:
    """Raise SubmissionError if the package cannot run on that version of Ray."""
    from packaging.requirements import Requirement

    wanted = next(each for each in map(Requirement, requires(DISTRIBUTION) or ()) if each.name == "ray")
    if not wanted.specifier.contains(cluster_has, prereleases=True):
        raise SubmissionError(
            f"the cluster at {address} has Ray {cluster_has}, and {DISTRIBUTION} {version(DISTRIBUTION)} needs "
            f"{wanted.specifier}: start the cluster with another Ray, or with the image that `make image` builds"
        )


def submit(
    address: str,
    words: Sequence[str],
    variables: Mapping[str, str],
    file: str | None = None,
    wait: bool = True,
    ship: bool = False,
) -> int:
    """Run a command line as a job, print its output until it ends, and return its exit code.

    address: URL of the cluster's dashboard. variables: environment of the job and its workers. file: a local file
    that the job finds, by its bare name, in its working folder. wait=False returns at once. ship: send this package
    along, which pip then installs on every node.
    Raises SubmissionError if no cluster answers, or it refuses the job.
    """
    logging.disable(logging.INFO)  # Ray's notes on uploads and connections, which each of its loggers asks for
    with _explained(address), TemporaryDirectory(prefix="sgi2v-") as folder:
        client = _connect(address)
        env_vars = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), SUBMITTED_BY: version(DISTRIBUTION), **variables}
        runtime_env: dict[str, Any] = {"env_vars": env_vars}
        if file is not None or ship:
            runtime_env["working_dir"] = folder
        if file is not None:
            Path(folder, Path(file).name).write_bytes(Path(file).read_bytes())
        if ship:
            from jobs.wheel import build_wheel

            logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of files above 10 MiB
            runtime_env["pip"] = [f"${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{build_wheel(Path(folder)).name}"]
        job = client.submit_job(entrypoint=shlex.join(words), runtime_env=runtime_env)
    commands = (
        f"  follow     ray job logs {job} --address {address} --follow",
        f"  stop       ray job stop {job} --address {address}",
    )
    _say(f"submitted {job}")
    if not wait:
        _say(*commands)
        return 0
    try:
        with _explained(address):
            asyncio.run(_follow(client, job))
            code = exit_code_of_job(client.get_job_info(job))
    except KeyboardInterrupt:
        _say(f"\nStopped following {job}. The job goes on:", *commands)
        return EXIT_INTERRUPTED
    except SubmissionError as error:
        raise SubmissionError("\n".join([f"lost contact with {job}: {error}", *commands])) from error
    if code == NOT_FOUND:
        raise SubmissionError(
            f"the head of the cluster at {address} has no {DISTRIBUTION}: use an image that has it on every node "
            "(`make image`), or add --ship to send the package along"
        )
    return code


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201


def _connect(address: str) -> JobSubmissionClient:
    import requests
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise SubmissionError(f"--address {address} is not the URL of a Ray dashboard, such as http://HEAD:8265")
    # Ray's client has no timeout, and asks for the version, but does not say it
    answer = requests.get(f"{address.rstrip('/')}/api/version", headers=_token(), timeout=CONNECT_TIMEOUT_S)
    before = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    try:
        client = JobSubmissionClient(address)  # raises where the cluster wants a token
    finally:  # Ray prefers both variables to the address it is given
        os.environ.update({name: value for name, value in before.items() if value is not None})
    if answer.ok:
        check_ray(answer.json()["ray_version"], address)
    return client


def _token() -> dict[str, str]:
    """The header with the cluster's token, from where Ray's client takes it; none without token authentication."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = path.read_text().strip() if path.is_file() else ""
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn the client's errors into a SubmissionError about the cluster at this address."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        reason = re.split(r"\. |\n", str(error))[0]
        raise SubmissionError(
            f"the Ray cluster at {address} refused access ({reason}): set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
            "to the cluster's token or RAY_AUTH_TOKEN_PATH to a file that holds it (`ray get-auth-token` on its head)"
        ) from error
    except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
        raise SubmissionError(f"no Ray cluster answers at {address} ({type(error).__name__})") from error
    except RuntimeError as error:
        raise SubmissionError(f"the Ray cluster at {address} refused: {error}") from error


async def _follow(client: JobSubmissionClient, job: str) -> None:
    """Print the job's output as it comes, until the job ends. Reconnects when the connection breaks."""
    import aiohttp

    printed = 0
    while True:
        seen = 0  # each connection sends the whole output from its beginning
        try:
            async for text in client.tail_job_logs(job):
                _write(text[max(0, printed - seen) :])
                seen += len(text)
                printed = max(printed, seen)
        except (RuntimeError, aiohttp.ClientError):
            if client.get_job_status(job).is_terminal():
                return _write(client.get_job_logs(job)[printed:])
        else:
            if client.get_job_status(job).is_terminal():
                return None
        await asyncio.sleep(RECONNECT_AFTER_S)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def exit_code_of_job(info: Any) -> int:
    """The exit code of the job's command; 128 + n where signal n killed it, as in a shell; EXIT_LOST without one."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return EXIT_INTERRUPTED
    if info.driver_exit_code is None:
        print(f"{info.submission_id} failed: {info.message}", file=sys.stderr)  # noqa: T201
        return EXIT_LOST
    code = int(info.driver_exit_code)
    return code if code > 0 else 128 - code
