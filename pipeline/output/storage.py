"""An output folder or bucket prefix: whole objects, put at once, or put only if nobody else has.

Any fsspec store serves. Keys are relative to the root and use `/`.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from sgi2v.errors import ConfigError, StorageError
from sgi2v.retry import ATTEMPTS, FINAL_ERRORS, with_retries

DELETES = 16
"""Objects deleted at once."""
PARTIAL_S = 3600.0
"""Since its last change a writer's hidden file is a killed one's."""

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
ResultT = TypeVar("ResultT")


class Storage:
    """Objects below one root, on local disk or in any fsspec store."""

    def __init__(self, url: str) -> None:
        """url: a local path or an fsspec URL; `~` is expanded. Raises ConfigError for an unknown protocol."""
        import fsspec

        self.url = url.rstrip("/") or url
        try:
            filesystem, root = fsspec.core.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{url} is not a usable location: {error}") from error
        self._filesystem: Any = filesystem
        self.root = str(root).rstrip("/")
        protocols = filesystem.protocol if isinstance(filesystem.protocol, (list, tuple)) else [filesystem.protocol]
        self.is_local = "file" in protocols

    def put_new(self, key: str, data: bytes) -> bool:
        """Put an object only if there is none; False if somebody else's is there.

        An answer that got lost on the way is told from a competitor by the object's bytes. Where the object is gone
        before it can be looked at, nobody knows whose it was, and it is put again.
        """

        def operation() -> bool:
            try:
                self._link(key, data) if self.is_local else self._create(key, data)
            except FileExistsError as error:
                there = self.get(key)
                if there is None:
                    raise OSError("what was there is gone") from error  # tried again
                return there == data
            return True

        return self._guarded(f"writing {self.url}/{key}", operation)

    def put(self, key: str, data: bytes) -> None:
        """Put an object in place of whatever was there; readers see the old or the new one, whole."""

        def operation() -> None:
            if self.is_local:
                self._write_temporary(key, io.BytesIO(data)).replace(self._local(key))
            else:
                self._filesystem.pipe_file(self._path(key), data)
                self._check_size(key, len(data))

        self._guarded(f"writing {self.url}/{key}", operation)

    def put_file(self, key: str, file: Path) -> None:
        """Put a file's content as `put` does, without holding it in memory."""

        def operation() -> None:
            if self.is_local:
                with file.open("rb") as source:
                    self._write_temporary(key, source).replace(self._local(key))
            else:
                self._filesystem.put_file(str(file), self._path(key))
                self._check_size(key, file.stat().st_size)

        self._guarded(f"writing {self.url}/{key}", operation)

    def get(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""

        def operation() -> bytes | None:
            try:
                return bytes(self._filesystem.cat_file(self._path(key)))
            except FileNotFoundError:
                return None

        return self._guarded(f"reading {self.url}/{key}", operation)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of every object that is there, fetched concurrently where the store can."""
        wanted = list(keys)

        def operation() -> dict[str, bytes]:
            # not `cat`, which takes a name with brackets for a pattern
            every = [self._path(key) for key in wanted]
            found = dict(zip(wanted, self._filesystem.cat_ranges(every, None, None, on_error="return"), strict=True))
            for value in found.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
            return {key: bytes(value) for key, value in found.items() if not isinstance(value, Exception)}

        return self._guarded(f"reading from {self.url}", operation)

    def read(self, key: str, parse: Callable[[BinaryIO], ResultT]) -> ResultT | None:
        """What parse makes of an object opened for reading, or None where there is none; its ValueErrors are raised."""

        def operation() -> tuple[ResultT | None, ValueError | None]:
            self._filesystem.invalidate_cache()
            try:
                with self._filesystem.open(self._path(key), "rb") as stream:
                    return parse(stream), None
            except FileNotFoundError:
                return None, None
            except ValueError as error:  # of what is in the object: no second try would change it
                return None, error

        result, error = self._guarded(f"reading {self.url}/{key}", operation)
        if error is not None:
            raise error
        return result

    def keys(self, folder: str) -> list[str]:
        """Every key below a folder; empty where there is none."""

        def operation() -> list[str]:
            if self.is_local:
                return self._local_keys(folder)
            self._filesystem.invalidate_cache()
            try:
                found = self._filesystem.find(self._path(folder))
            except FileNotFoundError:
                return []
            prefix = len(self.root) + 1
            return [name[prefix:] for name in found if not Path(name).name.startswith(".")]

        return self._guarded(f"listing {self.url}/{folder}", operation)

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""

        def operation() -> None:
            try:
                self._filesystem.rm_file(self._path(key))
            except FileNotFoundError:
                return

        self._guarded(f"deleting {self.url}/{key}", operation)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete these objects, those that are there, several at once."""
        # not fsspec's `rm`, which takes names with brackets for patterns, and stops where one is not there
        with ThreadPoolExecutor(DELETES) as pool:
            for _ in pool.map(self.delete, keys):
                pass

    def abort_uploads(self) -> int:
        """Take away what killed writers have left below the root: uploads in parts, and on a disk their hidden files.

        They cost money or room and are seen in no listing. Returns how many there were; for the holder of the lease.
        Tried once: a store need not have this call, nor allow it. Raises StorageError.
        """
        if self.is_local:
            clear = self._remove_partial_files
        elif hasattr(self._filesystem, "list_multipart_uploads"):
            clear = self._abort_multipart_uploads
        else:
            return 0
        return self._guarded(f"aborting the uploads that killed writers have left in {self.url}", clear, attempts=1)

    def _abort_multipart_uploads(self) -> int:
        bucket, _, prefix = self.root.partition("/")
        below = f"{prefix}/" if prefix else ""
        seen: set[str] = set()
        while True:
            # what a page listed is gone, so that the next one is the first again: stores differ in their markers
            listed = self._filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=below)
            ours = [each for each in listed.get("Uploads", []) if each["Key"].startswith(below)]
            new = [each for each in ours if each["UploadId"] not in seen]
            for each in new:
                with suppress(FileNotFoundError):  # gone meanwhile
                    self._filesystem.call_s3(
                        "abort_multipart_upload", Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]
                    )
            seen.update(each["UploadId"] for each in new)
            if not new or not listed.get("IsTruncated"):
                return len(seen)

    def _remove_partial_files(self) -> int:
        """Old ones alone: a late worker of an overtaken run may be at work on its own."""
        removed = 0
        for folder, _, names in os.walk(self.root):
            for file in (Path(folder) / name for name in names if _PARTIAL.fullmatch(name)):
                with suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime > PARTIAL_S:
                        file.unlink()
                        removed += 1
        return removed

    def _check_size(self, key: str, size: int) -> None:
        """That an upload has arrived whole; its bytes are checked by the store, against a checksum sent with them."""
        stored = self._filesystem.info(self._path(key))["size"]
        if stored != size:
            raise OSError(f"{stored} of {size} bytes have arrived")

    def _guarded(self, what: str, operation: Callable[[], ResultT], attempts: int = ATTEMPTS) -> ResultT:
        try:
            return with_retries(what, operation, attempts)
        except FINAL_ERRORS as error:
            raise StorageError(f"{what} failed: {type(error).__name__}: {error}") from error

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _local(self, key: str) -> Path:
        return Path(self.root) / key

    def _local_keys(self, folder: str) -> list[str]:
        """By names alone: asking each file for more would take one that goes meanwhile for a folder that is none."""

        def unlisted(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        walked = os.walk(self._local(folder), onerror=unlisted)
        files = (Path(place) / name for place, _, names in walked for name in names if not name.startswith("."))
        return sorted(file.relative_to(self.root).as_posix() for file in files)

    def _write_temporary(self, key: str, source: BinaryIO) -> Path:
        """A hidden file beside the key that holds all that is left of the source, flushed to the disk."""
        path = self._local(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # which would say that the object is there
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

    def _link(self, key: str, data: bytes) -> None:
        """Exclusive and whole: a hard link appears at once and fails where a file is."""
        temporary = self._write_temporary(key, io.BytesIO(data))
        try:
            os.link(temporary, self._local(key))
        finally:
            temporary.unlink(missing_ok=True)

    def _create(self, key: str, data: bytes) -> None:
        """Conditional put (S3: If-None-Match: *); s3fs says EINVAL for a failed precondition."""
        try:
            self._filesystem.pipe_file(self._path(key), data, mode="create")
        except OSError as error:
            self._filesystem.invalidate_cache()
            if error.errno == errno.EINVAL and self._filesystem.exists(self._path(key)):
                raise FileExistsError(self._path(key)) from error
            raise
