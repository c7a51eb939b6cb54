"""Measured videos of held-out samples: make and measure each video once, keep its row, and compare means.

A folder has one row per video in `rows-*.jsonl`; rows that exist are not made again, so that an interrupted run goes
on. Its `made.json` records the weights, the split, the settings and the version of the metrics behind the rows, and
rows of others are refused. The model card's tables come from
`rows/control-final` and `rows/control-test`.

Intervals are 95 % bootstrap intervals of a mean over samples; seeds are averaged first. Comparisons are paired by
sample and seed. Pictures of the dev and test splits share one noise per seed (see `noise_seed`), so their intervals are
over pictures, for these noises. In the other splits every picture has its own.

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
from sgi2v.metrics import METRICS_VERSION
from sgi2v.metrics.background import background
from sgi2v.metrics.following import follow_boxes
from sgi2v.metrics.objmc import fidelity_of
from sgi2v.model import VideoModel, load_model
from sgi2v.tracking.lucas_kanade import LucasKanade
from tests.benchmarks.held_out import HeldOut, Split, draw_held_out, error_when_absent, find_object
from tools.tiny.training import in_processes

UNGUIDED = "unguided"
GUIDED = "guided"
"""Guided with the checkpoint's own settings. These two variants are the same in all benchmarks that use this file."""
BOOTSTRAPS = 10_000
PROVENANCE_FILE = "made.json"
"""File in a folder of rows that records what they are made of."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How a variant's videos are made."""

    sampler: SamplerConfig
    guidance: GuidanceConfig | None
    holds_others: bool = False
    """Whether the other objects are guided to stay in place. Only the first object is measured."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks of held-out videos share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the rows")
    parser.add_argument("--model", default="embedded", help="checkpoint: a folder, an id, or embedded")
    parser.add_argument("--split", choices=[split.name.lower() for split in Split], default="dev")
    parser.add_argument("--samples", type=int, default=64, help="pictures; default: 64")
    parser.add_argument("--seeds", type=int, default=1, help="videos per picture; default: 1")
    parser.add_argument("--processes", type=int, help="default: one per CPU core")
    parser.add_argument("--variants", nargs="*", metavar="NAME", help="variants to make; default: all")
    parser.add_argument("--report", action="store_true", help="only print the rows that are there")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--frames", type=Path, help="folder that keeps the frames of every video made, as npz")
    return parser


def measured_rows(options: argparse.Namespace, variants: Mapping[str, Settings]) -> list[Row]:
    """All rows of the folder, after making those that are missing. With --report nothing is made."""
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.report:
        wanted = variants if options.variants is None else {name: variants[name] for name in options.variants}
        record_provenance(options.folder, options.model, options.split, wanted)
        in_processes(_work, (options, dict(wanted)), options.processes)
    return read_rows(options.folder)


def record_provenance(folder: Path, model: str, split: str, variants: Mapping[str, Settings]) -> None:
    """Add the variants to the folder's `made.json`. Raises ConfigError if its rows have other weights or settings."""
    file = folder / PROVENANCE_FILE
    new = provenance(model, split, variants)
    recorded = json.loads(file.read_text()) if file.exists() else {**new, "variants": {}}
    for name in ("checkpoint", "split", "metrics_version"):
        if new[name] != recorded[name]:
            raise ConfigError(f"the rows in {folder} have another {name}: give another folder")
    for name, settings in new["variants"].items():
        if recorded["variants"].setdefault(name, settings) != settings:
            raise ConfigError(f"{folder} has rows of {name} with other settings: give another folder")
    file.write_text(json.dumps(recorded, indent=1) + "\n")


def provenance(model: str, split: str, variants: Mapping[str, Settings]) -> dict[str, Any]:
    """Revision of the checkpoint, the split, the metrics, and the settings of every variant, as plain JSON values."""
    revision = open_checkpoint(ModelConfig(source=model), weights=False).revision
    plain = {
        name: {
            "sampler": settings.sampler.plain(),
            "guidance": None if settings.guidance is None else settings.guidance.plain(),
            "holds_others": settings.holds_others,
        }
        for name, settings in variants.items()
    }
    return {"checkpoint": revision, "split": split, "metrics_version": METRICS_VERSION, "variants": plain}


