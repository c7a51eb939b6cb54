"""An output folder or bucket prefix: whole objects, put at once, or put only if nobody else has.

Any fsspec store serves. Keys are relative to the root and use `/`.
"""

from __future__ import annotations

import errno
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from sgi2v.errors import ConfigError, SGI2VError, StorageError

ATTEMPTS = 5
"""Tries of one operation before it is fatal."""
FIRST_DELAY_S = 0.5
"""Before the second try; doubled each time, with jitter."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)
_FULL = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}
_HOPELESS = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "InvalidRegionError"}
"""Errors of the AWS SDK that no second try heals."""
ResultT = TypeVar("ResultT")


def with_retries(what: str, operation: Callable[[], ResultT]) -> ResultT:
    """Run an operation on a store, again after passing errors; StorageError when they do not pass.

    What is missing, exists, or is not permitted is final and raised as it is.
    """
    for attempt in range(ATTEMPTS):
        try:
            return operation()
        except (SGI2VError, *_FINAL, *_BUGS):
            raise
        except Exception as error:  # a store's client raises what its own library raises
            hopeless = getattr(error, "errno", None) in _FULL or type(error).__name__ in _HOPELESS
            if hopeless or attempt + 1 == ATTEMPTS:
                raise StorageError(f"{what} failed: {type(error).__name__}: {error}") from error
            time.sleep(FIRST_DELAY_S * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


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

        An answer that got lost on the way is told from a competitor by the object's bytes.
        """

        def operation() -> bool:
            try:
                self._link(key, data) if self.is_local else self._create(key, data)
            except FileExistsError:
                return self.get(key) == data
            return True

        return self._guarded(f"writing {self.url}/{key}", operation)

    def put(self, key: str, data: bytes) -> None:
        """Put an object in place of whatever was there; readers see the old or the new one, whole."""

        def operation() -> None:
            if self.is_local:
                temporary = self._write_temporary(key, data)
                temporary.replace(self._local(key))
            else:
                self._filesystem.pipe_file(self._path(key), data)

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

    def _guarded(self, what: str, operation: Callable[[], ResultT]) -> ResultT:
        try:
            return with_retries(what, operation)
        except _FINAL as error:
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

    def _write_temporary(self, key: str, data: bytes) -> Path:
        """A hidden file beside the key that holds all of the data, flushed to the disk."""
        path = self._local(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # which would say that the object is there
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(path.parent)) from error
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _link(self, key: str, data: bytes) -> None:
        """Exclusive and whole: a hard link appears at once and fails where a file is."""
        temporary = self._write_temporary(key, data)
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
