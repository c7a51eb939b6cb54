"""Every error that the project raises on purpose.

    SGI2VError
      ConfigError             a setting that cannot be used                         exit 2
        ModelError            a model source that is not a usable checkpoint        exit 2
      ManifestError           a manifest that cannot be run at all                  exit 2
      SampleError             one row failed: it is recorded and the run goes on
        TrajectoryError       the row's boxes or trajectories cannot be followed
      StorageError            a store failed after every retry, or a disk is full   exit 3
      ClusterError            Ray lost the cluster or a worker for good             exit 3

Constructors take positional arguments only, so that errors survive pickling between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from sgi2v.wording import escaped


class ErrorCode(StrEnum):
    """Why a sample failed, as written to `failures.parquet`."""

    IMAGE_MISSING = "image_missing"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    BOX_OUTSIDE = "box_outside"
    TRAJECTORY_INVALID = "trajectory_invalid"
    MASK_INVALID = "mask_invalid"
    OUT_OF_MEMORY = "out_of_memory"
    GUIDANCE_DIVERGED = "guidance_diverged"
    VIDEO_INVALID = "video_invalid"
    TRACKING_FAILED = "tracking_failed"
    TIMED_OUT = "timed_out"
    WORKER_DIED = "worker_died"
    UNKNOWN = "unknown"


class Problem(NamedTuple):
    """One fault of a manifest. `row` counts from 0; None stands for the whole file."""

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
        return escaped(f"{place}:{column} {self.message} [{self.code}]")  # ids and names are the manifest's


class SGI2VError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(SGI2VError):
    """A setting cannot be used. The message says what to change."""


class ModelError(ConfigError):
    """A model source is not a usable checkpoint. The message names what is missing."""


class ManifestError(SGI2VError):
    """A manifest cannot be run at all. The message lists every problem."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__(source, problems)
        self.source = source
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join([f"{escaped(self.source)} cannot be used:", *(f"  {problem}" for problem in self.problems)])


class SampleError(SGI2VError):
    """One sample failed. It becomes a failed record, and the run goes on."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class TrajectoryError(SampleError):
    """Boxes or trajectories cannot be followed (`box_outside` or `trajectory_invalid`)."""


class UnusableError(SGI2VError):
    """A part of an input that is left out while others go on. `code` names the kind, `str()` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class StorageError(SGI2VError):
    """A store failed after every retry, or a disk is full."""


class ClusterError(SGI2VError):
    """Ray lost the cluster or a worker for good. Committed samples stay."""


OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "alloc_failed",
    "allocation_failed",
    "defaultcpuallocator",
    "cublas_status_not_initialized",  # cuBLAS could not allocate its handle
    "unable to find an engine",  # cuDNN had no memory for the workspace of any of its engines
)
"""What messages of out-of-memory errors contain, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, a CUDA library or the CPU's allocator ran out of memory.

    False for this project's own errors, whose messages may mention memory.
    """
    if isinstance(error, SGI2VError):
        return False
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    return any(phrase in message for phrase in OUT_OF_MEMORY_PHRASES)
