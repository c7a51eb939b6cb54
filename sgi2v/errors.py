"""The one error tree of the project.

    SGI2VError
      ConfigError             a setting that cannot be used                  exit 2
        ModelError            a model source that is not a usable checkpoint exit 2
      ManifestError           a manifest that cannot be run at all           exit 2
      SampleError             one row failed; it is recorded, the run goes on
        TrajectoryError       its boxes or paths cannot be followed
      StorageError            the object store refused after every retry     exit 3
      ClusterError            Ray lost the cluster or a worker for good      exit 3

Every constructor is positional, so that an error survives pickling between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class ErrorCode(StrEnum):
    """Why a sample failed, as written to `failures.parquet`."""

    IMAGE_MISSING = "image_missing"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    BOX_OUTSIDE = "box_outside"
    TRAJECTORY_INVALID = "trajectory_invalid"
    OUT_OF_MEMORY = "out_of_memory"
    GUIDANCE_DIVERGED = "guidance_diverged"
    VIDEO_INVALID = "video_invalid"
    TRACKING_FAILED = "tracking_failed"
    TIMED_OUT = "timed_out"
    WORKER_DIED = "worker_died"
    UNKNOWN = "unknown"


class Problem(NamedTuple):
    """One thing that is wrong with a manifest; `row` counts from 0, None is the file as a whole."""

    row: int | None
    sample_id: str | None
    column: str | None
    code: str
    message: str

    def __str__(self) -> str:
        place = "manifest" if self.row is None else f"row {self.row}"
        if self.sample_id is not None:
            place += f" ({self.sample_id})"
        column = f" {self.column}:" if self.column else ""
        return f"{place}:{column} {self.message} [{self.code}]"


class SGI2VError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(SGI2VError):
    """A setting that cannot be used; the message says what to change."""


class ModelError(ConfigError):
    """A model source that is not a usable checkpoint; the message names what is missing."""


class ManifestError(SGI2VError):
    """A manifest that cannot be run at all, with every problem that was found."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__(source, problems)
        self.source = source
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join([f"{self.source} cannot be used:", *(f"  {problem}" for problem in self.problems)])


class SampleError(SGI2VError):
    """One sample failed for a reason of its own; it becomes a failed record."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class TrajectoryError(SampleError):
    """Boxes or paths that cannot be followed (`box_outside` or `trajectory_invalid`)."""


class StorageError(SGI2VError):
    """The object store refused an operation after every retry, or a disk is full."""


class ClusterError(SGI2VError):
    """Ray lost the cluster or a worker for good; what is committed stays."""


OUT_OF_MEMORY = (
    "out of memory",
    "alloc_failed",
    "allocation_failed",
    "defaultcpuallocator",
    "cublas_status_not_initialized",  # there was no room for its handle
    "unable to find an engine",  # nor for any of cuDNN's
)
"""How libraries say it, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Torch's own error, that of a library of CUDA's that found no room to work in, or that of a CPU's allocator.

    An error of this project's is none: it may speak of memory.
    """
    if isinstance(error, SGI2VError):
        return False
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    told = str(error).lower()
    return named or any(words in told for words in OUT_OF_MEMORY)
