"""What does a preset cost, and is control kept? `fast` against `paper`, and the settings around it.

    python -m tests.benchmarks.presets FOLDER --split test --seeds 3 --plot PNG

Operations are counted, on the embedded checkpoint and on full-size Stable Video Diffusion (the paper's settings,
with the same changes), relative to `paper`. ObjMC is measured on the embedded checkpoint's held-out samples.
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
"""Of mean ObjMC, beyond which control is not kept."""

NEIGHBOURS: dict[str, tuple[float, float, float]] = {
    "fast, at paper's learning rate": (FAST_STEPS, FAST_ITERATIONS, 1.0),
    "2/5 of the iterations": (1.0, 0.4, 1.0),
    "half the steps": (0.5, 1.0, 1.0),
    "half the steps, 3/5 of the iterations": (0.5, 0.6, 1.0),
}
"""Steps, iterations and learning rate, relative to `paper`."""


def variants_of(sampler: SamplerConfig, guidance: GuidanceConfig) -> dict[str, Settings]:
    """The presets, unguided, and what else was thought of."""
    variants = {UNGUIDED: Settings(sampler, None)}
    variants |= {GUIDED: Settings(*apply_preset(PAPER, sampler, guidance))}
    variants |= {FAST: Settings(*apply_preset(FAST, sampler, guidance))}
    return variants | {name: Settings(*scale_work(sampler, guidance, *scales)) for name, scales in NEIGHBOURS.items()}


def costs(checkpoint: Checkpoint) -> dict[str, float]:
    """Operations of a sample, relative to `paper`."""
    variants = variants_of(checkpoint.sampler(), checkpoint.guidance())
    flops = {
        name: sum(count_flops(checkpoint, each.sampler, each.guidance, torch.bfloat16).values())
        for name, each in variants.items()
    }
    return {name: each / flops[GUIDED] for name, each in flops.items()}


def _told(variant: str) -> str:
    return PAPER if variant == GUIDED else variant


def report(rows: list[Row], here: dict[str, float], full_size: dict[str, float]) -> Iterator[str]:
    """A Markdown table; costs of a sample on the embedded checkpoint and on full-size SVD, and `of paper` in pairs."""
    table = Table(rows)
    columns = ["settings", "videos", "cost", "cost on SVD", "ObjMC px", "of paper", "projection", "kept"]
    paper = table.column(GUIDED, "objmc_px")

    def cells(variant: str) -> list[str]:
        objmc = table.column(variant, "objmc_px")
        return [
            _told(variant),
            f"{int((~np.isnan(objmc)).sum())}",
            f"{here[variant]:.1%}",
            f"{full_size[variant]:.1%}",
            f"{np.nanmean(objmc):.2f}",
            cell(ratio(objmc, paper)),
            cell(mean(table.column(variant, "projection"))),
            f"{np.nanmean(table.column(variant, 'kept')):.0%}",
        ]

    return markdown(columns, map(cells, (each for each in here if each in table.variants)))


def plot(rows: list[Row], here: dict[str, float], file: Path) -> None:
    """Cost against ObjMC, both relative to `paper`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    table = Table(rows)
    paper = table.column(GUIDED, "objmc_px")
    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    for variant, cost in here.items():
        if variant not in table.variants:
            continue
        found, low, high = ratio(table.column(variant, "objmc_px"), paper)
        colour = "tab:blue" if variant in (GUIDED, FAST) else "tab:red" if variant == UNGUIDED else "tab:gray"
        axis.errorbar(cost, found, yerr=[[found - low], [high - found]], fmt="o", color=colour, capsize=3)
        axis.annotate(_told(variant), (cost, found), xytext=(6, 4), textcoords="offset points", rotation=30, fontsize=8)
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
