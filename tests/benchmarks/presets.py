"""Cost and control of the presets: `fast`, similar settings and unguided, relative to `paper`.

    python -m tests.benchmarks.presets FOLDER --split test --seeds 3 --plot PNG

Operations are counted, for the embedded checkpoint and for full-size Stable Video Diffusion with the paper's settings
and the same changes. ObjMC is measured on the embedded checkpoint's held-out samples; FOLDER keeps the rows (see
`measured.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sgi2v.checkpoint import Checkpoint, open_checkpoint
from sgi2v.config import (
    FAST_ITERATIONS,
    FAST_STEPS,
    GuidanceConfig,
    ModelConfig,
    SamplerConfig,
    apply_preset,
    scale_work,
)
from sgi2v.estimate import count_flops
from tests.benchmarks.full_size import write_configs
from tests.benchmarks.measured import (
    GUIDED,
    UNGUIDED,
    Row,
    Settings,
    Table,
    arguments,
    cell,
    markdown,
    mean,
    measured_rows,
    ratio,
)

PAPER, FAST = "paper", "fast"
TOLERANCE = 1.05
"""Largest mean ObjMC, relative to `paper`, that counts as the same control."""

NEIGHBOURS: dict[str, tuple[float, float, float]] = {
    "fast, at paper's learning rate": (FAST_STEPS, FAST_ITERATIONS, 1.0),
    "2/5 of the iterations": (1.0, 0.4, 1.0),
    "half the steps": (0.5, 1.0, 1.0),
    "half the steps, 3/5 of the iterations": (0.5, 0.6, 1.0),
}
"""Steps, iterations and learning rate, relative to `paper`."""


def variants_of(sampler: SamplerConfig, guidance: GuidanceConfig) -> dict[str, Settings]:
    """Unguided, the presets, and settings close to `fast`."""
    variants = {UNGUIDED: Settings(sampler, None)}
    variants |= {GUIDED: Settings(*apply_preset(PAPER, sampler, guidance))}
    variants |= {FAST: Settings(*apply_preset(FAST, sampler, guidance))}
    return variants | {name: Settings(*scale_work(sampler, guidance, *scales)) for name, scales in NEIGHBOURS.items()}


def costs(checkpoint: Checkpoint) -> dict[str, float]:
    """Operations of a sample for each variant, relative to `paper`."""
    variants = variants_of(checkpoint.sampler(), checkpoint.guidance())
    flops = {
        name: sum(count_flops(checkpoint, settings.sampler, settings.guidance, torch.bfloat16).values())
        for name, settings in variants.items()
    }
    return {name: count / flops[GUIDED] for name, count in flops.items()}


def _label(variant: str) -> str:
    """The name of a variant in tables and plots."""
    return PAPER if variant == GUIDED else variant


def report(rows: list[Row], here: dict[str, float], full_size: dict[str, float]) -> Iterator[str]:
    """The lines of a Markdown table. here, full_size: costs on the embedded checkpoint and on full-size SVD."""
    table = Table(rows)
    columns = ["settings", "videos", "cost", "cost on SVD", "ObjMC px", "of paper", "projection", "kept"]
    paper = table.column(GUIDED, "objmc_px")

    def cells(variant: str) -> list[str]:
        objmc = table.column(variant, "objmc_px")
        return [
            _label(variant),
            f"{int((~np.isnan(objmc)).sum())}",
            f"{here[variant]:.1%}",
            f"{full_size[variant]:.1%}",
            f"{np.nanmean(objmc):.2f}",
            cell(ratio(objmc, paper)),
            cell(mean(table.column(variant, "projection"))),
            f"{np.nanmean(table.column(variant, 'kept')):.0%}",
        ]

    return markdown(columns, map(cells, (variant for variant in here if variant in table.variants)))


def plot(rows: list[Row], here: dict[str, float], file: Path) -> None:
    """Plot cost against ObjMC, both relative to `paper`. here: costs on the embedded checkpoint."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    table = Table(rows)
    paper = table.column(GUIDED, "objmc_px")
    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    for variant, cost in here.items():
        if variant not in table.variants:
            continue
        value, low, high = ratio(table.column(variant, "objmc_px"), paper)
        colour = "tab:blue" if variant in (GUIDED, FAST) else "tab:red" if variant == UNGUIDED else "tab:gray"
        axis.errorbar(cost, value, yerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
        axis.annotate(
            _label(variant), (cost, value), xytext=(6, 4), textcoords="offset points", rotation=30, fontsize=8
        )
    axis.axhspan(0, TOLERANCE, alpha=0.08, color="tab:green")
    axis.axvline(1 / 3, color="black", linestyle=":")
    axis.set_xlabel("operations of a sample, relative to paper")
    axis.set_ylabel("ObjMC relative to paper, 95 % interval")
    axis.set_xlim(0, 1.15)
    axis.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    options = arguments(__doc__).parse_args()
    checkpoint = open_checkpoint(ModelConfig(source=options.model), weights=False)
    rows = measured_rows(options, variants_of(checkpoint.sampler(), checkpoint.guidance()))
    here = costs(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        svd = ModelConfig(source=str(write_configs(Path(folder))))
        full_size = costs(open_checkpoint(svd, weights=False))
    print(*report(rows, here, full_size), sep="\n")
    if options.plot:
        plot(rows, here, options.plot)


if __name__ == "__main__":
    main()
