"""`fid` and `fvd`: how far the videos as a whole are from real ones. Both by kept libraries, the extra `[evaluate]`.

FID: features of every frame by torch-fidelity's Inception v3 (2048). FVD: features of every video by the I3D of cd-fvd
(400 logits, 224 px). The distance of both is torch-fidelity's, by eigenvalues. Both are biased upwards where videos
are few, and a value compares only with one of the same number of videos, frames, size and library.

Axes: V videos, F features, T frames, H W pixels, C colours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.errors import ConfigError
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

LOW_N = 256
"""Under so many videos of either kind a value says little."""
HALVES = 5
"""Random halves of which the value is told too."""
SEED = 0
LEAST_FRAMES = 10
"""I3D takes no shorter video."""
BATCH = 16
"""Frames that go through Inception at once."""

Features = Callable[[Frames], Floats]
"""Takes the frames of a video, returns its features: one row a frame (fid) or one row (fvd)."""


@dataclass(frozen=True)
class Distance:
    """A distance between videos and real ones."""

    value: float
    videos: int
    real: int
    low_n: bool
    """Fewer than 256 videos of either kind."""
    halves: tuple[float, ...]
    """The distance of a random half of the videos to a random half of the real ones, five times."""
    library: str


def load_features(name: str, weights: str | None, device: str) -> tuple[Features, str]:
    """The features of `fid` or `fvd`, and the library. weights: file; None lets the library fetch them.

    Raises ConfigError where the library or the weights cannot be had.
    """
    try:
        return {"fid": _inception, "fvd": _i3d}[name](weights, device)
    except ImportError as error:
        raise ConfigError(
            f"{name} needs a package that is not installed ({error}): pip install 'sgi2v-batch[evaluate]'"
        ) from error
    except (OSError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"the weights of {name} cannot be loaded ({error}): give their file with --weights {name}=FILE"
        ) from error


def _inception(weights: str | None, device: str) -> tuple[Features, str]:
    import torch
    from torch_fidelity import FeatureExtractorInceptionV3

    _check_file("fid", weights)
    extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    extractor.eval().to(device)

    def features(frames_THWC: Frames) -> Floats:
        frames_TCHW: Any = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        with torch.no_grad():
            parts = [extractor(part.to(device))[0].cpu() for part in frames_TCHW.split(BATCH)]
        return np.asarray(torch.cat(parts).numpy(), np.float64)

    return features, f"torch-fidelity {version('torch-fidelity')}, Inception v3 2048"


def _i3d(weights: str | None, device: str) -> tuple[Features, str]:
    from cdfvd import fvd

    _check_file("fvd", weights)
    with redirect_stdout(sys.stderr):  # it says what it loads
        model = fvd.cdfvd("i3d", n_real="full", n_fake="full", ckpt_path=weights, compute_feats=True, device=device)

    def features(frames_THWC: Frames) -> Floats:
        model.empty_fake_stats()
        model.fake_stats.capture_all = True
        model.add_fake_stats(frames_THWC[None])
        return np.asarray(model.fake_stats.get_all(), np.float64)

    return features, f"cd-fvd {version('cd-fvd')}, I3D 400 logits"


def _check_file(name: str, weights: str | None) -> None:
    if weights is not None and not Path(weights).is_file():
        raise ConfigError(f"--weights {name}={weights}: no such file")


def distance(features: Iterable[Floats], real: Iterable[Floats], library: str) -> Distance:
    """The distance between videos and real ones. features, real: of each video [rows, F].

    Raises ConfigError for fewer than two rows of features on either side.
    """
    of_videos, of_real = list(features), list(real)
    if min(sum(map(len, of_videos)), sum(map(len, of_real))) < 2:
        raise ConfigError(
            f"a distance between distributions needs two videos or more, and there are {len(of_videos)}, with "
            f"{len(of_real)} real ones"
        )
    draw = np.random.default_rng(SEED)
    halves = []
    for _ in range(HALVES):
        parts = [[each[number] for number in _half(len(each), draw)] for each in (of_videos, of_real)]
        if min(sum(map(len, part)) for part in parts) >= 2:
            halves.append(frechet(*(np.concatenate(part) for part in parts)))
    return Distance(
        value=frechet(np.concatenate(of_videos), np.concatenate(of_real)),
        videos=len(of_videos),
        real=len(of_real),
        low_n=min(len(of_videos), len(of_real)) < LOW_N,
        halves=tuple(halves),
        library=library,
    )


def _half(count: int, draw: np.random.Generator) -> Any:
    return draw.permutation(count)[: max(count // 2, 1)]


def frechet(first: Floats, second: Floats) -> float:
    """The Frechet distance between two sets of features [rows, F], by torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    statistics = [
        {"mu": each.mean(axis=0), "sigma": np.atleast_2d(np.cov(each, rowvar=False))} for each in (first, second)
    ]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])
