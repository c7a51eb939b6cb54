"""What a manifest is made by: how many samples, from which boxes, with which motions and camera moves.

A recipe is a TOML file with a section for each class. Order of settings, the later wins: defaults, file, command line.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from manifests.boxes.filters import BoxFilters
from manifests.boxes.proposer import BoxProposer
from manifests.fit import Fit, VideoSize
from manifests.motion import EASINGS, MOTIONS, MOVES, PAIRS
from manifests.schema import MAX_BOXES
from sgi2v.canonical import canonical_json
from sgi2v.config import SamplerConfig
from sgi2v.errors import ConfigError
from sgi2v.settings import Settings
from sgi2v.wording import did_you_mean

METADATA_KEY = "sgi2v_batch.recipe"
"""Key of the recipe, as JSON, in the metadata of a manifest's Parquet file."""

GROUPS = ("objects", "camera", "both")
"""Shares of samples may be given to these, or to a motion or a move by its name."""

OBJECT_MOTIONS = tuple(name for name in (*MOTIONS, *PAIRS) if name != "replay")
"""Motions that need no file of tracks."""

_VIDEO = SamplerConfig()

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Zoom = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class SampleRecipe(Settings):
    """How many samples are made, and of which kinds."""

    section: ClassVar[str] = "sample"

    seed: Annotated[int, Field(ge=0)] = 0
    """The same seed and pictures give the same manifest, byte by byte."""
    samples: Count | None = None
    """Samples in all; None: as many as `per_image` gives."""
    per_image: Count | None = None
    """Most samples of one picture; None: 1, or as many as `samples` needs."""
    shares: dict[str, float] = Field(default={"objects": 0.7, "camera": 0.2, "both": 0.1})
    """Share of the samples for each of: objects, camera, both, or one motion or camera move. They add up to 1."""
    height: Count = _VIDEO.height
    """Height of the videos to be made, pixels, by which small boxes are left out."""
    width: Count = _VIDEO.width
    """Width of the videos to be made, pixels."""
    frames: Annotated[int, Field(ge=2)] = _VIDEO.num_frames
    """Frames of the videos to be made. Paths have a point for each."""
    fps: Positive = float(_VIDEO.fps)
    """Frames a second, which speeds count by."""
    still: Literal["none", "others"] = "none"
    """others: proposed boxes that do not move become boxes that are told to stay, in column `still`."""
    masks: bool = False
    """Write the objects' masks, where the proposer knows them."""
    fit: Fit | None = None
    """How pictures get the shape of the video, in column `fit`; None leaves it to the run, which crops by default."""
    tries: Count = 10
    """Draws of a sample before it leaves its stratum; after three times as many more it is dropped."""

    @field_validator("shares")
    @classmethod
    def _shares_are_known(cls, shares: dict[str, float]) -> dict[str, float]:
        known = (*GROUPS, *MOTIONS, *PAIRS, *MOVES)
        for name, share in shares.items():
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"there is no motion {name!r}{hint}: known are {', '.join(known)}")
            if not 0 <= share <= 1:
                raise ValueError(f"the share of {name} must be from 0 to 1, not {share}")
        total = sum(shares.values())
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the shares must add up to 1, not {total:g}: {_listed(shares)}")
        return shares

    @property
    def seconds(self) -> float:
        """From the first to the last frame."""
        return (self.frames - 1) / self.fps

    @property
    def video_size(self) -> VideoSize:
        """Size of the videos, and how pictures fill them: cropped, as a run does if neither it nor the row says."""
        return VideoSize(self.height, self.width, self.fit or "crop")


class BoxesRecipe(Settings):
    """Where boxes come from."""

    section: ClassVar[str] = "boxes"

    name: Annotated[str, Field(min_length=1)] = "salient"
    """Name of the box proposer."""
    options: dict[str, Any] = Field(default={})
    """The proposer's own options."""


