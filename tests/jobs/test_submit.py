"""Runs as jobs of a real Ray head with token authentication."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli.main import app
from tests.jobs.conftest import RayHead
from tests.jobs.cutting_proxy import cutting_proxy
from tests.pipeline.runs import (
    FRAMES,
    RUN_TIMEOUT_S,
    SIDE,
    cli,
    records,
    row,
    table,
    until,
    write_good,
    write_rows,
)

CHECKPOINT = Path(__file__).parents[1] / "golden" / "checkpoint"
SMALL = ("--height", SIDE, "--width", SIDE, "--frames", FRAMES, "--steps", 3, "--workers", 1)
MANY = 40
"""Rows of a run that is stopped before it ends."""
OWN_OPTIONS = {"address", "shared_path", "env", "wait", "ship", "kubernetes", "print_", "image"}
JOB = "import json, sys; from jobs.submit import submit; sys.exit(submit(*json.loads(sys.argv[1])))"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that the driver and the cluster see, with a checkpoint in it."""
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    return tmp_path


def submit(head: RayHead, manifest: Path | str, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """`sgi2v-batch submit` by somebody who may get in."""
    return cli("submit", manifest, "--address", head.address, *map(str, words), **{**head.environment, **environment})


def on_shared(folder: Path, output: str) -> tuple[Any, ...]:
    return ("--output", folder / output, "--model", folder / "checkpoint", "--shared-path", folder)


def ray_job(head: RayHead, *words: str) -> subprocess.CompletedProcess[str]:
    """Ray's own command line."""
    return subprocess.run(
        ["ray", "job", words[0], "--address", head.address, *words[1:]],
        env={**os.environ, **head.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )


def job(head: RayHead, *arguments: Any, address: str | None = None) -> list[str]:
    """The command line of a program that submits `arguments` after the address."""
    return [sys.executable, "-c", JOB, json.dumps([address or head.address, *arguments])]


def run_job(head: RayHead, *arguments: Any, address: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        job(head, *arguments, address=address),
        env={**os.environ, **head.environment},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )


def test_every_option_of_run_is_one_of_submit() -> None:
    commands: Any = typer.main.get_command(app)
    run, ours = ({each.name: each for each in commands.commands[name].params} for name in ("run", "submit"))
    assert set(ours) == set(run) | OWN_OPTIONS
    shared_with_run = set(run) - {"address", "output"}
    assert all((ours[name].opts, ours[name].help) == (run[name].opts, run[name].help) for name in shared_with_run)


@pytest.mark.slow
def test_every_option_arrives_and_the_exit_code_comes_back(ray_head: RayHead, tmp_path: Path) -> None:
    """The dry run refuses a revision of a folder, which is exit 2."""
    (tmp_path / "settings.toml").write_text("[metrics]\ntracker = 'lucas-kanade'\n")
    given: dict[str, Any] = {
        "--output": tmp_path / "out",
        "--model": tmp_path,
        "--revision": "main",
        "--dtype": "float32",
        "--config": tmp_path / "settings.toml",
        "--preset": "fast",
        "--workers": 2,
        "--gpus-per-worker": 0.5,
        "--accelerator-type": "T4",
        "--wait-for-gpus": 5.5,
        "--fit": "pad",
        "--height": SIDE,
        "--width": SIDE,
        "--frames": FRAMES,
        "--steps": 3,
        "--seed": -1,
        "--limit": 5,
        "--sample-timeout": 90.5,
        "--memory": "low",
        "--root": "s3://bucket/pictures",
        "--candidates": 2,
        "--keep": "control_gain > 0.5",
        "--shard": "1/3",
        "--notify": "https://hooks.example.com/1",
    }
    flags = ["--retry-failed", "--unguided", "--untrusted", "--take-over", "--dry-run", "--compile"]
    flags += ["--strict", "--redo-changed", "--check-images", "--another-manifest", "--allow-failed"]
    flags += ["--stop-early", "--report"]
    commands: Any = typer.main.get_command(app)
    options = {each.opts[0] for each in commands.commands["run"].params}
    options -= {"manifest", "--address", "--baseline"}  # the last has no sense with --unguided
    assert {*given, *flags} == options
    words = [str(word) for pair in given.items() for word in pair]
    manifest = write_good(tmp_path, 1, "m m.parquet")
    result = submit(ray_head, manifest, *words, *flags, "--shared-path", tmp_path)
    entrypoint = re.search(r"Running entrypoint for job \S+: (.*)", result.stdout)
    assert entrypoint, result
    program, name, *arrived = shlex.split(entrypoint[1])
    assert (program, name) == ("sgi2v-batch", "run")
    expected = {**{key: str(value) for key, value in given.items()}, "--config": "settings.toml"}
    assert sorted(arrived) == sorted([str(manifest), *(w for p in expected.items() for w in p), *flags])
    assert "a revision can be pinned for a Hugging Face id only" in result.stdout
    assert result.returncode == 2, result


@pytest.mark.slow
def test_a_job_is_followed_to_its_end(ray_head: RayHead, shared: Path) -> None:
    """With a settings file that only this machine has, and a row that fails: exit 1, everything recorded."""
    good = write_good(shared, 1).parent
    manifest = write_rows(good / "two.parquet", [row("s00"), row("gone")])
    settings = shared / "elsewhere" / "small.toml"
    settings.parent.mkdir()
    settings.write_text(f"[sampler]\nheight = {SIDE}\nwidth = {SIDE}\nnum_frames = {FRAMES}\nsteps = 3\n")
    result = submit(ray_head, manifest, *on_shared(shared, "out"), "--config", settings, "--workers", "1")
    assert result.returncode == 1, result
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"submitted raysubmit_\w+", lines[0])
    assert f"2 rows: 0 done before, 2 to do -> {shared / 'out'}" in lines
    assert [line[:5] for line in lines if line.startswith("[")] == ["[1/2]", "[2/2]"]
    assert any(line.startswith("1 made, 1 failed, 0 done before, of 2 rows") for line in lines)
    assert {name: each["status"] for name, each in records(shared / "out").items()} == {
        "s00": "committed",
        "gone": "failed",
    }
    assert table(shared / "out")["sample_id"].to_pylist() == ["s00"]
    assert table(shared / "out", "failures.parquet")["error_code"].to_pylist() == ["image_missing"]


@pytest.mark.whole
def test_a_job_gets_the_package_that_submits_it(ray_head: RayHead, shared: Path) -> None:
    """pip installs the shipped wheel beside what is on the node, so nothing is fetched."""
    rows, out = write_good(shared, 1), on_shared(shared, "out")
    result = submit(ray_head, rows, *out, *SMALL, "--ship", SGI2V_BATCH_SUBMITTED_BY="")
    assert result.returncode == 0, result
    assert "+ship." in json.loads((shared / "out" / "run.json").read_text())["versions"]["sgi2v-batch"], result


@pytest.mark.whole
def test_a_head_without_the_package_is_named(ray_head: RayHead) -> None:
    result = run_job(ray_head, ["no-such-program", "run"], {})
    assert result.returncode != 0
    assert f"the head of the cluster at {ray_head.address} has no sgi2v-batch: use an image" in result.stderr


@pytest.mark.whole
def test_a_stopped_job_writes_its_tables(ray_head: RayHead, shared: Path) -> None:
    """Through Ray's own command line, and within the three seconds that it gives."""
    manifest, output = write_good(shared, MANY), shared / "out"
    words = ["sgi2v-batch", "run", str(manifest), "--output", str(output), "--model", str(shared / "checkpoint")]
    words += map(str, SMALL)
    begun = ray_job(ray_head, "submit", "--no-wait", "--submission-id", "to-be-stopped", "--", *words)
    assert begun.returncode == 0, begun

    def job_log() -> str:
        return ray_job(ray_head, "logs", "to-be-stopped").stdout

    until("a sample is finished", lambda: f"[1/{MANY}]" in job_log(), RUN_TIMEOUT_S)
    assert "was stopped" in ray_job(ray_head, "stop", "to-be-stopped").stdout
    made = table(output).num_rows
    assert 1 <= made < MANY
    assert f"Interrupted with {MANY - made} rows left." in job_log()


@pytest.mark.whole
def test_no_wait_says_how_to_follow(ray_head: RayHead, shared: Path) -> None:
    """The job ends at once, for want of its manifest, which is nothing to the submission."""
    result = submit(ray_head, shared / "none.parquet", *on_shared(shared, "out"), "--no-wait")
    assert result.returncode == 0, result
    submitted, follow, stop = result.stdout.splitlines()
    name = submitted.removeprefix("submitted ")
    assert follow.split(maxsplit=1)[1] == f"ray job logs {name} --address {ray_head.address} --follow"
    assert stop.split(maxsplit=1)[1] == f"ray job stop {name} --address {ray_head.address}"
    followed = ray_job(ray_head, "logs", name, "--follow").stdout
    assert "none.parquet" in followed.partition("Running entrypoint")[2].partition("\n")[2]


@pytest.mark.slow
def test_a_job_gets_its_settings_and_a_broken_connection_to_it_is_made_again(ray_head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "a b.toml").write_text("the settings")
    script = (
        'cat "a b.toml"; echo " $MARK and $RAY_JOB_STOP_WAIT_TIME_S"; for i in 1 2 3; do echo line $i; sleep 1; done'
    )
    words = ["sh", "-c", f"{script}; kill -KILL $$"]
    with cutting_proxy(ray_head.address, b"/logs/tail", b"line 2") as proxy:
        result = run_job(ray_head, words, {"MARK": "two words"}, str(tmp_path / "a b.toml"), address=proxy.address)
    assert proxy.cuts == 1
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("line")] == ["line 1", "line 2", "line 3"]
    assert "the settings two words and 60" in lines
    assert (result.returncode, result.stderr) == (137, "")


