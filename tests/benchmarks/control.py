"""Does the optimiser steer? Guided against unguided and static, and what each part of the method is worth.

    python -m tests.benchmarks.control FOLDER --split test --seeds 3

Every video is of a held-out picture with a target path that knows nothing of it, from the embedded checkpoint (or
`--model`), measured with `objmc/v1` and, independently, by the object's looks. A row per video is appended to FOLDER;
what is there already is not made again. `--report` only reads. Intervals are of the mean over samples (seeds are
averaged first), 95 %, by bootstrap; a comparison is paired by sample and seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgi2v.config import Feature, GuidanceConfig
from sgi2v.generate import generate
from sgi2v.metrics import motion_fidelity
from sgi2v.model import VideoModel, load_model
from sgi2v.tiny.training import in_processes
from sgi2v.tracking import LucasKanade
from tests.benchmarks.held_out import Split, draw_held_out, error_when_gone, find_object

UNGUIDED = "unguided"
GUIDED = "guided"
BOOTSTRAPS = 10_000

FEATURES: dict[str, dict[str, Any]] = {
    "plain self-attention": {"feature": Feature.SELF_ATTENTION},
    "temporal attention": {"feature": Feature.TEMPORAL_ATTENTION},
    "upsampling block": {"feature": Feature.UPSAMPLE_BLOCK},
}
MERGE: dict[str, dict[str, Any]] = {"no FFT merge": {"fft_cutoff": None}}
LAYERS: dict[str, dict[str, Any]] = {
    f"layer {block}.{index}": {"layers": ((block, index),)} for block, index in ((2, 0), (2, 1))
}
RATES: dict[str, dict[str, Any]] = {
    f"learning rate {rate:g}": {"learning_rate": rate} for rate in (0.05, 0.1, 0.21, 0.4, 0.8, 1.6)
}
RANGES: dict[str, dict[str, Any]] = {
    f"guided range {first:g} - {last:g}": {"guided_range": (first, last)}
    for first, last in ((1.0, 0.8), (1.0, 0.6), (1.0, 0.4), (0.9, 0.6), (0.8, 0.5), (0.6, 0.3), (1.0, 0.2))
}
ITERATIONS: dict[str, dict[str, Any]] = {f"{count} iterations": {"iterations": count} for count in (1, 3, 5, 10)}
GROUPS = {
    "features": FEATURES,
    "merge": MERGE,
    "layers": LAYERS,
    "rates": RATES,
    "ranges": RANGES,
    "iterations": ITERATIONS,
}

Row = dict[str, Any]


def measure(model: VideoModel, split: Split, index: int, seed: int, guidance: GuidanceConfig | None) -> Row:
    """Make one video and measure it."""
    sample = draw_held_out(split, index)
    started = time.monotonic()
    made = generate(model, sample.image, sample.tracks, guidance=guidance, seed=seed)
    seconds = time.monotonic() - started
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
        "seconds": round(seconds, 2),
    }


def _work(rank: int, processes: int, options: argparse.Namespace, variants: dict[str, dict[str, Any] | None]) -> None:
    torch.set_num_threads(1)
    model = load_model(options.model)
    own = dataclasses.replace(model.checkpoint.guidance(), **json.loads(options.settings))
    done = {(row["variant"], row["index"], row["seed"]) for row in read_rows(options.folder)}
    # by sample, so that whatever there is when it is cut short can be compared
    videos = [(i, s) for i in range(options.samples) for s in range(options.seeds)]
    keys = [(i, s, v) for i, s in videos[rank::processes] for v in variants]
    with (options.folder / f"rows-{rank}.jsonl").open("a") as file:
        for index, seed, variant in keys:
            if (variant, index, seed) in done:
                continue
            changes = variants[variant]
            guidance = None if changes is None else dataclasses.replace(own, **changes)
            row = measure(model, Split[options.split.upper()], index, seed, guidance)
            file.write(json.dumps({"variant": variant, "index": index, "seed": seed, **row}) + "\n")
            file.flush()


def read_rows(folder: Path) -> list[Row]:
    """Every video that was measured so far."""
    files = sorted(folder.glob("rows-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


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


def _over_seeds(values: NDArray[np.float64], *, where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of each sample over the seeds that count."""
    count = where.sum(axis=1)
    return np.where(where, values, 0).sum(axis=1) / np.where(count == 0, np.nan, count)


