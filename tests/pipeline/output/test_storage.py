"""Storage: whole objects and conditional puts, on disk, in memory and on a real S3 server."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import sgi2v.retry
from pipeline.output import storage as storage_module
from pipeline.output.keys import is_own_key
from pipeline.output.lease import acquire
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError

WRITERS = 8


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage(str(tmp_path / "out"))
    if request.param == "memory":
        return Storage(f"memory://{request.node.name}")
    return Storage(request.getfixturevalue("bucket") + "/out")


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)


def test_objects_are_put_read_listed_replaced_and_deleted(storage: Storage) -> None:
    assert storage.get("records/a.json") is None
    assert storage.keys("records") == []
    storage.put("records/a.json", b"one")
    storage.put("records/b.json", b"two")
    storage.put("other/c.json", b"three")
    assert storage.get("records/a.json") == b"one"
    storage.put("records/a.json", b"one again")
    assert sorted(storage.keys("records")) == ["records/a.json", "records/b.json"]
    objects = storage.get_many(["records/a.json", "records/none.json", "other/c.json"])
    assert objects == {"records/a.json": b"one again", "other/c.json": b"three"}
    assert storage.get_many([]) == {}
    storage.delete("records/a.json")
    storage.delete("records/a.json")
    assert storage.keys("records") == ["records/b.json"]


def test_a_conditional_put_keeps_the_first_object(storage: Storage) -> None:
    assert storage.put_new("records/a.json", b"first")
    assert not storage.put_new("records/a.json", b"second")
    assert storage.get("records/a.json") == b"first"


def test_a_store_with_conditional_puts_passes_the_check_and_nothing_is_left(storage: Storage) -> None:
    storage.check_usable()
    assert [key for key in storage.keys("lease") if "probe" in key] == []  # SeaweedFS lists the empty folder


class Replacing(MemoryFileSystem):
    """A store that ignores the condition of a put."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        super().pipe_file(path, value)


