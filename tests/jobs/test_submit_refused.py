"""What `submit` refuses before it sends anything: no cluster is needed."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.submit import SubmissionError, environment, exit_code_of_job, visible_locations
from tests.pipeline.in_process import here

S3_JOB = ("s3://bucket/m.parquet", "--output", "s3://bucket/out")
NOWHERE = ("--address", "http://127.0.0.1:1")


@pytest.mark.slow
def test_every_local_location_is_named_at_once(tmp_path: Path) -> None:
    words = ("m.parquet", "--output", "file:///data/out", "--model", tmp_path, "--shared-path", "/mnt/nfs", *NOWHERE)
    result = here("submit", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[:4] == [
        "error: the cluster cannot see these locations, which are on this machine:",
        "  manifest: m.parquet",
        "  output: file:///data/out",
        f"  model: {tmp_path}",
    ]
    assert "--shared-path" in result.stderr.splitlines()[4]


@pytest.mark.slow
def test_a_model_that_a_settings_file_names_is_looked_at_too(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[model]\nsource = './checkpoint'\n")
    result = here("submit", *S3_JOB, "--config", settings, *NOWHERE)
    assert result.returncode == 2
    assert "  model: ./checkpoint" in result.stderr.splitlines()


@pytest.mark.slow
def test_an_output_must_be_given() -> None:
    result = here("submit", "s3://bucket/m.parquet", *NOWHERE)
    assert result.returncode == 2
    assert result.stderr.startswith("error: a job needs --output, such as s3://bucket/name: the default")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["owner/name", "embedded", "hf://owner/name", "s3://bucket/checkpoint"])
def test_a_model_from_elsewhere_goes_through_and_a_closed_port_is_reported(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    result = here("submit", *S3_JOB, "--model", model, *NOWHERE)
    assert result.returncode == 2
    assert result.stderr == "error: no Ray cluster answers at http://127.0.0.1:1 (ConnectionError)\n"


@pytest.mark.whole
def test_what_answers_but_is_no_cluster_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = here("submit", *S3_JOB, "--address", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert result.returncode == 2
    assert "no Ray cluster answers at" in result.stderr
    assert "(ReadTimeout)" in result.stderr
    result = here("submit", *S3_JOB, "--address", "127.0.0.1:8265")
    assert (
        result.stderr == "error: --address 127.0.0.1:8265 is not the URL of a Ray dashboard, such as http://HEAD:8265\n"
    )


def test_what_every_node_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared = [str(tmp_path)]
    urls = ["s3://b/x", "gs://b/x", "az://b/x", "hf://datasets/o/n/x", "https://host/x", "filecache::s3://b/x"]
    assert visible_locations({url: url for url in urls}, []) == {url: url for url in urls}
    assert visible_locations({"manifest": "a/../m.parquet"}, shared) == {"manifest": str(tmp_path / "m.parquet")}
    assert visible_locations({"output": f"file://{tmp_path}/out"}, ["."]) == {"output": str(tmp_path / "out")}
    for url in (f"FILE://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        assert visible_locations({"output": url}, ["."]) == {"output": str(tmp_path / "a b")}


@pytest.mark.parametrize("location", ["{}/../out", "{}-beside/out", "memory://{}/out", "filecache::file://{}/x", "~/x"])
def test_what_only_looks_shared(tmp_path: Path, location: str) -> None:
    with pytest.raises(SubmissionError, match="cannot see"):
        visible_locations({"output": location.format(tmp_path)}, [str(tmp_path)])


def test_environment_from_here_and_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "from here")
    monkeypatch.delenv("GONE", raising=False)
    assert environment(["MARK", "OTHER=a=b", "EMPTY="]) == {"MARK": "from here", "OTHER": "a=b", "EMPTY": ""}
    with pytest.raises(SubmissionError, match="GONE is not set here"):
        environment(["GONE"])
    with pytest.raises(SubmissionError, match="has no name"):
        environment(["=value"])
    assert "GONE" not in os.environ


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "code"),
    [("SUCCEEDED", 0, 0), ("STOPPED", None, 130), ("FAILED", 1, 1), ("FAILED", -9, 137), ("FAILED", None, 3)],
)
def test_a_job_that_ended_without_an_exit_code_was_lost(status: str, driver_exit_code: int | None, code: int) -> None:
    info = SimpleNamespace(status=status, driver_exit_code=driver_exit_code, submission_id="j", message="node lost")
    assert exit_code_of_job(info) == code


def test_help_ends_with_an_example() -> None:
    assert "Example: sgi2v-batch submit s3://" in " ".join(here("submit", "--help").stdout.split())
