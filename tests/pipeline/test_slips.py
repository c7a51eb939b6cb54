"""Slips of the keyboard and of scripts: locations that are none, and variables that are set to nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sgi2v.retry
from jobs.submit import visible_locations
from pipeline.config import ExecutionConfig, absolute, check_output_location, cluster_address
from pipeline.output.run_file import location_of
from pipeline.output.storage import Storage
from sgi2v.errors import StorageError
from sgi2v.locations import credentials_advice
from sgi2v.retry import with_retries
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import records, write_good


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with without_ray():
        yield write_good(tmp_path / "in", 1)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "--output is empty"),
        (" ", "--output is empty"),
        ("=out", "write `-o out` or `--output=out`"),
        ("s3:/bucket/out", "a URL begins with s3://"),
        ("S3:/bucket/out", "a URL begins with S3://"),
        ("gs:/bucket/out", "a URL begins with gs://"),
        ("file:/data/out", "a URL begins with file://"),
    ],
)
def test_an_output_that_is_a_slip_is_refused(manifest: Path, output: str, message: str) -> None:
    before = set(Path().rglob("*"))
    done = run_tiny_here(manifest, output)
    assert done.returncode == 2
    assert message in done.stderr
    assert set(Path().rglob("*")) == before


NAMES = ["out", "a b", "a=b", "day 1: 10:30/x", "s3", "~x", 'it\'s "100 %"\n[bold]', "ü/名前", "./s3:/x", "x.mp4"]


@pytest.mark.parametrize("output", NAMES)
def test_other_names_are_names(manifest: Path, output: str) -> None:
    check_output_location(output)
    done = run_tiny_here(manifest, output)
    assert done.returncode == 0, done.stderr
    assert list(records(Path(output))) == ["s00"]
    assert here("verify", output).returncode == 0
    assert run_tiny_here(manifest, output).stdout.startswith("0 made, 0 failed, 1 done before")


def test_a_manifest_called_as_an_editors_copy(manifest: Path) -> None:
    for file in (Path("in/m.parquet"), Path("in/s00.png")):
        shutil.copy(file, "~$m.parquet" if file.suffix == ".parquet" else ".")
    done = run_tiny_here("~$m.parquet", "out")
    assert done.returncode == 0, done.stderr
    here_too = str(Path("~$m.parquet").absolute())
    assert absolute("~$m.parquet") == location_of("~$m.parquet") == here_too
    assert location_of("~/m.parquet") == str(Path.home().resolve() / "m.parquet")
    assert visible_locations({"manifest": "~$m.parquet"}, [str(Path.cwd())])


@pytest.mark.parametrize("place", ["the output", "the manifest", "the folder"])
def test_a_name_that_is_no_text_is_refused_before_anything_is_written(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name = os.fsdecode(b"caf\xe9")  # of a disk from before UTF-8, or under LC_ALL=C without Python's UTF-8 mode
    output = Path("out")
    if place == "the output":
        output = Path(name)
    elif place == "the manifest":
        manifest = Path(shutil.copy(manifest, manifest.with_name(f"{name}.parquet")))
    else:
        Path(name).mkdir()
        monkeypatch.chdir(name)
    done = run_tiny_here(manifest, output)
    assert done.returncode == 2
    assert "caf\\udce9" in done.stderr
    assert "which is not UTF-8 text: set LC_ALL=C.UTF-8" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("option", "variable", "address"),
    [
        (None, None, None),
        (None, "", None),
        ("", None, None),
        (None, "local", None),
        ("local", "head:6379", None),
        (None, "head:6379", "head:6379"),
        ("auto", "", "auto"),
    ],
)
def test_an_address_that_names_no_cluster(
    monkeypatch: pytest.MonkeyPatch, option: str | None, variable: str | None, address: str | None
) -> None:
    """Only a Ray of our own start gets the settings that keep it off the network."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(ExecutionConfig(address=option)) == address


class ProfileNotFound(Exception):  # noqa: N818
    """Named as the AWS SDK's."""


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ProfileNotFound("The config profile (x) could not be found"), "; set AWS_PROFILE to"),
        (ValueError("Invalid endpoint: localhost:9000"), "; set AWS_ENDPOINT_URL to a URL"),
        (OSError(78, "PermanentRedirect"), "; set AWS_DEFAULT_REGION"),
        (PermissionError("RequestTimeTooSkewed"), "; set the clock"),
    ],
)
def test_settings_of_s3_that_no_attempt_cures(monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)
    calls = []

    def operation() -> None:
        calls.append(1)
        raise error

    with pytest.raises((StorageError, PermissionError)):
        with_retries("reading s3://b/k", operation)
    assert len(calls) == 1
    assert credentials_advice(error, "s3://b/k").startswith(advice)
    assert advice not in credentials_advice(error, "/data/k")


def test_an_object_that_appears_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)
    answers: list[Any] = [FileNotFoundError("b/k"), FileNotFoundError("b/k"), {"size": 3}]

    def info(path: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    storage = Storage("memory://late")
    storage._filesystem = SimpleNamespace(pipe_file=lambda path, data: None, info=info)
    storage.put("k", b"123")
    assert not answers


def test_an_object_that_never_appears_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)
    storage = Storage("memory://never")
    storage._filesystem = SimpleNamespace(pipe_file=lambda path, data: None, info=info)
    with pytest.raises(StorageError, match="does not have it yet"):
        storage.put("k", b"123")
