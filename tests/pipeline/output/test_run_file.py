"""run.json: written once, compared with every later run, and read back without secrets."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from manifests.urls import resolve_uri
from pipeline.config import ExecutionConfig
from pipeline.output import run_file
from pipeline.output.run_file import (
    RUN_FILE,
    check_output,
    create_run_file,
    other_manifest,
    read_run,
    recorded_config,
    require_run,
    update_run_file,
)
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, SampleError
from tests.pipeline.output.outputs import settings


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Storage:
    return Storage(f"memory://{request.node.name}")


def content(storage: Storage) -> dict[str, Any]:
    return dict(json.loads(storage.get(RUN_FILE) or b""))


def test_a_run_file_is_created_once_and_read_back(storage: Storage) -> None:
    config = settings()
    assert check_output(storage, config) is None
    assert create_run_file(storage, config, "digest", 4) is None
    written = content(storage)
    assert create_run_file(storage, settings(run={"workers": 3}), "digest", 4) == read_run(storage)
    assert content(storage) == written
    assert written["fingerprint"] == config.fingerprint
    assert {"python", "torch", "ray", "diffusers"} <= set(written["versions"])
    run = check_output(storage, config)
    assert run is not None
    assert run == read_run(storage) == require_run(storage)
    assert run.model_dump() == {name: written[name] for name in type(run).model_fields}
    assert (run.manifest, run.manifest_sha256, run.rows, run.other_samples) == (config.manifest, "digest", 4, 0)
    assert (run.model["source"], run.model_revision, run.is_guided) == ("embedded", config.model_revision, True)
    assert recorded_config(storage).deciding() == config.deciding()


def test_a_changed_manifest_is_recognised_by_its_digest(storage: Storage) -> None:
    create_run_file(storage, settings(), "digest", 4)
    run = require_run(storage)
    assert run.has_manifest("digest")
    assert not run.has_manifest("another digest")


def moved(storage: Storage, recorded: str, manifest: str) -> bool:
    """Whether this manifest counts as another one than that of the last run of an output."""
    create_run_file(storage, replace(settings(), manifest=recorded), "digest", 4)
    return other_manifest(require_run(storage), manifest) is not None


@pytest.mark.parametrize(
    ("recorded", "manifest"),
    [
        ("/set/m.parquet", "/set/sub/../m.parquet"),
        ("/set/m.parquet", "file:///set/m.parquet"),
        ("s3://bucket/m.parquet", "s3a://bucket/m.parquet"),
        ("https://host/m.parquet?sig=monday", "https://host/m.parquet?sig=tuesday"),
        ("https://host/m.parquet?sig=monday", "https://host/m.parquet"),
        ("https://user:secret@host/m.parquet", "HTTPS://Host/m.parquet"),
        ("az://box/m.parquet?sig=monday", "az://box/m.parquet?sig=tuesday"),
    ],
)
def test_the_same_location_in_other_words_is_the_same_manifest(storage: Storage, recorded: str, manifest: str) -> None:
    assert not moved(storage, recorded, manifest)


@pytest.mark.parametrize(
    ("recorded", "manifest"),
    [
        ("/day1/m.parquet", "/day2/m.parquet"),
        ("/set/m.parquet", "/set/m.csv"),
        ("s3://bucket/day1/m.parquet", "s3://bucket/day2/m.parquet"),
        ("s3://one/m.parquet", "s3://two/m.parquet"),
        ("s3://bucket/m?1.parquet", "s3://bucket/m?2.parquet"),
        ("gs://bucket/m.parquet", "s3://bucket/m.parquet"),
        ("abfs://one@account/m.parquet", "abfs://two@account/m.parquet"),
        ("https://host/day1/m.parquet?sig=a", "https://host/day2/m.parquet?sig=a"),
    ],
)
def test_another_location_is_another_manifest(storage: Storage, recorded: str, manifest: str) -> None:
    assert moved(storage, recorded, manifest)


def test_another_manifest_is_named_without_secrets(storage: Storage) -> None:
    assert moved(storage, "https://user:hunt@er2@host/day1/m.parquet?sig=hunter2", "/day2/m.parquet")
    assert other_manifest(require_run(storage), "/day2/m.parquet") == "https://***@host/day1/m.parquet?***"


@pytest.mark.parametrize("name", ["s3://b/day?x=1/m.parquet", "s3://b/token=abc/m.parquet", "/data/sig=abc/m.parquet"])
def test_names_that_only_look_like_secrets_are_kept(storage: Storage, name: str) -> None:
    assert not moved(storage, name, name)
    assert require_run(storage).manifest == name
    assert moved(storage, name, name.replace("1/", "2/").replace("abc", "def"))


def test_a_limit_is_of_the_last_run_only(storage: Storage) -> None:
    create_run_file(storage, settings(), "digest", 4, limit=1)
    assert require_run(storage).asked_rows == 1
    update_run_file(storage, settings(), "digest", 4, other_samples=0, limit=9)
    assert require_run(storage).asked_rows == 4
    update_run_file(storage, settings(), "digest", 4, other_samples=0)
    assert (require_run(storage).limit, require_run(storage).asked_rows) == (None, 4)


def test_an_update_replaces_the_entries_about_the_manifest(storage: Storage) -> None:
    create_run_file(storage, settings(), "digest", 4)
    before = content(storage)
    update_run_file(storage, settings(), "another digest", 6, other_samples=1)
    assert content(storage) == {**before, "rows": 6, "manifest_sha256": "another digest", "other_samples": 1}


def test_versions_are_of_installed_packages_only(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = run_file.version

    def without_decord(package: str) -> str:
        if package == "decord":
            raise PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(run_file, "version", without_decord)
    create_run_file(storage, settings(), "digest", 4)
    assert set(content(storage)["versions"]) == {"python", *run_file.PACKAGES} - {"decord"}


def test_secrets_are_masked_and_do_not_change_the_file_again(storage: Storage) -> None:
    roots = ["https://user:hunt@er2@host/p", "https://host/p?sig=hunter2", "abfs://box@account.dfs.core.windows.net/p"]
    config = settings(run={"untrusted": True, "roots": roots})
    create_run_file(storage, config, "digest", 4)
    written = storage.get(RUN_FILE) or b""
    assert b"er2" not in written
    masked = ["https://***@host/p", "https://host/p?***", "abfs://box@account.dfs.core.windows.net/p"]
    assert content(storage)["execution"]["roots"] == masked
    update_run_file(storage, config, "digest", 4, other_samples=0)
    assert storage.get(RUN_FILE) == written


def test_a_replay_may_read_only_the_images_that_the_run_might(storage: Storage) -> None:
    roots = ["/data", "abfs://box@account/p"]
    create_run_file(storage, settings(run={"untrusted": True, "roots": roots}), "digest", 4)
    access = recorded_config(storage).execution.access
    resolve_uri("/data/a.png", "/set/m.parquet", access)
    with pytest.raises(SampleError, match="under no --root"):
        resolve_uri("/etc/passwd", "/set/m.parquet", access)


def test_a_replay_computes_as_the_run_did(storage: Storage) -> None:
    config = settings(run={"compile": True, "threads_per_worker": 3, "workers": 7})
    create_run_file(storage, config, "digest", 4)
    assert recorded_config(storage).execution == ExecutionConfig(compile=True, threads_per_worker=3)


def test_the_choice_of_candidates_is_read_back(storage: Storage) -> None:
    config = settings(candidates={"number": 4, "keep": "flicker < 3", "stop_early": True}, run={"baseline": "unguided"})
    create_run_file(storage, config, "digest", 4)
    recorded = recorded_config(storage)
    assert (recorded.candidates, recorded.baseline) == (config.candidates, "unguided")
    assert recorded.fingerprint == config.fingerprint


def test_other_settings_are_refused_with_every_difference(storage: Storage) -> None:
    create_run_file(storage, settings(sampler={"steps": 5}), "digest", 4)
    written = storage.get(RUN_FILE)
    with pytest.raises(ConfigError) as refused:
        create_run_file(storage, settings(sampler={"steps": 6}, run={"seed": 1}), "digest", 4)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{storage.url} belongs to a run with other settings, which are never mixed:"
    assert lines[1:3] == ["  sampler.steps: 5 before, 6 now", "  seed: 817 before, 1 now"]
    assert lines[3] == "Give the same settings, or another --output."
    assert storage.get(RUN_FILE) == written


def test_an_output_that_was_measured_by_another_version_is_refused(storage: Storage) -> None:
    create_run_file(storage, settings(), "sha", rows=2)
    content = json.loads(storage.get(RUN_FILE) or b"")
    del content["deciding"]["metrics_version"]  # as earlier versions wrote it
    storage.put(RUN_FILE, json.dumps(content).encode())
    with pytest.raises(
        ConfigError, match=r"never mixed:\n  metrics_version: objmc/v1 before, objmc/v2 now\nGive another"
    ):
        check_output(storage, settings())
    assert recorded_config(storage).metrics == settings().metrics, "it can still be replayed"


@pytest.mark.parametrize("data", [b"{}", b"[]", b"no json", b'{"deciding": 3}', b'{"deciding": {}}'])
def test_a_file_of_another_program_is_refused(storage: Storage, data: bytes) -> None:
    storage.put(RUN_FILE, data)
    for read in (lambda: check_output(storage, settings()), lambda: require_run(storage)):
        with pytest.raises(ConfigError, match=r"run\.json is not a run of this program: use another --output"):
            read()


def test_an_output_without_a_run_file_is_refused(storage: Storage) -> None:
    with pytest.raises(ConfigError, match=rf"there is no run at {storage.url}: it has no run\.json"):
        require_run(storage)
