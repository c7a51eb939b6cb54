"""Draw what is kept against how well it is controlled: the trade-off behind the presets of `select`.

Usage: python -m tests.benchmarks.selecting OUT -o selecting.png
Samples are ordered by their control gain, and the worst are dropped first; the presets of `select` are points.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.export.select import PRESETS
from pipeline.output.conditions import parse_condition
from pipeline.output.tables import METADATA

THRESHOLDS = (-0.5, 0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    parser.add_argument("-o", "--picture", type=Path)
    options = parser.parse_args()
    table = pq.read_table(Path(options.output) / METADATA)
    gains = np.array([np.nan if each is None else each for each in table["control_gain"].to_pylist()])
    print(f"{len(gains)} samples, of which {int(np.isfinite(gains).sum())} have a control gain")
    print("| kept | share | mean control gain | samples |\n| --- | --- | --- | --- |")
    rows = [("all", np.ones(len(gains), np.bool_))]
    rows += [(f"`control_gain > {each:g}`", gains > each) for each in THRESHOLDS]
    for name, conditions in PRESETS.items():
        masks = [parse_condition(each, table.schema).mask(table).to_numpy() for each in conditions]
        rows += [(f"`{each}`", mask) for each, mask in zip(conditions, masks, strict=True)]
        rows.append((f"--preset {name}", np.logical_and.reduce(masks)))
    for name, kept in rows:
        mean = np.nanmean(gains[kept]) if np.isfinite(gains[kept]).any() else np.nan
        print(f"| {name} | {kept.mean():.0%} | {mean:.2f} | {kept.sum()} |")
    if options.picture is not None:
        ordered = np.sort(gains[np.isfinite(gains)])[::-1]
        counts = np.arange(1, len(ordered) + 1)
        pyplot.plot(counts / len(gains), np.cumsum(ordered) / counts)
        for name, kept in rows:
            if name.startswith("--preset"):
                pyplot.plot(kept.mean(), np.nanmean(gains[kept]), "o", label=name)
        pyplot.xlabel("share of samples kept")
        pyplot.ylabel("mean control gain of those")
        pyplot.legend()
        pyplot.savefig(options.picture, dpi=100)


if __name__ == "__main__":
    main()