class _Strata(Settings):
    """Ranges that objects and camera share. Lengths are shares of the picture's diagonal; speeds, a second."""

    lengths: Annotated[tuple[Positive, Positive], Field(strict=False)] = (0.05, 0.3)
    """Shortest and longest path."""
    length_bins: Count = 5
    """Strata of the lengths, equally wide."""
    speeds: Annotated[tuple[Positive, Positive], Field(strict=False)] = (0.05, 0.3)
    """Slowest and fastest movement. A box that arrives before the clip's end stands still from then on."""
    speed_bins: Count = 5
    """Strata of the speeds, equally wide. Those too slow for a length within the clip are left out."""
    directions: Count = 8
    """Strata of the directions, equally wide."""
    easings: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("linear", "in", "out", "in-out")
    """How the speed changes on the way; drawn for each path."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("lengths", "speeds", "zoom", "turns"):
            low, high = getattr(self, name, (0, 0))
            if low > high:
                raise ValueError(f"{self.section}.{name} must rise, such as [{high}, {low}], not {[low, high]}")
        return self

    @field_validator("easings")
    @classmethod
    def _easings_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, EASINGS, "easing")


class MotionRecipe(_Strata):
    """How objects move."""

    section: ClassVar[str] = "motion"

    motions: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = OBJECT_MOTIONS
    """Motions that objects are given, equally often."""
    zoom: Annotated[tuple[Zoom, Zoom], Field(strict=False)] = (1.2, 2.0)
    """Smallest and largest change of size of `towards` and `away`."""
    objects: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (1, 2)
    """Numbers of objects in a sample, equally often. A picture with fewer boxes gives fewer."""
    sizes: Annotated[tuple[Positive, ...], Field(strict=False)] = (0.02, 0.08)
    """Borders between the strata of sizes, as shares of the picture's area. A picture gives the nearest that it has."""
    stay_inside: bool = True
    """Boxes stay wholly inside the picture, and inside the part of it that the video shows."""
    collisions: Literal["none", "any", "wanted"] = "none"
    """none: boxes never overlap. wanted: the boxes of a sample with several objects overlap at some time."""
    tracks: str | None = None
    """Manifest whose paths `replay` uses."""

    @field_validator("motions")
    @classmethod
    def _motions_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, (*MOTIONS, *PAIRS), "motion")

    @field_validator("sizes")
    @classmethod
    def _sizes_rise(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if list(sizes) != sorted(set(sizes)):
            raise ValueError(f"they must rise, not {list(sizes)}")
        return sizes


class CameraRecipe(_Strata):
    """How the camera moves. The whole picture is asked to follow, as boxes of a grid."""

    section: ClassVar[str] = "camera"

    moves: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = tuple(MOVES)
    """Moves that the camera makes, equally often."""
    zoom: Annotated[tuple[Zoom, Zoom], Field(strict=False)] = (1.1, 1.5)
    """Smallest and largest change of size of `dolly-in` and `dolly-out`."""
    turns: Annotated[tuple[Positive, Positive], Field(strict=False)] = (3.0, 15.0)
    """Smallest and largest angle of `roll`, degrees."""
    rows: Count = 3
    """Rows of the grid of background boxes."""
    columns: Count = 5
    """Columns of the grid of background boxes."""

    @field_validator("moves")
    @classmethod
    def _moves_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, MOVES, "camera move")

    @model_validator(mode="after")
    def _grid_fits_a_row(self) -> Self:
        if self.rows * self.columns > MAX_BOXES // 2:
            most = f"at most {MAX_BOXES // 2} boxes"
            raise ValueError(f"camera.rows x camera.columns is {self.rows * self.columns}: make the grid {most}")
        return self