def report(rows: list[Row]) -> Iterator[str]:
    """A Markdown table; `of unguided` and `improved` are against unguided videos of the same samples and seeds."""
    table = Table(rows)
    columns = ["variant", "videos", "ObjMC px", "of unguided", "improved", "static - ObjMC px"]
    columns += ["projection", "looks", "kept", "s"]
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    unguided = table.column(UNGUIDED, "objmc_px")
    for variant in table.variants:
        objmc, static = table.column(variant, "objmc_px"), table.column(variant, "static_objmc_px")
        paired = ~np.isnan(objmc) & ~np.isnan(unguided)
        seconds = table.column(variant, "seconds")
        nulls = int(np.isnan(objmc[~np.isnan(seconds)]).sum())
        cells = [
            variant,
            f"{int((~np.isnan(objmc)).sum())}" + (f" + {nulls} null" if nulls else ""),
            f"{np.nanmean(objmc):.2f}",
            _interval(_over_seeds(objmc, where=paired), _over_seeds(unguided, where=paired)),
            f"{(objmc < unguided)[paired].mean():.0%}",
            _interval(_over_seeds(static - objmc, where=paired)),
            _interval(np.nanmean(table.column(variant, "projection"), axis=1)),
            f"{np.nanmean(table.column(variant, 'template_error')):.0f}",
            f"{np.nanmean(table.column(variant, 'kept')):.0%}",
            f"{np.nanmean(seconds):.1f}",
        ]
        yield f"| {' | '.join(cells)} |"


def plot(rows: list[Row], file: Path) -> None:
    """ObjMC of every variant with its interval, a panel per ablation; lines where unguided and frozen videos are."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    table = Table(rows)
    panels = {name: [GUIDED, *(each for each in group if each in table.variants)] for name, group in GROUPS.items()}
    panels = {name: shown for name, shown in panels.items() if len(shown) > 1} or {"": [GUIDED]}
    heights = [len(shown) for shown in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), sharex=True, squeeze=False, figsize=(8, 1.2 + 0.34 * sum(heights)), height_ratios=heights
    )
    unguided, static = (np.nanmean(table.column(UNGUIDED, name)) for name in ("objmc_px", "static_objmc_px"))
    for axis, (name, shown) in zip(axes[:, 0], panels.items(), strict=True):
        for at, variant in enumerate(shown):
            objmc = table.column(variant, "objmc_px")
            mean, low, high = bootstrap(_over_seeds(objmc, where=~np.isnan(objmc)))
            colour = "tab:blue" if variant == GUIDED else "tab:gray"
            axis.errorbar(mean, at, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
        axis.axvline(unguided, color="tab:red", linestyle="--", label="unguided")
        axis.axvline(static, color="black", linestyle=":", label="frozen first frame")
        axis.set_yticks(range(len(shown)), shown)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_title(name, loc="left", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    axes[-1, 0].set_xlabel("ObjMC, px (objmc/v1): mean over samples, 95 % interval")
    axes[-1, 0].set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def _interval(values_S: NDArray[np.float64], base_S: NDArray[np.float64] | None = None) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*bootstrap(values_S, base_S))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--groups", nargs="*", choices=list(GROUPS), default=[], help="ablations to run")
    parser.add_argument("--settings", default="{}", help="JSON: guidance settings in place of the checkpoint's own")
    parser.add_argument("--processes", type=int, help="one per CPU core unless given")
    parser.add_argument("--report", action="store_true", help="only print what there is")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.report:
        variants: dict[str, dict[str, Any] | None] = {UNGUIDED: None, GUIDED: {}}
        for group in options.groups:
            variants |= GROUPS[group]
        in_processes(_work, (options, variants), options.processes)
    rows = read_rows(options.folder)
    print(*report(rows), sep="\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