def recorded_metrics(folder: Path) -> str:
    """The version of the metrics behind the rows of a folder."""
    return str(json.loads((folder / PROVENANCE_FILE).read_text())["metrics_version"])


def read_rows(folder: Path) -> list[Row]:
    """The rows of every video measured so far."""
    files = sorted(folder.glob("rows-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _work(rank: int, processes: int, options: argparse.Namespace, variants: dict[str, Settings]) -> None:
    """Make and measure every `processes`-th video, from `rank` on."""
    torch.set_num_threads(1)
    model = load_model(options.model)
    split = Split[options.split.upper()]
    done = {(row["variant"], row["index"], row["seed"]): row for row in read_rows(options.folder)}
    # all variants of a sample in a row, so that the rows of an interrupted run can be compared
    videos = [(i, s) for s in range(options.seeds) for i in range(options.samples)]
    keys = [(i, s, v) for i, s in videos[rank::processes] for v in variants]
    with (options.folder / f"rows-{rank}.jsonl").open("a") as file:
        for index, seed, variant in keys:
            if (variant, index, seed) in done:
                continue
            sample, noise = draw_held_out(split, index), noise_seed(split, index, seed)
            row = done.get((identical_variant(variants, variant, sample), index, seed))
            row = row or measure(model, sample, noise, variants[variant], frames_file(options, variant, index, seed))
            row = {**row, "variant": variant, "index": index, "seed": seed}
            done[variant, index, seed] = row
            file.write(json.dumps(row) + "\n")
            file.flush()


def identical_variant(variants: Mapping[str, Settings], variant: str, sample: HeldOut) -> str | None:
    """The variant that makes the same video of a sample without other objects: the one that does not hold them."""
    unheld = replace(variants[variant], holds_others=False)
    if unheld == variants[variant] or len(sample.scene.sprites) > 1:
        return None
    return next((name for name, settings in variants.items() if settings == unheld), None)


def noise_seed(split: Split, index: int, seed: int) -> int:
    """Noise seed of a video. In dev and test all pictures share one; in the other splits every picture has its own."""
    return seed if split in (Split.DEV, Split.TEST) else 1000 * index + seed


def frames_file(options: argparse.Namespace, variant: str, index: int, seed: int) -> Path | None:
    """Where the frames of a video are kept; None: nowhere."""
    return options.frames and options.frames / f"{index:03d}-{seed}-{variant.replace(' ', '-')}.npz"


def measure(model: VideoModel, sample: HeldOut, noise: int, settings: Settings, frames_to: Path | None = None) -> Row:
    """Make one video and measure it. noise: seed of its noise. frames_to: file for its frames."""
    tracks = sample.tracks_of_all if settings.holds_others else sample.tracks
    generation = generate(model, sample.image, tracks, settings.sampler, settings.guidance, seed=noise)
    if frames_to is not None:
        frames_to.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(frames_to, frames=generation.frames)
    masks_NHW, tracker = sample.masks_NHW, LucasKanade()
    boxes, followed = follow_boxes(generation.frames, sample.tracks_with_still, tracker)
    fidelity = fidelity_of(generation.frames, boxes, followed, tracker)
    ground = background(generation.frames, boxes, followed, tracker)
    mask_HW = masks_NHW[0]
    track = find_object(generation.frames, mask_HW)
    others = [find_object(generation.frames, other_HW) for other_HW in masks_NHW[1:]]
    return {
        "objects": len(masks_NHW),
        "objmc_px": fidelity.objmc_px,
        "static_objmc_px": fidelity.static_objmc_px,
        "null_reason": fidelity.null_reason,
        "projection": sample.projection(track),
        "displacement_px": float(np.linalg.norm(track.displacements_T2[-1])),
        "second_px": float(np.linalg.norm(others[0].displacements_T2[1:], axis=-1).mean()) if others else None,
        "second_template_error": float(others[0].errors_T[1:].mean()) if others else None,
        "background_change": ground.background_change,
        "background_motion_px": ground.background_motion_px,
        "bg_object_distance_px": ground.bg_object_distance_px,
        "identity": fidelity.identity,
        "template_error": float(track.errors_T[1:].mean()),
        "kept": float((track.errors_T[1:] < error_when_absent(sample.scene, generation.frames[0], mask_HW) / 2).mean()),
        "loss_ratio": float((generation.losses[:, -1] / generation.losses[:, 0]).mean())
        if generation.losses.size
        else None,
        "drift": generation.latent_drift,
    }


class Table:
    """Rows as arrays [samples, seeds] by variant and column, NaN for missing rows and null values."""

    def __init__(self, rows: list[Row]) -> None:
        self.variants = list(dict.fromkeys(row["variant"] for row in rows))
        self.shape = (max(row["index"] for row in rows) + 1, max(row["seed"] for row in rows) + 1)
        self._rows = rows

    def column(self, variant: str, name: str) -> NDArray[np.float64]:
        """One column of one variant, [S, K]."""
        values = np.full(self.shape, np.nan)
        for row in self._rows:
            if row["variant"] == variant and row.get(name) is not None:
                values[row["index"], row["seed"]] = row[name]
        return values

    def is_made(self, variant: str) -> NDArray[np.bool_]:
        """Which videos were made, [S, K]. A video that was made has a projection, even if its ObjMC is null."""
        return ~np.isnan(self.column(variant, "projection"))

    @cached_property
    def static_objmc_S(self) -> NDArray[np.float64]:
        """ObjMC of a frozen first frame of each sample, pixels."""
        columns_VSK = np.stack([self.column(variant, "static_objmc_px") for variant in self.variants])
        # a row's own value covers only the frames that were counted in that video, which in a few is not all of them
        return np.asarray(np.nanmedian(columns_VSK, axis=(0, 2)))

    def objmc_nulls_frozen(self, variant: str) -> NDArray[np.float64]:
        """ObjMC [S, K], pixels. A video whose object was lost scores as a frozen first frame."""
        objmc_SK = self.column(variant, "objmc_px")
        is_null_SK = self.is_made(variant) & np.isnan(objmc_SK)
        return np.where(is_null_SK, self.static_objmc_S[:, None], objmc_SK)


def bootstrap(values_S: NDArray[np.float64], base_S: NDArray[np.float64] | None = None) -> tuple[float, float, float]:
    """Mean over samples, or ratio of two means over the same samples: value, and ends of its 95 % interval."""
    if base_S is None:
        base_S = np.where(np.isnan(values_S), np.nan, 1.0)
    is_present = ~np.isnan(values_S) & ~np.isnan(base_S)
    values_S, base_S = values_S[is_present], base_S[is_present]
    draws = np.random.default_rng(0).integers(len(values_S), size=(BOOTSTRAPS, len(values_S)))
    means = values_S[draws].mean(axis=1) / base_S[draws].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values_S.mean() / base_S.mean()), float(low), float(high)


def mean_over_seeds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each sample [S] over its seeds, NaN ignored; NaN for a sample without any."""
    is_present = ~np.isnan(values)
    count = is_present.sum(axis=1)
    return np.where(is_present, values, 0).sum(axis=1) / np.where(count == 0, np.nan, count)


def ratio(values: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[float, float, float]:
    """Ratio of two means over the samples and seeds that both have: value, and ends of its 95 % interval."""
    paired = ~np.isnan(values) & ~np.isnan(base)
    return bootstrap(mean_over_seeds(np.where(paired, values, np.nan)), mean_over_seeds(np.where(paired, base, np.nan)))


def mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean over samples: value, and ends of its 95 % interval."""
    return bootstrap(mean_over_seeds(values))


def cell(interval: tuple[float, float, float]) -> str:
    """Text of a value and its interval, for a table."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*interval)


def markdown(columns: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    yield from (f"| {' | '.join(cells)} |" for cells in rows)
