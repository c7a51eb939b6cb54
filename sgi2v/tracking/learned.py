"""What the trackers with learned weights share: where code and weights come from, and the size of their frames.

Nothing here imports torch before a video is tracked.

Axes: T frames, H W pixels, C colours, RGB; Q query points; 2 is xy.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.errors import ConfigError
from sgi2v.opencv import single_opencv_thread
from sgi2v.tracking.tracker import Flags, Limit, PointTracks
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

REASON_CHARS = 300
"""Characters of a library's own error in a message."""


class LearnedTracker(ABC):
    """A tracker whose model is loaded when the first video comes.

    Its error on the videos of this program was not measured here, and neither was what it cannot follow: no box is left
    out for its size, texture or speed.
    """

    name: str
    num_cpus: float = 1.0
    num_gpus: float = 0.5
    """Half a GPU: an actor on each half keeps a GPU at work while the other decodes its next video."""
    licence: str
    weights_url: str
    """Where its authors publish the weights."""
    adapter: int = 1
    """Version of this project's code around the model."""

    def __init__(self, weights: str | None = None) -> None:
        """weights: file with the weights. None fetches the published ones into the folder of `torch.hub`."""
        self.weights = weights

    @property
    def version(self) -> str:
        """The version of the code around the model, and the digest of the weights."""
        return f"{self.adapter}+weights-{self._digest[:12]}"

    def load(self) -> None:
        """Load the model now. Raises ConfigError where its code or weights cannot be had."""
        try:
            _ = self._model
        except ConfigError:
            raise
        except Exception as error:  # torch, pickle and the model's own code raise errors of many kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARS]
            raise ConfigError(
                f"the weights of {self.name} in {self._weights_file} cannot be loaded ({reason}): take those of "
                f"{self.weights_url}"
            ) from error

    def limit(self, first_frame_HWC: Frames, boxes_T4: Floats) -> Limit | None:
        """None: what it cannot follow is not known."""
        return None

    def track(self, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
        """Follow queries (xy in frame 0, pixels) through all frames."""
        num_frames, height, width = frames_THWC.shape[:3]
        points_TQ2 = np.repeat(np.asarray(queries_Q2, np.float64)[None], num_frames, axis=0)
        visible_TQ = np.ones(points_TQ2.shape[:2], np.bool_)
        if num_frames > 1 and len(queries_Q2):
            found_TQ2, seen_TQ = self._track(frames_THWC, points_TQ2[0])
            points_TQ2[1:], visible_TQ[1:] = found_TQ2[1:], seen_TQ[1:]
        inside_TQ = ((points_TQ2 >= 0) & (points_TQ2 < [width, height])).all(axis=-1)
        return PointTracks(points_TQ2, visible_TQ & inside_TQ)

    @abstractmethod
    def _track(self, frames_THWC: Frames, queries_Q2: Floats) -> tuple[Floats, Flags]:
        """Positions [T, Q, 2] and visibility [T, Q] of one query or more in two frames or more, in pixels of frames."""

    @abstractmethod
    def _load(self, weights: Path) -> Any:
        """The model with these weights, on the CPU."""

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self._weights_file.read_bytes()).hexdigest()

    @cached_property
    def _model(self) -> Any:
        return self._load(self._weights_file).to(self._device).eval()

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _weights_file(self) -> Path:
        """The file of the weights, which is fetched if need be. Raises ConfigError if it cannot be had."""
        if self.weights is not None:
            file = Path(self.weights)
            if not file.is_file():
                raise ConfigError(f"--weights {self.name}={self.weights}: no such file")
            return file
        import torch

        target = Path(torch.hub.get_dir()) / "checkpoints" / self.weights_url.rpartition("/")[2]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.weights_url, str(target), progress=False)
            except OSError as error:
                raise ConfigError(
                    f"the weights of {self.name} cannot be fetched from {self.weights_url} ({error}): fetch them "
                    f"elsewhere, and give --weights {self.name}=FILE"
                ) from error
        return target


def code_of(tracker: str, module: str, advice: str) -> Any:
    """A module of a tracker's own code. advice: how to install it. Raises ConfigError where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"the tracker {tracker} needs code that is not installed ({error}): {advice}") from error


def resized(frames_THWC: Frames, height: int, width: int) -> Frames:
    """The frames at another size, by linear interpolation: a point (x, y) lies at (x, y) * new size / old size."""
    import cv2

    with single_opencv_thread():
        return np.stack(
            [
                cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=cv2.INTER_LINEAR)
                for frame in frames_THWC
            ]
        ).astype(np.uint8)
