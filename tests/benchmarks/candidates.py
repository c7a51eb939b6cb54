"""Yield and cost of several seeds for a sample, from measured videos that exist: none is made.

    python -m tests.benchmarks.candidates tests/benchmarks/rows/control-final

A video passes if its control gain is above `--gain` and its object keeps its look (`kept`) in at least 3/4 of the
frames. Each figure is a mean over samples and over all orders in which their seeds can be tried, so no seed is the
lucky first one. Of the videos of a sample that pass, the one with the highest gain is kept; else of all of them. The
second table asks what is known of a video before it is measured: how it correlates with the gain among the seeds of a
sample.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.measured import GUIDED, Row, markdown

KEPT = 0.75
"""Least share of the frames in which the object keeps its look, for a video that passes."""
KNOWN_EARLY = ("loss_ratio", "drift")
"""Telemetry of guidance, which is there before the video is decoded."""


def read(folder: Path, variant: str) -> list[list[Row]]:
    """The rows of a variant, by sample: one for each seed."""
    samples: dict[int, list[Row]] = defaultdict(list)
    for file in sorted(folder.glob("rows-*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            if row["variant"] == variant:
                samples[row["index"]].append(row)
    return list(samples.values())


def gain(row: Row) -> float:
    """The control gain; 0, as of a still image, where the object was lost."""
    return 0.0 if row["objmc_px"] is None else 1.0 - float(row["objmc_px"]) / float(row["static_objmc_px"])


def yields(gains_SK: NDArray[np.float64], passes_SK: NDArray[np.bool_]) -> Iterator[list[str]]:
    """A line of the table for each number of seeds."""
    samples, seeds = gains_SK.shape
    for number in range(1, seeds + 1):
        passed, made, kept = [], [], []
        for order in map(list, permutations(range(seeds), number)):
            own_SK = passes_SK[:, order]
            passed.append(own_SK.any(1).mean())
            made.append(np.where(own_SK.any(1), own_SK.argmax(1) + 1, number).mean())
            best_S = np.where(own_SK, gains_SK[:, order] + 1e3, gains_SK[:, order]).argmax(1)
            kept.append(gains_SK[:, order][np.arange(samples), best_S].mean())
        share, early = float(np.mean(passed)), float(np.mean(made))
        yield [
            f"{number}",
            f"{share:.0%}",
            f"{np.mean(kept):.2f}",
            f"{number}",
            f"{100 * share / number:.0f}",
            f"{early:.2f}",
            f"{100 * share / early:.0f}",
        ]


def correlation(samples: list[list[Row]], name: str) -> float:
    """Correlation of a value with the gain, both relative to their mean over the seeds of a sample."""
    pairs = []
    for rows in samples:
        values_K2 = np.array([(row[name], gain(row)) for row in rows if row[name] is not None], np.float64).reshape(
            -1, 2
        )
        pairs.append(values_K2 - values_K2.mean(axis=0))
    return float(np.corrcoef(np.concatenate(pairs).T)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="rows of `measured.py`")
    parser.add_argument("--variant", default=GUIDED)
    parser.add_argument("--gain", type=float, default=0.6)
    options = parser.parse_args()
    samples = read(options.folder, options.variant)
    gains_SK = np.array([[gain(row) for row in rows] for rows in samples])
    kept_SK = np.array([[row["kept"] for row in rows] for rows in samples])
    print(f"{len(samples)} samples, {options.variant}, control gain > {options.gain:g}\n")
    columns = ["seeds", "samples that pass", "gain of the kept", "videos a sample", "passing samples per 100 videos"]
    columns += ["videos a sample, stopping early", "passing samples per 100 videos, stopping early"]
    print(*markdown(columns, yields(gains_SK, (gains_SK > options.gain) & (kept_SK >= KEPT))), sep="\n")
    print()
    print(
        *markdown(
            ["known early", "correlation"], ([name, f"{correlation(samples, name):.2f}"] for name in KNOWN_EARLY)
        ),
        sep="\n",
    )


if __name__ == "__main__":
    main()