@pytest.mark.whole
def test_ctrl_c_leaves_the_job_alone_and_a_stopped_one_is_130(ray_head: RayHead) -> None:
    environment = {**os.environ, **ray_head.environment}
    words = ["sh", "-c", "echo under way; exec sleep 100"]
    process = subprocess.Popen(job(ray_head, words, {}), env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().split()[1]
    assert any(line == "under way\n" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    printed = process.stdout.read()
    assert process.wait(60) == 130
    assert f"Stopped following {name}. The job goes on:" in printed
    assert f"ray job stop {name}" in printed
    assert "RUNNING" in ray_job(ray_head, "status", name).stdout
    ray_job(ray_head, "stop", name)
    stopped = subprocess.Popen(job(ray_head, words, {}), env=environment, stdout=subprocess.PIPE, text=True)
    assert stopped.stdout is not None
    name = stopped.stdout.readline().split()[1]
    assert any(line == "under way\n" for line in stopped.stdout)
    ray_job(ray_head, "stop", name)
    stopped.stdout.read()
    assert stopped.wait(60) == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RAY_AUTH_TOKEN": "another-token"}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        (
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "", "HOME": "/nowhere"},
            "couldn't find an authentication token",
        ),
    ],
    ids=["wrong", "not sent", "none"],
)
def test_without_the_token_nobody_gets_in(ray_head: RayHead, environment: dict[str, str], reason: str) -> None:
    result = submit(ray_head, "s3://bucket/m.parquet", "--output", "s3://bucket/out", **environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert reason in result.stderr
    assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token" in result.stderr
