"""What an evaluation is made of: videos, protocols, trackers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests.fit import FITS, Fit
from pipeline.config import ExecutionConfig, absolute
from sgi2v.errors import ConfigError
from sgi2v.metrics.protocols import DISTRIBUTIONS, PROTOCOLS
from sgi2v.tracking import TRACKERS, PointTracker, load_tracker
from sgi2v.wording import did_you_mean


@dataclass(frozen=True)
class EvaluationConfig:
    """Everything that an evaluation is made of."""

    videos: str
    """An output of this program, an evaluation, a manifest with the column `video`, or a folder of videos."""
    output: str
    manifest: str | None = None
    """Boxes and paths of the videos in a folder; None: a table that lies in it."""
    protocols: tuple[str, ...] = ("objmc/v2",)
    trackers: tuple[str, ...] = ("lucas-kanade",)
    weights: Mapping[str, str] = field(default_factory=dict, hash=False)  # Ray Data hashes the arguments of a stage
    """Files of weights, by tracker or protocol."""
    fit: Fit = "stretch"
    """How the pictures fill the videos, where neither a row nor an output says."""
    real: str | None = None
    """Folder of real videos."""
    video_name: str | None = None
    """Which mp4 of each sample's folder."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @property
    def per_video(self) -> tuple[str, ...]:
        """The protocols that measure one video."""
        return tuple(name for name in self.protocols if name in PROTOCOLS)

    @property
    def references(self) -> str | None:
        """The folder of real videos, if a protocol of single videos needs them."""
        return self.real if any(PROTOCOLS[name].needs_reference for name in self.per_video) else None

    def load_trackers(self) -> list[PointTracker]:
        """The trackers. Raises ConfigError."""
        return [load_tracker(name, self.weights.get(name)) for name in self.trackers]

    def deciding(self) -> dict[str, Any]:
        """What decides the values, as plain values: one folder has the results of one such choice.

        Raises ConfigError for a tracker whose weights cannot be had.
        """
        return {
            "videos": self.videos,
            "manifest": self.manifest,
            "protocols": list(self.per_video),
            "trackers": {tracker.name: tracker.version for tracker in self.load_trackers()},
            "fit": self.fit,
            "real": self.references,
            "video_name": self.video_name,
        }


def settle(
    videos: str,
    output: str,
    manifest: str | None,
    protocols: Sequence[str],
    trackers: Sequence[str],
    weights: Sequence[str],
    fit: str,
    real: str | None,
    video_name: str | None,
    execution: ExecutionConfig,
) -> EvaluationConfig:
    """The settings of a command line. Raises ConfigError for what cannot be used."""
    known = [*PROTOCOLS, *DISTRIBUTIONS]
    for name in protocols:
        if name not in known:
            raise ConfigError(
                f"there is no protocol {name!r}{did_you_mean(name, known)}: use one of {', '.join(known)}"
            )
    for name in trackers:
        if name not in TRACKERS:
            raise ConfigError(
                f"there is no tracker {name!r}{did_you_mean(name, TRACKERS)}: use one of {', '.join(sorted(TRACKERS))}"
            )
    if fit not in FITS:
        raise ConfigError(f"--fit {fit} is not known{did_you_mean(fit, FITS)}: use one of {', '.join(FITS)}")
    config = EvaluationConfig(
        videos=absolute(videos),
        output=absolute(output),
        manifest=None if manifest is None else absolute(manifest),
        protocols=tuple(dict.fromkeys(protocols)),
        trackers=tuple(dict.fromkeys(trackers)),
        weights=_weights(weights, [*trackers, *protocols]),
        fit=fit,
        real=None if real is None else absolute(real),
        video_name=video_name,
        execution=execution,
    )
    needs_real = [name for name in config.protocols if name in DISTRIBUTIONS]
    needs_real += [name for name in config.per_video if PROTOCOLS[name].needs_reference]
    if needs_real and config.real is None:
        raise ConfigError(
            f"{needs_real[0]} compares with real videos, and none are given: give their folder with --real, or leave "
            "the protocol out"
        )
    if not config.per_video:
        raise ConfigError("fid and fvd say nothing about control: name a protocol of single videos too, or none")
    return config


def _weights(texts: Sequence[str], used: Sequence[str]) -> dict[str, str]:
    weights = {}
    for text in texts:
        match = re.fullmatch(r"([^=]+)=(.+)", text)
        if match is None:
            raise ConfigError(f"--weights {text}: write the name and the file, as in tapir=bootstapir.pt")
        if match[1] not in used:
            raise ConfigError(f"--weights {text}: {match[1]} is neither a --tracker nor a --protocol of this command")
        weights[match[1]] = absolute(match[2])
    return weights


def suffix_of(trackers: Sequence[str], tracker: str) -> str:
    """What the columns of a tracker end with: nothing for the first one, else `__tapir` or `__lucas_kanade`."""
    return "" if tracker == trackers[0] else f"__{re.sub(r'[^A-Za-z0-9]', '_', tracker)}"
