"""Print what a lease has found as the Markdown of README's "What it costs".

python -m tests.benchmarks.gpu_lease.table tests/benchmarks/gpu/CARD.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.gpu_lease.lease import Figures
from tests.benchmarks.gpu_lease.variants import BASE, UNITS


def describe(report: Figures) -> Iterator[str]:
    """The lines: one on the card and the memory, and a table of the variants that were measured, the fastest first."""
    units = report["parts"].get("units", {}).get("figures", {})
    samples = report["parts"].get("samples", {}).get("figures", {})
    yield f"Measured on {report['device']} with torch {report['versions']['torch']}, {report['sizes']}."
    for name, sample in samples.items():
        if "seconds" in sample:
            yield f"A whole {name}, takes {sample['seconds']:.1f} s."
    if "of_counted" in units.get("counted", {}):
        peak, share = units["counted"]["measured_bytes"] / 2**30, units["counted"]["of_counted"]
        yield f"Its peak beside the weights is {peak:.1f} GiB, {share:.2f} of what is counted."
    measured = {name: values for name, values in units.items() if "sample_s" in values}
    if not measured:
        return
    yield ""
    yield _row(["variant", *(f"{unit} s" for unit in UNITS), "video s"])
    yield _row(["---"] * (len(UNITS) + 2))
    for name in sorted(measured, key=lambda name: float(measured[name]["sample_s"])):
        yield _row([name, *_cells(measured[name])])
    if BASE.name in measured:
        yield f"\nA unit without a number takes as long as that of the model {BASE.name}."


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(values: Figures) -> list[str]:
    seconds = [values.get(unit, {}).get("seconds") for unit in UNITS]
    return ["" if value is None else f"{value:.3f}" for value in seconds] + [f"{values['sample_s']:.1f}"]


if __name__ == "__main__":
    print("\n".join(describe(json.loads(Path(sys.argv[1]).read_text()))))
