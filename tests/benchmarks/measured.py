"""Videos of held-out samples, each made and measured once, and what their means are worth.

A row per video is appended to a folder; what is there already is not made again. The folder's `made.json` says of what
the rows are made, and rows of other weights or settings are not put beside them. `rows/control-final` and
`rows/control-test` have those that the model card's tables are made of. Intervals are of the mean over samples (seeds
are averaged first), 95 %, by bootstrap; a comparison is paired by sample and seed. Pictures of the dev and test splits
share one noise per seed (see `noise_seed`), so their intervals are over pictures, for these noises.

Axes: V variants, S samples, K seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import GuidanceConfig, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError
from sgi2v.generate import generate
from sgi2v.metrics.objmc import motion_fidelity
from sgi2v.model import VideoModel, load_model
from sgi2v.tracking.lucas_kanade import LucasKanade
from tests.benchmarks.held_out import HeldOut, Split, draw_held_out, error_when_gone, find_object
from tools.tiny.training import in_processes

UNGUIDED = "unguided"
GUIDED = "guided"
"""By the checkpoint's own settings; what these two make is the same in every benchmark's folder."""
BOOTSTRAPS = 10_000
MADE = "made.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How a variant's videos are made."""

    sampler: SamplerConfig
    guidance: GuidanceConfig | None
    holds_others: bool = False
    """Whether the objects that nobody asked to move are guided as well, to stay; only the first is measured."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Which videos to make, and where to keep their rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--split", choices=[each.name.lower() for each in Split], default="dev")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, help="one per CPU core unless given")
    parser.add_argument("--variants", nargs="*", metavar="NAME", help="make these only; all unless given")
    parser.add_argument("--report", action="store_true", help="only print what there is")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    return parser


def measured_rows(options: argparse.Namespace, variants: Mapping[str, Settings]) -> list[Row]:
    """Make and measure what is missing, unless only a report is asked for; then read everything there is."""
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.report:
        wanted = variants if options.variants is None else {name: variants[name] for name in options.variants}
        note_what_is_made(options.folder, options.model, options.split, wanted)
        in_processes(_work, (options, dict(wanted)), options.processes)
    return read_rows(options.folder)


def note_what_is_made(folder: Path, model: str, split: str, variants: Mapping[str, Settings]) -> None:
    """Add the variants to the folder's `made.json`. Raises ConfigError where its rows are made of something else."""
    file = folder / MADE
    ours = what_is_made(model, split, variants)
    there = json.loads(file.read_text()) if file.exists() else {**ours, "variants": {}}
    for name in ("checkpoint", "split"):
        if ours[name] != there[name]:
            raise ConfigError(f"the rows in {folder} have another {name}: give another folder")
    for name, settings in ours["variants"].items():
        if there["variants"].setdefault(name, settings) != settings:
            raise ConfigError(f"{folder} has rows of {name} with other settings: give another folder")
    file.write_text(json.dumps(there, indent=1) + "\n")


def what_is_made(model: str, split: str, variants: Mapping[str, Settings]) -> dict[str, Any]:
    """Revision of the checkpoint, the split, and every variant's settings, as JSON has them."""
    revision = open_checkpoint(ModelConfig(source=model), weights=False).revision
    settings = {
        name: {
            "sampler": each.sampler.plain(),
            "guidance": None if each.guidance is None else each.guidance.plain(),
            "holds_others": each.holds_others,
        }
        for name, each in variants.items()
    }
    return {"checkpoint": revision, "split": split, "variants": settings}