SECTIONS: Mapping[str, type[Settings]] = {
    each.section: each for each in (SampleRecipe, BoxesRecipe, BoxFilters, MotionRecipe, CameraRecipe)
}
"""Sections of a recipe."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a manifest, but the pictures."""

    sample: SampleRecipe = field(default_factory=SampleRecipe)
    boxes: BoxesRecipe = field(default_factory=BoxesRecipe)
    filters: BoxFilters = field(default_factory=BoxFilters)
    motion: MotionRecipe = field(default_factory=MotionRecipe)
    camera: CameraRecipe = field(default_factory=CameraRecipe)

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        replays = "replay" in self.sample.shares or "replay" in self.motion.motions
        if replays and self.motion.tracks is None:
            raise ConfigError("motion.tracks is missing: `replay` needs a manifest of real paths")
        for section, cells in self.cells.items():
            if not cells:
                message = f"no speed of {section}.speeds is enough for {section}.lengths"
                raise ConfigError(f"{message} in a clip of {self.sample.seconds:.2f} s: raise one, or lower the other")

    @cached_property
    def kinds(self) -> dict[tuple[str | None, str | None], float]:
        """Every (motion of the objects, camera move) that is asked for, and its share of the samples."""
        kinds: dict[tuple[str | None, str | None], float] = {}
        motions, moves = self.motion.motions, self.camera.moves
        for name, share in self.sample.shares.items():
            pairs: list[tuple[str | None, str | None]]
            match name:
                case "objects":
                    pairs = [(motion, None) for motion in motions]
                case "camera":
                    pairs = [(None, move) for move in moves]
                case "both":
                    pairs = [(motion, move) for motion in motions for move in moves]
                case _:
                    pairs = [(None, name) if name in MOVES else (name, None)]
            for pair in pairs:
                kinds[pair] = kinds.get(pair, 0.0) + share / len(pairs)
        return {pair: share for pair, share in kinds.items() if share > 0}

    @cached_property
    def cells(self) -> dict[str, list[tuple[int, int]]]:
        """The strata (length, speed), as 0-based bins, of objects and of the camera, that the clip has time for."""
        return {
            each.section: [
                (length, speed)
                for length in range(each.length_bins)
                for speed in range(each.speed_bins)
                if bin_range(each.lengths, each.length_bins, length)[1]
                <= bin_range(each.speeds, each.speed_bins, speed)[1] * self.sample.seconds + 1e-9
            ]
            for each in (self.motion, self.camera)
        }

    @cached_property
    def video_size(self) -> VideoSize:
        """Size of the videos, and how pictures get its shape: cropped, as runs do it, if the recipe does not say."""
        return VideoSize(self.sample.height, self.sample.width, self.sample.fit or "crop")

    @cached_property
    def single_motions(self) -> list[str]:
        """Those of the motions asked for that one box can make, which further objects of a sample are given."""
        return sorted({motion for motion, _ in self.kinds if motion is not None and motion in MOTIONS})

    @classmethod
    def parse(cls, sections: Mapping[str, Any]) -> Recipe:
        """The recipe of plain values by section. Raises ConfigError for what is unknown or out of range."""
        unknown = [name for name in sections if name not in SECTIONS]
        if unknown:
            hint = did_you_mean(unknown[0], SECTIONS)
            raise ConfigError(f"unknown section [{unknown[0]}]{hint}: a recipe has {', '.join(SECTIONS)}")
        return cls(
            SampleRecipe.parse(sections.get("sample", {})),
            BoxesRecipe.parse(sections.get("boxes", {})),
            BoxFilters.parse(sections.get("filters", {})),
            MotionRecipe.parse(sections.get("motion", {})),
            CameraRecipe.parse(sections.get("camera", {})),
        )

    def with_boxes(self, proposer: BoxProposer) -> Recipe:
        """The same recipe with every option of the proposer, also those that have their defaults.

        Raises ConfigError for a proposer that finds no objects, where objects are asked for.
        """
        if not proposer.finds_objects and any(motion for motion, _ in self.kinds):
            raise ConfigError(f"--boxes {proposer.name} gives no objects: use it with --motions camera=1")
        options = proposer.plain() if isinstance(proposer, Settings) else self.boxes.options
        options = {key: value for key, value in options.items() if value is not None}
        return replace(self, boxes=self.boxes.replace(options=options))

    def plain(self) -> dict[str, dict[str, Any]]:
        """The settings as JSON values by section. What is None is left out."""
        sections: Mapping[str, Settings] = vars(self)
        return {
            name: {key: value for key, value in sections[name].plain().items() if value is not None}
            for name in SECTIONS
        }

    def json(self) -> str:
        """The one JSON text of the recipe."""
        return canonical_json(self.plain())

    def toml(self) -> str:
        """The recipe as a TOML file."""
        parts = []
        for name, values in self.plain().items():
            parts.append("\n".join([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]))
        return "\n\n".join(parts) + "\n"


def read_recipe(path: str) -> dict[str, Any]:
    """The plain values of a recipe file, by section. Raises ConfigError."""
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - Path raises where `~x` is no user
            return tomllib.loads(stream.read().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from error


def bin_range(limits: tuple[float, float], bins: int, number: int) -> tuple[float, float]:
    """The limits of one of `bins` equally wide bins."""
    low, high = limits
    step = (high - low) / bins
    return low + number * step, low + (number + 1) * step


def parse_shares(text: str) -> dict[str, float]:
    """`objects=0.7,camera=0.3` as shares by name. Raises ConfigError for another form."""
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, equals, share = item.partition("=")
        try:
            value = float(share)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(f"--motions must be like objects=0.7,camera=0.3, not {text!r}")
        if (name := name.strip()) in shares:
            raise ConfigError(f"--motions names {name} twice: add its shares up")
        shares[name] = value
    return shares


def _known(names: tuple[str, ...], known: Any, what: str) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}{did_you_mean(name, known)}: known are {', '.join(known)}")
    return names


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items())


def _toml(value: Any) -> str:
    """A JSON value as TOML writes it; strings, numbers and lists are the same in both."""
    if isinstance(value, dict):
        items = [f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items() if item is not None]
        return f"{{ {', '.join(items)} }}" if items else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