class Refusing(MemoryFileSystem):
    """A store that does not know the condition, as s3fs tells it."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented.")


class Looking(MemoryFileSystem):
    """A client that looks whether the object is there, and then puts it."""

    pipe_file = AbstractFileSystem.pipe_file


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (Replacing, r"ignores the condition of a put \(If-None-Match: \*\)"),
        (Refusing, r"refuses a conditional put \(.*A header you provided"),
        (Looking, "has no conditional put"),
    ],
)
def test_a_store_without_conditional_puts_is_refused_at_once(client: type[MemoryFileSystem], reason: str) -> None:
    storage = Storage("memory://careless")
    storage._filesystem = client()
    with pytest.raises(ConfigError, match=f"^memory://careless cannot hold an output, because the store {reason}"):
        acquire(storage)
    assert storage.keys("") == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_hard_links_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigError, match=f"^{tmp_path} is on a disk without hard links"):
        acquire(Storage(str(tmp_path)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_in_the_place_of_an_object_has_no_bytes_and_is_removed_if_it_is_empty(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "records" / "a.json").mkdir(parents=True)
    assert storage.keys("records") == ["records/a.json"]
    assert storage.get("records/a.json") == b""
    assert storage.get_many(["records/a.json"]) == {"records/a.json": b""}
    storage.delete("records/a.json")
    assert storage.keys("records") == []
    (tmp_path / "records" / "a.json").mkdir()
    (tmp_path / "records" / "a.json" / "precious").touch()
    with pytest.raises(StorageError, match=r"deleting .*records/a\.json failed: .*not empty"):
        storage.delete("records/a.json")


def test_a_repeated_conditional_put_of_the_same_bytes_succeeds(storage: Storage) -> None:
    assert storage.put_new("records/a.json", b"mine")
    assert storage.put_new("records/a.json", b"mine")


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["disk", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_exactly_one_of_many_concurrent_writers_wins(storage: Storage) -> None:
    for round_number in range(2):
        together = threading.Barrier(WRITERS)

        def put(writer: int, key: str = f"records/{round_number}.json", together: threading.Barrier = together) -> bool:
            own = Storage(storage.url)
            together.wait()
            return own.put_new(key, f"writer {writer}".encode())

        with ThreadPoolExecutor(WRITERS) as pool:
            results = list(pool.map(put, range(WRITERS)))
        assert results.count(True) == 1
        assert storage.get(f"records/{round_number}.json") == f"writer {results.index(True)}".encode()


def test_a_reader_gets_the_old_or_the_new_object_never_a_part(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    whole = {bytes([value]) * 200_000 for value in range(2)}
    storage.put("table", b"\0" * 200_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for value in whole:
                storage.put("table", value)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = {storage.get("table") for _ in range(300)}
        stop.set()
        writing.result()
    assert seen <= whole
    assert [path.name for path in tmp_path.iterdir()] == ["table"], "temporary files are left"


def test_pattern_characters_in_a_location_are_literal(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "take [2] *?"))
    storage.put("records/a.json", b"a")
    assert storage.keys("records") == ["records/a.json"]
    assert storage.get_many(["records/a.json"]) == {"records/a.json": b"a"}


def test_half_written_files_are_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("records/a.json", b"a")
    (tmp_path / "records" / ".b.json.0123.partial").write_bytes(b"{")
    assert storage.keys("records") == ["records/a.json"]


@pytest.mark.parametrize("below", ["", "out", "a/b/out"])
def test_a_location_that_is_a_file_or_lies_below_one_is_refused_and_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(ConfigError, match=rf"cannot be a folder, because {tmp_path}/file is a file"):
        Storage(str(tmp_path / "file" / below))


def test_a_location_where_no_folder_can_be_made_is_refused_and_named() -> None:
    storage = Storage("/proc/out")  # not even root can make a folder there
    for put in (storage.put, storage.put_new):
        with pytest.raises(StorageError, match=r"writing /proc/out/run\.json failed: "):
            put("run.json", b"{}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_and_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="PermissionError"):
        Storage(str(tmp_path)).put_new("run.json", b"{}")


def test_an_unknown_protocol_is_a_setting_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match="nothing://bucket is not a usable location"):
        Storage("nothing://bucket")


def test_a_wrong_key_is_a_storage_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage = Storage(bucket)
    storage._filesystem = type(storage._filesystem)(skip_instance_cache=True)
    with pytest.raises(StorageError, match=f"writing {bucket}/run.json failed: PermissionError"):
        storage.put_new("run.json", b"{}")


@pytest.mark.slow
@pytest.mark.usefixtures("short_delays")
def test_an_unreachable_server_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    storage = Storage("s3://bucket/out")
    storage._filesystem = type(storage._filesystem)(
        skip_instance_cache=True,
        endpoint_url="http://127.0.0.1:1",
        config_kwargs={"retries": {"total_max_attempts": 1}},
    )
    storage._filesystem.retries = 1
    with pytest.raises(StorageError, match=r"writing s3://bucket/out/run\.json failed: .*127\.0\.0\.1:1"):
        storage.put_new("run.json", b"{}")


def test_absent_credentials_are_a_storage_error_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    storage = Storage("s3://bucket/out")
    storage._filesystem = type(storage._filesystem)(skip_instance_cache=True)
    with pytest.raises(StorageError, match="NoCredentialsError: Unable to locate credentials"):
        storage.put_new("run.json", b"{}")


def test_files_are_put_and_objects_are_read_as_streams(storage: Storage, tmp_path: Path) -> None:
    file = tmp_path / "large"
    for data in (b"first" * 1000, b""):
        file.write_bytes(data)
        storage.put_file("tables/a.bin", file)
        assert storage.get("tables/a.bin") == data
        assert storage.read("tables/a.bin", lambda stream: (stream.seek(2), stream.read(3))[1]) == data[2:5]
    assert storage.read("tables/none.bin", lambda stream: stream.read()) is None
    assert storage.keys("tables") == ["tables/a.bin"]

    def refuse(stream: BinaryIO) -> None:
        raise ValueError("no table")

    with pytest.raises(ValueError, match="no table"):
        storage.read("tables/a.bin", refuse)


@pytest.mark.slow
def test_deleting_many_objects_leaves_the_others(storage: Storage) -> None:
    names = [f"records/{number}.json" for number in range(5)] + ["records/[x].json", "records/a b.json"]
    for name in names:
        storage.put(name, b"{}")
    storage.delete_many(["records/none.json", *names[1:]])
    storage.delete_many([])
    assert storage.keys("records") == names[:1]


@pytest.mark.usefixtures("short_delays")
def test_the_first_error_of_a_store_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage("memory://restarting")
    told: list[int] = []

    def fail(*_: object, **__: object) -> None:
        told.append(len(caplog.messages))
        raise ConnectionResetError("https://key:secret@store was reset")

    monkeypatch.setattr(type(storage._filesystem), "pipe_file", fail)
    with pytest.raises(StorageError, match="failed: ConnectionResetError"):
        storage.put("run.json", b"{}")
    assert told[:3] == [0, 1, 1]
    assert caplog.messages == [
        "writing memory://restarting/run.json failed (ConnectionResetError: https://***@store was reset): "
        "trying again for up to a minute"
    ]


@pytest.mark.usefixtures("short_delays")
def test_an_upload_that_arrived_cut_short_is_sent_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage = Storage("memory://arrived-in-part")
    sent: list[str] = []
    pipe_file = type(storage._filesystem).pipe_file

    def cut(self: object, path: str, value: bytes, *rest: object, **options: object) -> None:
        sent.append(path)
        pipe_file(self, path, value[: len(value) // 2] if len(sent) < 3 else value)

    monkeypatch.setattr(type(storage._filesystem), "pipe_file", cut)
    storage.put("videos/a.mp4", b"whole video")
    assert (len(sent), storage.get("videos/a.mp4")) == (3, b"whole video")
    monkeypatch.setattr(
        type(storage._filesystem), "pipe_file", lambda self, path, value: pipe_file(self, path, b"half")
    )
    with pytest.raises(StorageError, match=r"videos/b\.mp4 failed: OSError: 4 of 11 bytes have arrived"):
        storage.put("videos/b.mp4", b"whole video")


def test_uploads_of_a_killed_process_are_aborted(bucket: str) -> None:
    ours, others = Storage(f"{bucket}/out"), Storage(f"{bucket}/output-of-another")
    for storage in (ours, others):
        storage._filesystem.call_s3(
            "create_multipart_upload",
            Bucket=bucket.removeprefix("s3://"),
            Key=f"{storage.root.partition('/')[2]}/metadata.parquet",
        )
    assert ours.abort_uploads(is_own_key) == 1
    assert (ours.abort_uploads(is_own_key), others.abort_uploads(is_own_key)) == (0, 1)
    assert Storage("memory://x").abort_uploads(is_own_key) == 0


@pytest.mark.slow
def test_uploads_are_aborted_page_by_page_and_only_below_the_root(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"{bucket}/out")
    call_s3, name = storage._filesystem.call_s3, bucket.removeprefix("s3://")
    own = [f"out/{key}" for key in ("metadata.parquet", "videos/a.01234567.mp4", "videos/a.01234567.mp4", "run.json")]
    others = ["aaa/big", "out/1", "out/2", "out/videos/2", "out/videos/3", "zzz/big"]
    for key in (*own, *others):
        call_s3("create_multipart_upload", Bucket=name, Key=key)
    calls: list[str] = []

    def small_pages(method: str, **words: object) -> object:
        calls.append(method)
        return call_s3(method, **words, **({"MaxUploads": 2} if method.startswith("list") else {}))

    monkeypatch.setattr(storage._filesystem, "call_s3", small_pages)
    assert storage.abort_uploads(is_own_key) == 4
    left = call_s3("list_multipart_uploads", Bucket=name)["Uploads"]
    assert {upload["Key"] for upload in left} == set(others)


@pytest.mark.slow
@pytest.mark.parametrize("error", [PermissionError("AccessDenied"), NotImplementedError("a header that you provided")])
def test_a_store_without_uploads_is_asked_once(bucket: str, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    storage = Storage(bucket)
    calls: list[str] = []

    def refuse(method: str, **_: object) -> None:
        calls.append(method)
        raise error

    monkeypatch.setattr(storage._filesystem, "call_s3", refuse)
    with pytest.raises(StorageError, match=f"left in {bucket} failed: {type(error).__name__}: {error}"):
        storage.abort_uploads(is_own_key)
    assert calls == ["list_multipart_uploads"]


def test_temporary_files_of_killed_writers_are_removed_once_they_are_old(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert Storage(str(tmp_path / "none")).abort_uploads(is_own_key) == 0
    writer = "import os, sys, pipeline.output.storage as s; s.os.fsync = lambda _: os._exit(1); "
    for key in ("videos/a.01234567.mp4", "records/attempt-2/a.json", "run.json"):
        script = f"{writer} s.Storage({storage.url!r}).put({key!r}, b'half')"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1
    hidden = list(tmp_path.rglob(".*.partial"))
    assert len(hidden) == 3
    storage.put("videos/b.one.mp4", b"whole")
    others = [
        tmp_path / name
        for name in (".m.parquet.4711.partial", "notes.partial", f".notes.txt.{'a' * 32}.partial", "videos/b.one.mp4")
    ]
    for path in others:
        path.touch()
    for path in [*others, *hidden[1:]]:
        os.utime(path, (0, time.time() - storage_module.ABANDONED_S - 1))
    assert storage.abort_uploads(is_own_key) == 2
    assert list(tmp_path.rglob(".*.partial")).count(hidden[0]) == 1
    assert all(path.exists() for path in others)
    assert storage.abort_uploads(is_own_key) == 0
