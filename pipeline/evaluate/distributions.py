"""FID and FVD of an evaluation: its videos against a folder of real ones. They run in the driver's process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.urls import read_image_bytes
from pipeline.evaluate.clips import MAX_VIDEO_BYTES
from pipeline.evaluate.config import EvaluationConfig
from pipeline.evaluate.sources import mp4s_in
from sgi2v.errors import ConfigError, SampleError
from sgi2v.metrics.distribution import LEAST_FRAMES, LOW_N, Features, distance, load_features
from sgi2v.trajectory import Floats
from sgi2v.video import Frames, decode_mp4
from sgi2v.wording import counted

MEANING = "compares only with the same number of videos, frames, size, and the same library and weights"


def distances(
    config: EvaluationConfig, names: Sequence[str], results: pa.Table, say: Callable[[str], None]
) -> dict[str, Any]:
    """Each distance by name. results: of the evaluation. Raises ConfigError for real videos that cannot be used."""
    import torch

    assert config.real is not None
    measured = results.filter(pc.equal(results["status"], "measured"))
    videos = list(zip(measured["video_uri"].to_pylist(), measured["picture_box"].to_pylist(), strict=True))
    real: list[tuple[str, list[int] | None]] = [(uri, None) for uri in mp4s_in(config.real)]
    found = {}
    for name in names:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        features, library = load_features(name, config.weights.get(name), device)
        say(f"{name} of {counted(len(videos), 'video')} and {counted(len(real), 'real video')}, on {device}")
        least = LEAST_FRAMES if name == "fvd" else 1
        lengths: dict[str, int] = {}
        values = distance(
            _features(features, videos, least, lengths), _features(features, real, least, lengths), library
        )
        found[name] = {**asdict(values), "frames": lengths, "note": MEANING}
        if values.low_n:
            say(f"{name} {values.value:.2f} is low_n: under {LOW_N} videos it says little")
    return found


def _features(
    features: Features, videos: Sequence[tuple[str, Sequence[int] | None]], least: int, lengths: dict[str, int]
) -> Iterator[Floats]:
    """The features of each video. lengths: counts the videos by their number of frames."""
    for uri, picture_box in videos:
        frames_THWC = _frames(uri, picture_box)
        if len(frames_THWC) < least:
            raise ConfigError(f"{uri} has {counted(len(frames_THWC), 'frame')}, and fvd needs {least} or more")
        lengths[str(len(frames_THWC))] = lengths.get(str(len(frames_THWC)), 0) + 1
        yield features(frames_THWC)


def _frames(uri: str, picture_box: Sequence[int] | None) -> Frames:
    try:
        frames_THWC = decode_mp4(read_image_bytes(uri, MAX_VIDEO_BYTES))
    except (SampleError, OSError) as error:
        raise ConfigError(f"{uri} cannot be compared: {error}") from error
    if picture_box is None:
        return frames_THWC
    left, top, right, bottom = picture_box
    return frames_THWC[:, top:bottom, left:right]