def read_rows(folder: Path) -> list[Row]:
    """Every video that was measured so far."""
    files = sorted(folder.glob("rows-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _work(rank: int, processes: int, options: argparse.Namespace, variants: dict[str, Settings]) -> None:
    torch.set_num_threads(1)
    model = load_model(options.model)
    split = Split[options.split.upper()]
    done = {(row["variant"], row["index"], row["seed"]): row for row in read_rows(options.folder)}
    # by sample, so that whatever there is when it is cut short can be compared
    videos = [(i, s) for i in range(options.samples) for s in range(options.seeds)]
    keys = [(i, s, v) for i, s in videos[rank::processes] for v in variants]
    with (options.folder / f"rows-{rank}.jsonl").open("a") as file:
        for index, seed, variant in keys:
            if (variant, index, seed) in done:
                continue
            sample, noise = draw_held_out(split, index), noise_seed(split, index, seed)
            twin = done.get((twin_of(variants, variant, sample), index, seed))
            found = measure(model, sample, noise, variants[variant]) if twin is None else twin
            row = {**found, "variant": variant, "index": index, "seed": seed}
            done[variant, index, seed] = row
            file.write(json.dumps(row) + "\n")
            file.flush()


def twin_of(variants: Mapping[str, Settings], variant: str, sample: HeldOut) -> str | None:
    """The variant of which the video of this sample is the very same, as there is no other object to hold."""
    alone = replace(variants[variant], holds_others=False)
    if alone == variants[variant] or len(sample.scene.sprites) > 1:
        return None
    return next((name for name, settings in variants.items() if settings == alone), None)


def noise_seed(split: Split, index: int, seed: int) -> int:
    """Of a video. Pictures of the final split have noises of their own; the others share one per seed."""
    return 1000 * index + seed if split is Split.FINAL else seed


def measure(model: VideoModel, sample: HeldOut, noise: int, settings: Settings) -> Row:
    """Make one video and measure it. noise: its seed."""
    tracks = sample.tracks_of_all if settings.holds_others else sample.tracks
    made = generate(model, sample.image, tracks, settings.sampler, settings.guidance, seed=noise)
    fidelity = motion_fidelity(made.frames, sample.tracks, LucasKanade())
    mask_HW = sample.mask_HW
    found = find_object(made.frames, mask_HW)
    return {
        "objmc_px": fidelity.objmc_px,
        "static_objmc_px": fidelity.static_objmc_px,
        "null_reason": fidelity.null_reason,
        "projection": sample.projection(found),
        "displacement_px": float(np.linalg.norm(found.displacements_T2[-1])),
        "template_error": float(found.errors_T[1:].mean()),
        "kept": float((found.errors_T[1:] < error_when_gone(sample.scene, made.frames[0], mask_HW) / 2).mean()),
        "loss_ratio": float((made.losses[:, -1] / made.losses[:, 0]).mean()) if made.losses.size else None,
        "drift": made.latent_drift,
    }


class Table:
    """The rows as arrays [samples, seeds] per variant and column, NaN where there is none."""

    def __init__(self, rows: list[Row]) -> None:
        self.variants = list(dict.fromkeys(row["variant"] for row in rows))
        self.shape = (max(row["index"] for row in rows) + 1, max(row["seed"] for row in rows) + 1)
        self._rows = rows

    def column(self, variant: str, name: str) -> NDArray[np.float64]:
        """One column of one variant."""
        values = np.full(self.shape, np.nan)
        for row in self._rows:
            if row["variant"] == variant and row[name] is not None:
                values[row["index"], row["seed"]] = row[name]
        return values

    def is_made(self, variant: str) -> NDArray[np.bool_]:
        """Whether there is a video: one that was made has a projection, with an ObjMC or without."""
        return ~np.isnan(self.column(variant, "projection"))

    @cached_property
    def static_objmc_S(self) -> NDArray[np.float64]:
        """What a frozen first frame of each sample scores, pixels."""
        columns_VSK = np.stack([self.column(variant, "static_objmc_px") for variant in self.variants])
        # a video's own is over the frames that were counted: all of them in most videos, but not in every one
        return np.asarray(np.nanmedian(columns_VSK, axis=(0, 2)))

    def objmc_nulls_frozen(self, variant: str) -> NDArray[np.float64]:
        """ObjMC, pixels, in which a video whose object was lost scores as a frozen first frame does."""
        objmc_SK = self.column(variant, "objmc_px")
        is_null_SK = self.is_made(variant) & np.isnan(objmc_SK)
        return np.where(is_null_SK, self.static_objmc_S[:, None], objmc_SK)


def bootstrap(values_S: NDArray[np.float64], base_S: NDArray[np.float64] | None = None) -> tuple[float, float, float]:
    """Mean over samples, or ratio of two means over the same samples, with its 95 % interval."""
    if base_S is None:
        base_S = np.where(np.isnan(values_S), np.nan, 1.0)
    there = ~np.isnan(values_S) & ~np.isnan(base_S)
    values_S, base_S = values_S[there], base_S[there]
    draws = np.random.default_rng(0).integers(len(values_S), size=(BOOTSTRAPS, len(values_S)))
    means = values_S[draws].mean(axis=1) / base_S[draws].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values_S.mean() / base_S.mean()), float(low), float(high)


def over_seeds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each sample [S] over the seeds that are there; NaN where none is."""
    there = ~np.isnan(values)
    count = there.sum(axis=1)
    return np.where(there, values, 0).sum(axis=1) / np.where(count == 0, np.nan, count)


def ratio(values: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of two means over the samples and seeds that both have, with its 95 % interval."""
    paired = ~np.isnan(values) & ~np.isnan(base)
    return bootstrap(over_seeds(np.where(paired, values, np.nan)), over_seeds(np.where(paired, base, np.nan)))


def mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Over the samples, with its 95 % interval."""
    return bootstrap(over_seeds(values))


def cell(interval: tuple[float, float, float]) -> str:
    """A value and its interval, for a table."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*interval)


def markdown(columns: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    yield from (f"| {' | '.join(cells)} |" for cells in rows)
