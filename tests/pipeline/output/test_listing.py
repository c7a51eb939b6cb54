"""A location that a store cannot list back is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import s3fs

from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError
from tests.pipeline.in_process import run_tiny_here, without_ray
from tests.pipeline.runs import write_good
from tests.s3_stand_in import Store


@pytest.mark.parametrize(
    "location", ["s3://bucket", "S3://bucket/x", "s3://bucket/x//y", "s3://bucket/a::b", "s3://bucket/a#b?c %20"]
)
def test_a_location_that_lists_what_was_put_is_taken(store: Store, location: str) -> None:
    storage = Storage(location)
    storage.check_usable()
    assert not store.objects
    storage.put("records/a.json", b"1")
    assert storage.keys("records") == ["records/a.json"]
    folder = location.partition("://bucket")[2].removeprefix("/")
    assert set(store.objects) == {("bucket", f"{folder}/records/a.json".removeprefix("/"))}


@pytest.mark.parametrize("location", ["s3://bucket//x", "s3://bucket///x/y"])
def test_a_location_that_is_listed_under_another_name_is_refused(store: Store, location: str) -> None:
    with pytest.raises(ConfigError, match=r"lists it under another name or not at all.*without empty parts"):
        Storage(location).check_usable()
    assert not store.objects


def test_a_run_there_ends_before_it_makes_anything(store: Store, tmp_path: Path) -> None:
    manifest = write_good(tmp_path, 1)
    with without_ray():
        done = run_tiny_here(manifest, "s3://bucket//out")
    assert done.returncode == 2, done.stderr
    assert "s3://bucket//out cannot hold an output" in done.stderr
    assert not store.objects


def test_real_servers_are_taken_and_tidying_ones_refused(bucket: str) -> None:
    Storage(f"{bucket}/x").check_usable()
    with pytest.raises(ConfigError, match="cannot hold an output"):
        Storage(f"{bucket}/x//y").check_usable()


def test_a_store_that_gives_back_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").store.clear()
    storage = Storage("memory://listing/out")
    storage.check_usable()
    assert storage.keys("") == []
    monkeypatch.setattr(Storage, "get", lambda self, key: None)
    with pytest.raises(ConfigError, match="does not give it back"):
        storage.check_usable()


def test_refused_credentials_name_the_variables_to_set(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Storage(f"{bucket}/x").check_usable()
    s3fs.S3FileSystem.clear_instance_cache()
