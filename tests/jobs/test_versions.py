"""Whether a cluster has the versions that a job needs, and the package that `--ship` sends."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import pytest

from jobs.submit import SUBMITTED_BY, SubmissionError, check_ray, other_version
from jobs.wheel import ROOT, build_wheel
from tests.pipeline.in_process import here
from tests.pipeline.runs import cli

HERE = version("sgi2v-batch")


@pytest.mark.parametrize("there", [None, HERE, f"{HERE}+ship.0123456789ab"])
def test_a_job_of_the_same_version_goes_on(there: str | None) -> None:
    assert other_version({} if there is None else {SUBMITTED_BY: there}) is None


class Dashboard(BaseHTTPRequestHandler):
    """The one page of a Ray dashboard that says its version, to whoever has the token."""

    def do_GET(self) -> None:
        allowed = self.path == "/api/version" and self.headers["Authorization"] == "Bearer the-token-of-an-old-cluster"
        body = json.dumps({"version": "4", "ray_version": "2.40.0", "ray_commit": "", "session_name": ""}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("in_file", [True, False])
def test_an_old_cluster_is_refused_before_anything_is_sent(in_file: bool, tmp_path: Path) -> None:
    """In a process of its own: Ray keeps the first token that a process has used."""
    token = "the-token-of-an-old-cluster"
    (tmp_path / "token").write_text(token)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    variables["RAY_AUTH_TOKEN"] = "" if in_file else token
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        result = cli("submit", "s3://b/m.parquet", "--output", "s3://b/o", "--address", address, **variables)
        server.shutdown()
    assert (result.returncode, result.stdout) == (2, "")
    assert f"the cluster at {address} has Ray 2.40.0, and sgi2v-batch {HERE} needs" in result.stderr


@pytest.mark.slow
def test_a_job_of_another_version_ends_before_it_reads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED_BY, "9.1.0")
    result = here("run", "s3://no/such.parquet", "--output", "s3://no/where")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: this cluster has sgi2v-batch {HERE}, and sgi2v-batch 9.1.0 submitted the job: use an image with 9.1.0 "
        f"on every node, or submit with version {HERE}, or add --ship to send the package along\n"
    )


def test_a_cluster_with_a_ray_that_does_not_fit() -> None:
    check_ray(version("ray"), "http://head:8265")
    for wrong in ("2.59.1", "3.0.0"):
        with pytest.raises(
            SubmissionError, match=rf"http://head:8265 has Ray {wrong}, and sgi2v-batch .* needs .*2\.60"
        ):
            check_ray(wrong, "http://head:8265")


def test_the_shipped_wheel_is_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("jobs", "pipeline")  # the others take seconds, for their weights
    monkeypatch.setattr("jobs.wheel.PACKAGES", packages)
    wheel = build_wheel(tmp_path)
    assert wheel.name.startswith(f"sgi2v_batch-{HERE}+ship.")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (record,) = (name for name in names if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        metadata = archive.read(record.replace("RECORD", "METADATA")).decode()
    assert f"\nVersion: {wheel.name.split('-')[1]}\n" in metadata
    assert {row[0] for row in rows} == names
    ours = {file.relative_to(ROOT).as_posix() for package in packages for file in (ROOT / package).rglob("*.py")}
    assert ours <= names
    assert {"jobs/kubernetes/rayjob.yaml", "sgi2v_batch.py"} <= names
    assert build_wheel(tmp_path) == wheel  # the same code, the same name


@pytest.mark.whole
def test_pip_installs_the_shipped_wheel_and_it_prints_a_rayjob(tmp_path: Path) -> None:
    target = tmp_path / "there"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(build_wheel(tmp_path))], check=True)
    words = ["submit", "s3://b/m.parquet", "--output", "s3://b/o", "--kubernetes", "--print", "--image", "i"]
    job = subprocess.run(
        [sys.executable, "-m", "sgi2v_batch", *words],
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "kind: RayJob" in job.stdout, job.stderr
    assert (target / "sgi2v" / "tiny" / "checkpoint" / "model_index.json").is_file()
