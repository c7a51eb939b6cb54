"""Whether guidance moves objects where they are asked to go, and what each part of the method contributes.

    python -m tests.benchmarks.control FOLDER --split test --seeds 3

Compares guided videos with unguided ones and with a frozen first frame. Every video starts from a held-out picture and
has a random target path. Motion is measured with ObjMC and, independently, by finding the object by its looks. The rows
are kept in FOLDER (see `measured.py`); `--report` prints the table of the rows that are there. Those of the model card
were measured with `objmc/v1`, as their `made.json` says.

Axes: S samples, K seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import Feature, GuidanceConfig, ModelConfig, SamplerConfig
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
    recorded_metrics,
)

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "features": {
        "plain self-attention": {"feature": Feature.SELF_ATTENTION},
        "temporal attention": {"feature": Feature.TEMPORAL_ATTENTION},
        "upsampling block": {"feature": Feature.UPSAMPLE_BLOCK},
    },
    "merge": {"no FFT merge": {"fft_cutoff": None}},
    "layers": {
        "layer 2.0": {"layers": ((2, 0),)},
        "layer 2.1": {"layers": ((2, 1),)},
        "layers 2.0 and 2.1": {"layers": ((2, 0), (2, 1))},
    },
    "rates": {f"learning rate {rate:g}": {"learning_rate": rate} for rate in (0.05, 0.1, 0.21, 0.4, 0.8)},
    "ranges": {
        f"guided range {first:g} - {last:g}": {"guided_range": (first, last)}
        for first, last in ((0.95, 0.8), (0.95, 0.6), (0.95, 0.4), (0.75, 0.4), (0.5, 0.15))
    },
    "others": {"other objects held": {"holds_others": True}},
    "iterations": {f"{count} iterations": {"iterations": count} for count in (1, 3, 5, 10)},
}
"""The ablations by group, and what each changes: settings of the guidance, or `holds_others` of `Settings`."""


def variants_of(groups: list[str], sampler: SamplerConfig, guidance: GuidanceConfig) -> dict[str, Settings]:
    """Unguided, guided, and the ablations of these groups, without those that do the same as guided."""

    def ablated(holds_others: bool = False, **changes: Any) -> Settings:
        return Settings(sampler, guidance.replace(**changes), holds_others)

    def effective(settings: Settings) -> Settings:
        """The settings with their guided steps listed: different ranges may mean the same steps."""
        assert settings.guidance is not None
        steps = settings.guidance.step_indices(sampler.steps)
        listed = settings.guidance.replace(guided_range=(1, 0), guided_steps=steps)
        return dataclasses.replace(settings, guidance=listed)

    guided = ablated()
    variants = {UNGUIDED: Settings(sampler, None), GUIDED: guided}
    ablations = {name: ablated(**changes) for group in groups for name, changes in GROUPS[group].items()}
    return variants | {name: other for name, other in ablations.items() if effective(other) != effective(guided)}


def report(rows: list[Row]) -> Iterator[str]:
    """The lines of a Markdown table.

    `of unguided`, `nulls frozen` and `improved` compare with the unguided videos of the same samples and seeds. Means
    of ObjMC leave out videos whose object was lost, which favours variants that destroy objects. `nulls frozen` is `of
    unguided` with such videos scored as a frozen first frame; they do not count as `improved`.
    """
    table = Table(rows)
    columns = ["variant", "videos", "ObjMC px", "of unguided", "nulls frozen", "improved", "static - ObjMC px"]
    columns += ["projection", "looks", "kept"]
    unguided, unguided_nulls_frozen = table.column(UNGUIDED, "objmc_px"), table.objmc_nulls_frozen(UNGUIDED)

    def cells(variant: str) -> list[str]:
        objmc, static = table.column(variant, "objmc_px"), table.column(variant, "static_objmc_px")
        is_made = table.is_made(variant)
        nulls = int(np.isnan(objmc[is_made]).sum())
        return [
            variant,
            f"{int((~np.isnan(objmc)).sum())}" + (f" + {nulls} null" if nulls else ""),
            f"{np.nanmean(objmc):.2f}",
            cell(ratio(objmc, unguided)),
            cell(ratio(table.objmc_nulls_frozen(variant), unguided_nulls_frozen)),
            f"{(objmc < unguided)[is_made].mean():.0%}",
            cell(mean(static - objmc)),
            cell(mean(table.column(variant, "projection"))),
            f"{np.nanmean(table.column(variant, 'template_error')):.0f}",
            f"{np.nanmean(table.column(variant, 'kept')):.0%}",
        ]

    return markdown(columns, map(cells, table.variants))


def plot(rows: list[Row], file: Path, metrics_version: str) -> None:
    """Plot ObjMC of every variant relative to unguided, one panel per group; lines mark unguided and frozen videos.

    In a panel, `guided` and the frozen first frame use only the samples and seeds that all other variants there have.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    table = Table(rows)
    measured = {name: [variant for variant in group if variant in table.variants] for name, group in GROUPS.items()}
    panels = {name: [GUIDED, *variants] for name, variants in measured.items() if variants} or {"": [GUIDED]}
    heights = [len(shown) for shown in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), sharex=True, squeeze=False, figsize=(8, 1.2 + 0.34 * sum(heights)), height_ratios=heights
    )
    unguided_SK = table.objmc_nulls_frozen(UNGUIDED)
    static_SK = np.broadcast_to(table.static_objmc_S[:, None], unguided_SK.shape)
    for axis, (name, shown) in zip(axes[:, 0], panels.items(), strict=True):
        in_all_SK = np.logical_and.reduce([table.is_made(variant) for variant in shown])
        labels = []
        for y, variant in enumerate(shown):
            objmc_SK = table.objmc_nulls_frozen(variant)
            if variant == GUIDED:
                objmc_SK = np.where(in_all_SK, objmc_SK, np.nan)
            value, low, high = ratio(objmc_SK, unguided_SK)
            colour = "tab:blue" if variant == GUIDED else "tab:gray"
            labels.append(f"{variant} ({int((~np.isnan(objmc_SK)).sum())})")
            axis.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
        axis.axvline(1, color="tab:red", linestyle="--", label="unguided")
        static, *_ = ratio(np.where(in_all_SK, static_SK, np.nan), unguided_SK)
        axis.axvline(static, color="black", linestyle=":", label="frozen first frame")
        axis.set_yticks(range(len(shown)), labels)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_title(name, loc="left", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    axes[-1, 0].set_xlabel(
        f"ObjMC ({metrics_version}) relative to unguided: means over samples, 95 % interval;\n"
        "a lost object scores as a frozen first frame; in brackets: number of videos"
    )
    axes[-1, 0].set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--groups", nargs="*", choices=list(GROUPS), default=[], help="groups of ablations to run")
    parser.add_argument("--settings", default="{}", help="guidance settings as JSON, instead of the checkpoint's own")
    options = parser.parse_args()
    checkpoint = open_checkpoint(ModelConfig(source=options.model), weights=False)
    guidance = checkpoint.guidance(**json.loads(options.settings))
    rows = measured_rows(options, variants_of(options.groups, checkpoint.sampler(), guidance))
    print(*report(rows), sep="\n")
    if options.plot:
        plot(rows, options.plot, recorded_metrics(options.folder))


if __name__ == "__main__":
    main()
