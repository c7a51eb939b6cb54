"""Whether a scene keeps still while its object moves: unguided, the paper's method, and the preset `scene`.

    python -m tests.benchmarks.scene FOLDER --split scene --seeds 3 --processes 1 --json FILE

Every second picture of the scene split shows a second object, which has no box. Its displacement, and the change and
the motion of the ground, should be nothing. The rows are kept in FOLDER (see `measured.py`): an interrupted run goes
on, one seed of all pictures after the other, and `--report` prints the tables of the rows that are there. Only samples
and seeds that all three have are compared.

Axes: S samples, K seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgi2v.checkpoint import Checkpoint, open_checkpoint
from sgi2v.config import ModelConfig, apply_preset
from sgi2v.metrics import METRICS_VERSION
from tests.benchmarks.measured import (
    GUIDED,
    UNGUIDED,
    Row,
    Settings,
    Table,
    arguments,
    bootstrap,
    cell,
    markdown,
    mean_over_seeds,
    measured_rows,
    ratio,
)

SCENE = "scene"
STRATA = {"all": (1, 2), "one object": (1,), "two objects": (2,)}
"""Strata of the pictures -> their numbers of objects."""
MEANS = ("objmc_px", "projection", "kept", "identity", "second_px", "background_change", "background_motion_px")
"""Columns whose means are shown."""
RATIOS = ("objmc_px", "second_px", "background_change")
"""Columns that are also compared with the paper's method."""
DIFFERENCES = ("projection", "kept", "identity")
"""Columns whose difference from the paper's method is shown."""

Interval = tuple[float, float, float]
"""A value, and the ends of its 95 % interval."""


def variants_of(checkpoint: Checkpoint) -> dict[str, Settings]:
    """Unguided, the paper's method (`guided` in all benchmarks), and the preset `scene`."""
    sampler, guidance = checkpoint.sampler(), checkpoint.guidance()
    return {
        UNGUIDED: Settings(sampler, None),
        GUIDED: Settings(sampler, guidance),
        SCENE: Settings(*apply_preset("scene", sampler, guidance)),
    }


class Comparison:
    """The rows of the samples and seeds that every variant has."""

    def __init__(self, rows: list[Row]) -> None:
        self.table = Table(rows)
        self.variants = self.table.variants
        self.is_made_SK = np.logical_and.reduce([self.table.is_made(variant) for variant in self.variants])

    def column(self, variant: str, name: str, stratum: str) -> NDArray[np.float64]:
        """One column, [S, K]; NaN outside the stratum. An object that was lost counts as a frozen first frame."""
        table = self.table
        values_SK = table.objmc_nulls_frozen(variant) if name == "objmc_px" else table.column(variant, name)
        is_in_SK = self.is_made_SK & np.isin(table.column(variant, "objects"), STRATA[stratum])
        return np.where(is_in_SK, values_SK, np.nan)

    def videos(self, stratum: str) -> int:
        """How many videos of each variant are compared."""
        return int((~np.isnan(self.column(self.variants[0], "projection", stratum))).sum())

    def mean(self, variant: str, name: str, stratum: str) -> Interval | None:
        """Mean over samples; None where no video has a value."""
        values_S = mean_over_seeds(self.column(variant, name, stratum))
        return None if np.isnan(values_S).all() else bootstrap(values_S)

    def ratio(self, variant: str, base: str, name: str, stratum: str) -> Interval | None:
        """Ratio of the means of two variants."""
        values_SK, base_SK = (self.column(each, name, stratum) for each in (variant, base))
        return None if np.isnan(values_SK + base_SK).all() else ratio(values_SK, base_SK)

    def difference(self, variant: str, base: str, name: str, stratum: str) -> Interval | None:
        """Mean difference of two variants."""
        values_S = mean_over_seeds(self.column(variant, name, stratum) - self.column(base, name, stratum))
        return None if np.isnan(values_S).all() else bootstrap(values_S)

    def plain(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            "metrics_version": METRICS_VERSION,
            "strata": {
                stratum: {
                    "pictures": int(self.is_in_S(stratum).sum()),
                    "videos_of_each_variant": self.videos(stratum),
                    "variants": {variant: self._plain(variant, stratum) for variant in self.variants},
                }
                for stratum in STRATA
            },
        }

    def is_in_S(self, stratum: str) -> NDArray[np.bool_]:
        """Which samples of a stratum are compared."""
        return ~np.isnan(self.column(self.variants[0], "projection", stratum)).all(axis=1)

    def _plain(self, variant: str, stratum: str) -> dict[str, Any]:
        objmc_SK, unguided_SK = (self.column(each, "objmc_px", stratum) for each in (variant, UNGUIDED))
        return {
            "objmc_nulls": int(np.isnan(self.table.column(variant, "objmc_px"))[~np.isnan(objmc_SK)].sum()),
            "improved_on_unguided": float((objmc_SK < unguided_SK)[~np.isnan(objmc_SK)].mean()),
            "mean": {name: self.mean(variant, name, stratum) for name in MEANS},
            "of_unguided": {"objmc_px": self.ratio(variant, UNGUIDED, "objmc_px", stratum)},
            "of_paper": {name: self.ratio(variant, GUIDED, name, stratum) for name in RATIOS},
            "minus_paper": {name: self.difference(variant, GUIDED, name, stratum) for name in DIFFERENCES},
        }


def report(comparison: Comparison) -> Iterator[str]:
    """The lines of a Markdown table. `improved`: videos with less ObjMC than the unguided one."""
    columns = ["pictures", "variant", "videos", "ObjMC px", "of paper", "improved", "projection", "kept", "- paper"]
    columns += ["second object px", "of paper", "ground change", "of paper", "ground motion px"]
    plain = comparison.plain()["strata"]

    def shown(interval: Interval | None) -> str:
        return "" if interval is None else cell(interval)

    def cells(stratum: str, variant: str) -> list[str]:
        of_stratum = plain[stratum]
        values = of_stratum["variants"][variant]
        mean, of_paper = values["mean"], values["of_paper"]
        return [
            f"{stratum} ({of_stratum['pictures']})",
            "paper" if variant == GUIDED else variant,
            str(of_stratum["videos_of_each_variant"]),
            shown(mean["objmc_px"]),
            shown(of_paper["objmc_px"]),
            f"{values['improved_on_unguided']:.0%}",
            shown(mean["projection"]),
            shown(mean["kept"]),
            shown(values["minus_paper"]["kept"]),
            shown(mean["second_px"]),
            shown(of_paper["second_px"]),
            shown(mean["background_change"]),
            shown(of_paper["background_change"]),
            shown(mean["background_motion_px"]),
        ]

    with_videos = [stratum for stratum in STRATA if plain[stratum]["videos_of_each_variant"]]
    yield from markdown(
        columns, [cells(stratum, variant) for stratum in with_videos for variant in comparison.variants]
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    checkpoint = open_checkpoint(ModelConfig(source=options.model), weights=False)
    comparison = Comparison(measured_rows(options, variants_of(checkpoint)))
    print(*report(comparison), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(comparison.plain(), indent=1) + "\n")


if __name__ == "__main__":
    main()
