"""Storage of an output: whole objects in a local folder or below a prefix of any fsspec store.

Keys are relative to the root and use `/`. See docs/output-format.md, Puts.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from manifests.access import without_secrets
from sgi2v.errors import ConfigError, StorageError
from sgi2v.locations import credentials_advice, open_store
from sgi2v.retry import ATTEMPTS, FINAL_ERRORS, with_retries

PARALLEL_DELETES = 16
"""Objects that are deleted at the same time."""
ABANDONED_S = 3600.0
"""Seconds since the last change of an unfinished or unnamed object after which its writer counts as killed."""

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial")
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Answers of a disk to a hard link in a folder where a file could be made just before."""
ResultT = TypeVar("ResultT")


class Storage:
    """Objects below one root, on local disk or in any fsspec store."""

    def __init__(self, url: str) -> None:
        """url: a local path or an fsspec URL; `~` is expanded. Raises ConfigError for one that cannot be a folder."""
        self.url = url.rstrip("/") or url
        try:
            filesystem, root = open_store(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{url} is not a usable location: {error}") from error
        self._filesystem: Any = filesystem
        self.root = str(root).rstrip("/")
        protocols = filesystem.protocol if isinstance(filesystem.protocol, (list, tuple)) else [filesystem.protocol]
        self.is_local = "file" in protocols
        if self.is_local and (file := _file_on_the_way(Path(self.root))):
            raise ConfigError(f"{url} cannot be a folder, because {file} is a file: give another location")

    def check_usable(self) -> None:
        """Raise ConfigError if this store cannot hold an output.

        Puts a new object, lists and reads it, makes another conditional put of its key, and deletes it. Some clients
        put `s3://bucket//x` under one key and list another: a run would find none of its records. Where a conditional
        put replaces an object, two runs could overwrite each other's results.
        """
        folder = "lease"
        key = f"{folder}/probe-{uuid.uuid4().hex}"
        self.put_new(key, b"first")
        try:
            is_found = self.get(key) == b"first"
            if not is_found or key not in self.keys(folder):
                what = "lists it under another name or not at all" if is_found else "does not give it back"
                raise ConfigError(
                    f"{self.url} cannot hold an output: an object was put there as {key}, and the store {what}. "
                    "Give a location without empty parts (`//`), `.` and `..`"
                )
            if self.put_new(key, b"second"):
                raise self._refusal("ignores the condition of a put (If-None-Match: *)")
        finally:
            with suppress(StorageError):
                self.delete(key)

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(
            f"{self.url} cannot hold an output, because the store {reason}: two runs could overwrite each other's "
            "results. Use a local disk, or a store with conditional writes: Amazon S3, Google Cloud Storage, Azure "
            "Blob Storage, or a recent MinIO, Ceph or SeaweedFS"
        )

    def put_new(self, key: str, data: bytes) -> bool:
        """Conditional put: write an object if the key is free. Returns False if another writer's object is there.

        An object with the same bytes counts as this writer's: the store accepted an earlier attempt, and the answer
        got lost. If the object is deleted before it can be compared, the put is tried again.
        """

        def operation() -> bool:
            try:
                self._create_local(key, data) if self.is_local else self._create_remote(key, data)
            except FileExistsError as error:
                existing = self.get(key)
                if existing is None:
                    raise OSError("the object was deleted during a conditional put") from error  # tried again
                return existing == data
            return True

        return self._with_retries(f"writing {self.url}/{key}", operation)

    def put(self, key: str, data: bytes) -> None:
        """Write an object, or replace the one that is there. A reader gets the old or the new one, whole."""

        def operation() -> None:
            if self.is_local:
                self._write_temporary(key, io.BytesIO(data)).replace(self._local(key))
            else:
                self._filesystem.pipe_file(self._path(key), data)
                self._check_size(key, len(data))

        self._with_retries(f"writing {self.url}/{key}", operation)

    def put_file(self, key: str, file: Path) -> None:
        """Write an object from a file, as `put` does, without holding it in memory."""

        def operation() -> None:
            if self.is_local:
                with file.open("rb") as source:
                    self._write_temporary(key, source).replace(self._local(key))
            else:
                self._filesystem.put_file(str(file), self._path(key))
                self._check_size(key, file.stat().st_size)

        self._with_retries(f"writing {self.url}/{key}", operation)

    def get(self, key: str) -> bytes | None:
        """The bytes of an object; None if there is none; no bytes for a folder in its place."""

        def operation() -> bytes | None:
            try:
                return bytes(self._filesystem.cat_file(self._path(key)))
            except FileNotFoundError:
                return None
            except IsADirectoryError:
                return b""

        return self._with_retries(f"reading {self.url}/{key}", operation)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those objects that exist, as `get`, fetched concurrently if the store can."""
        wanted = list(keys)

        def operation() -> dict[str, bytes]:
            # not `cat`, which treats a name with brackets as a pattern
            paths = [self._path(key) for key in wanted]
            answers = self._filesystem.cat_ranges(paths, None, None, on_error="return")
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(answer, (FileNotFoundError, IsADirectoryError)):
                    raise answer
            pairs = zip(wanted, answers, strict=True)
            return {
                key: b"" if isinstance(answer, IsADirectoryError) else bytes(answer)
                for key, answer in pairs
                if not isinstance(answer, FileNotFoundError)
            }

        return self._with_retries(f"reading from {self.url}", operation)

    def read(self, key: str, parse: Callable[[BinaryIO], ResultT]) -> ResultT | None:
        """The result of `parse` on an object opened for reading; None if there is none. Raises parse's ValueErrors."""

        def operation() -> tuple[ResultT | None, ValueError | None]:
            self._filesystem.invalidate_cache()
            try:
                with self._filesystem.open(self._path(key), "rb") as stream:
                    return parse(stream), None
            except FileNotFoundError:
                return None, None
            except ValueError as error:  # about the object's content, which another attempt would not change
                return None, error

        result, error = self._with_retries(f"reading {self.url}/{key}", operation)
        if error is not None:
            raise error
        return result

    def keys(self, folder: str) -> list[str]:
        """Every key below a folder; empty if there is none. On a local disk also a folder in the place of an object."""

        def operation() -> list[str]:
            if self.is_local:
                return self._local_keys(folder)
            self._filesystem.invalidate_cache()
            try:
                paths = self._filesystem.find(self._path(folder))
            except FileNotFoundError:
                return []
            prefix = len(self.root) + 1
            return [path[prefix:] for path in paths if not Path(path).name.startswith(".")]

        return self._with_retries(f"listing {self.url}/{folder}", operation)

    def names(self, folder: str) -> list[str]:
        """The names of what lies directly in a folder; empty if there is none."""

        def operation() -> list[str]:
            self._filesystem.invalidate_cache()
            try:
                return sorted(
                    path.rstrip("/").rpartition("/")[2]
                    for path in self._filesystem.ls(self._path(folder), detail=False)
                )
            except (FileNotFoundError, NotADirectoryError):
                return []

        return self._with_retries(f"listing {self.url}/{folder}", operation)

    def size_of(self, key: str) -> int | None:
        """The bytes of an object; None if there is none."""

        def operation() -> int | None:
            self._filesystem.invalidate_cache()
            try:
                return int(self._filesystem.info(self._path(key))["size"])
            except FileNotFoundError:
                return None

        return self._with_retries(f"reading the size of {self.url}/{key}", operation)

    def copy_from(self, other: Storage, key: str) -> bool:
        """Copy an object from below another root to the same key, unless it is here. Returns False if it is not there.

        Two folders of one disk share the file, as a hard link; one object store copies it itself. The size is compared.
        """
        size = other.size_of(key)
        if size is None:
            return False
        if self.size_of(key) == size:
            return True

        def operation() -> None:
            if self.is_local and other.is_local:
                self._link_or_copy(other, key)
            elif self._filesystem is other._filesystem:
                self._filesystem.cp_file(other._path(key), self._path(key))
            else:
                self.put(key, other.get(key) or b"")
            self._check_size(key, size)

        self._with_retries(f"copying {other.url}/{key} to {self.url}", operation)
        return True

    def changed_at(self, key: str) -> float:
        """When an object was last changed, seconds since 1970; now if it is gone, or the store tells no times."""

        def operation() -> float:
            self._filesystem.invalidate_cache()
            try:
                modified: datetime = self._filesystem.modified(self._path(key))
            except (FileNotFoundError, NotImplementedError):
                return time.time()
            return modified.timestamp()

        return self._with_retries(f"reading the time of {self.url}/{key}", operation)

    def delete(self, key: str) -> None:
        """Delete an object if it exists. An empty folder in its place is removed; one with files is a StorageError."""

        def operation() -> None:
            try:
                self._filesystem.rm_file(self._path(key))
            except FileNotFoundError:
                return
            except IsADirectoryError:
                self._filesystem.rmdir(self._path(key))

        self._with_retries(f"deleting {self.url}/{key}", operation)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete those objects that exist, several at a time."""
        # not fsspec's `rm`, which treats names with brackets as patterns, and stops at an object that does not exist
        with ThreadPoolExecutor(PARALLEL_DELETES) as pool:
            for _ in pool.map(self.delete, keys):
                pass

    def abort_uploads(self, is_own: Callable[[str], bool]) -> int:
        """Remove the unfinished uploads of killed writers: multipart uploads, and on a local disk temporary files.

        They take space, and no listing shows them. Returns their number. Only for the holder of the lease. is_own:
        whether a key is one of this program's; other uploads stay, since others may write below the root too. One
        attempt, since a store may not have this call, or not allow it. Raises StorageError.
        """
        if self.is_local:
            remove = self._remove_temporary_files
        elif hasattr(self._filesystem, "list_multipart_uploads"):
            remove = self._abort_multipart_uploads
        else:
            return 0
        what = f"aborting the uploads that killed writers have left in {self.url}"
        return self._with_retries(what, lambda: remove(is_own), attempts=1)

    def _abort_multipart_uploads(self, is_own: Callable[[str], bool]) -> int:
        bucket, _, prefix = self.root.partition("/")
        below = f"{prefix}/" if prefix else ""
        seen: set[str] = set()
        aborted = 0
        markers: dict[str, str] = {}
        while True:
            page = self._filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=below, **markers)
            uploads = {
                upload["UploadId"]: upload["Key"]
                for upload in page.get("Uploads", [])
                if upload["Key"].startswith(below) and is_own(upload["Key"][len(below) :])
            }
            new = uploads.keys() - seen
            for upload_id in new:
                with suppress(FileNotFoundError):  # finished or aborted meanwhile
                    self._filesystem.call_s3(
                        "abort_multipart_upload", Bucket=bucket, Key=uploads[upload_id], UploadId=upload_id
                    )
            seen |= new
            aborted += len(new)
            # the first page again where uploads of it are gone now, since stores differ in their page markers
            names = () if new else (("KeyMarker", "NextKeyMarker"), ("UploadIdMarker", "NextUploadIdMarker"))
            following = {name: page[entry] for name, entry in names if page.get(entry)}
            if not page.get("IsTruncated") or (not new and following == markers):
                return aborted
            markers = following

    def _remove_temporary_files(self, is_own: Callable[[str], bool]) -> int:
        """Only old ones: a worker of a run that has lost its lease may still be writing a young one."""
        removed = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                match = _TEMPORARY.fullmatch(name)
                if match is None or not is_own((Path(folder) / match[1]).relative_to(self.root).as_posix()):
                    continue
                with suppress(FileNotFoundError):
                    file = Path(folder) / name
                    if time.time() - file.stat().st_mtime > ABANDONED_S:
                        file.unlink()
                        removed += 1
        return removed

    def _check_size(self, key: str, size: int) -> None:
        """Raise OSError if an upload has another size. The store checks the bytes, against a checksum sent along."""
        try:
            stored = self._filesystem.info(self._path(key))["size"]
        except FileNotFoundError as error:  # some stores show a new object to all of their servers only later
            raise OSError("the store does not have it yet") from error
        if stored != size:
            raise OSError(f"{stored} of {size} bytes have arrived")

    def _with_retries(self, what: str, operation: Callable[[], ResultT], attempts: int = ATTEMPTS) -> ResultT:
        """The result of an operation, with retries. Final errors become StorageErrors too. what: as `with_retries`."""
        try:
            return with_retries(what, operation, attempts, on_first_error=_warn)
        except FINAL_ERRORS as error:
            advice = credentials_advice(error, self.url)
            raise StorageError(f"{what} failed: {type(error).__name__}: {error}{advice}") from error

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _local(self, key: str) -> Path:
        return Path(self.root) / key

    def _local_keys(self, folder: str) -> list[str]:
        """As `keys`, without fsspec's `find`, which asks for details of a file that may be deleted meanwhile."""

        def ignore_missing(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        walked = os.walk(self._local(folder), onerror=ignore_missing)
        files = (
            Path(parent) / name
            for parent, folders, names in walked
            # a folder with an extension stands where an object should be
            for name in [*names, *(folder for folder in folders if Path(folder).suffix)]
            if not name.startswith(".")
        )
        return sorted(file.relative_to(self.root).as_posix() for file in files)

    def _write_temporary(self, key: str, source: BinaryIO) -> Path:
        """A hidden file beside the key with the rest of the source, flushed to the disk."""
        path = self._local(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # which a conditional put would take for an existing object
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(path.parent)) from error
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with temporary.open("xb") as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _link_or_copy(self, other: Storage, key: str) -> None:
        """Objects are replaced whole and never changed in place, so two outputs can share a file."""
        target = self._local(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(other._local(key), target)
        except OSError:  # another disk, a disk without links, or a file of another size
            with other._local(key).open("rb") as source:
                self._write_temporary(key, source).replace(target)

    def _create_local(self, key: str, data: bytes) -> None:
        """Raises FileExistsError if the key is taken. A hard link appears whole, and fails if a file is there."""
        temporary = self._write_temporary(key, io.BytesIO(data))
        try:
            os.link(temporary, self._local(key))
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise ConfigError(
                f"{self.url} is on a disk without hard links ({error.strerror}), which an output needs so that two "
                "runs cannot overwrite each other's results. Use another disk (one with ext4, XFS, APFS or NTFS has "
                "them), or an object store"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _create_remote(self, key: str, data: bytes) -> None:
        """As `_create_local`. S3: If-None-Match: *; s3fs raises EINVAL for a failed precondition.

        Raises ConfigError if the store or its client has no conditional put.
        """
        from fsspec import AbstractFileSystem

        if getattr(self._filesystem.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file:
            raise self._refusal("has no conditional put")  # it looks first and then replaces
        try:
            self._filesystem.pipe_file(self._path(key), data, mode="create")
        except NotImplementedError as error:
            raise self._refusal("has no conditional put") from error
        except OSError as error:
            if error.errno == errno.ENOSYS:  # the answer NotImplemented of S3
                raise self._refusal(f"refuses a conditional put ({error})") from error
            self._filesystem.invalidate_cache()
            if error.errno == errno.EINVAL and self._filesystem.exists(self._path(key)):
                raise FileExistsError(self._path(key)) from error
            raise


def _warn(line: str) -> None:
    """Log a warning: a driver prints it, and a worker adds it to the log of its sample."""
    logging.getLogger(__name__).warning("%s", without_secrets(line))


def _file_on_the_way(folder: Path) -> Path | None:
    """The path itself or the folder above it that exists and is not a folder; None if there is none."""
    with suppress(OSError):  # what cannot be looked at is reported by the first read
        there = next((path for path in (folder, *folder.parents) if path.exists()), None)
        return there if there is not None and not there.is_dir() else None
    return None
