"""Outputs and evaluations, compared sample by sample.

Samples are paired by their id. Differences are taken sample by sample, averaged over the samples of an image (its
seeds and conditions), then over images, since two samples of one image are not independent. The first side is the base.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluate.compared import Compared, read_compared
from pipeline.evaluate.comparison_page import drawing, markdown
from pipeline.evaluate.statistics import holm, interval, p_value
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError
from sgi2v.metrics.protocols import Column
from sgi2v.trajectory import Floats

TIE = 1e-3
"""Differences of at most this share of the larger value are ties."""
Strata = dict[str, dict[str, Callable[[pd.DataFrame], Any]]]
STRATA: Strata = {
    "displacement, of the diagonal": {
        "under 5 %": lambda samples: samples["asked_displacement"] < 0.05,
        "5 to 15 %": lambda samples: samples["asked_displacement"].between(0.05, 0.15, inclusive="left"),
        "15 % or more": lambda samples: samples["asked_displacement"] >= 0.15,
    },
    "object's side, of the frame's": {
        "under 10 %": lambda samples: samples["asked_size"] < 0.10,
        "10 to 20 %": lambda samples: samples["asked_size"].between(0.10, 0.20, inclusive="left"),
        "20 % or more": lambda samples: samples["asked_size"] >= 0.20,
    },
    "objects that move": {
        "1": lambda samples: samples["num_moving"] == 1,
        "2": lambda samples: samples["num_moving"] == 2,
        "3 or more": lambda samples: samples["num_moving"] >= 3,
    },
    "camera": {
        "asked to move": lambda samples: samples["asks_camera"] == 1,
        "still": lambda samples: samples["asks_camera"] == 0,
    },
}
"""Groups of samples by what was asked of them."""


def compare(urls: Sequence[str], output: str, published: bool = False) -> str:
    """Compare, write comparison.md, comparison.json and comparison.png, and return the first of them as text.

    Raises ConfigError for fewer than two sides, without a sample id in common, and as `read_compared`.
    """
    if len(urls) < 2:
        raise ConfigError("--compare needs two outputs or evaluations or more")
    if len({url.rstrip("/") for url in urls}) < len(urls):
        raise ConfigError("--compare has one location twice: name each once")
    sides = read_compared(urls)
    comparison = compare_sides(sides)
    storage = Storage(output)
    text = markdown(comparison, published)
    storage.put("comparison.md", text.encode())
    storage.put("comparison.json", json.dumps(comparison, indent=2, allow_nan=False).encode())
    storage.put("comparison.png", drawing(comparison))
    return f"{text}\nwrote {output}/comparison.md, comparison.json and comparison.png"


def compare_sides(sides: Sequence[Compared]) -> dict[str, Any]:
    """The comparison as plain values. Raises ConfigError if no sample id is in all sides."""
    base = sides[0]
    shared = base.samples.index
    for side in sides[1:]:
        shared = shared.intersection(side.samples.index)
    if not len(shared):
        examples = "; ".join(f"{side.name} has {', '.join(map(str, side.samples.index[:2]))}" for side in sides)
        raise ConfigError(f"no sample id is in all of them: {examples}. Make them from one manifest")
    shared = shared.sort_values()
    notes = []
    same = pd.Series(True, index=shared)
    for side in sides[1:]:
        ours, theirs = base.samples.loc[shared, "paths"], side.samples.loc[shared, "paths"]
        same &= (ours == theirs) | ours.isna() | theirs.isna()
        if not (base.samples.loc[shared, "num_frames"] == side.samples.loc[shared, "num_frames"]).all():
            notes.append(
                f"{side.name} has other numbers of frames than {base.name}: more frames of a path are not the "
                "same measurement"
            )
    if not same.all():
        notes.append(f"{int((~same).sum())} samples were asked for other boxes or paths under the same id: left out")
        shared = shared[same.to_numpy()]
    if not len(shared):
        raise ConfigError("all samples with the same id were asked for other boxes or paths: nothing is comparable")
    images = base.samples.loc[shared, "image_key"].nunique()
    if images < 2:
        notes.append("all samples are of one image: there are no intervals and no p-values")
    metrics = [column for column in base.metrics if all(column in side.metrics for side in sides[1:])]
    return {
        "sides": [_side(side, len(shared)) for side in sides],
        "versions": dict(base.versions),
        "samples": len(shared),
        "images": int(images),
        "notes": notes,
        "pairs": [_pair(base, side, shared, metrics) for side in sides[1:]],
    }


def _side(side: Compared, shared: int) -> dict[str, Any]:
    return {
        "name": side.name,
        "url": side.url,
        "samples": len(side.samples),
        "not_shared": len(side.samples) - shared,
        "failed": side.failed,
    }


def _pair(base: Compared, other: Compared, shared: pd.Index, metrics: Sequence[Column]) -> dict[str, Any]:
    first, second = base.samples.loc[shared], other.samples.loc[shared]
    rows = _differences(first, second, metrics)
    strata = {
        kind: {
            name: _differences(first[chosen], second[chosen], metrics)
            for name, choose in groups.items()
            if (chosen := _mask(first, choose)).any()
        }
        for kind, groups in STRATA.items()
    }
    return {"base": base.name, "other": other.name, "metrics": rows, "strata": strata}


def _mask(samples: pd.DataFrame, choose: Callable[[pd.DataFrame], Any]) -> Any:
    """Which samples are in a group. One whose request is not known is in none."""
    asked = samples[["asked_displacement", "asked_size", "num_moving", "asks_camera"]].astype("float64")
    return np.asarray(choose(asked), bool)


def _differences(first: pd.DataFrame, second: pd.DataFrame, metrics: Sequence[Column]) -> list[dict[str, Any]]:
    rows = [_difference(first, second, column) for column in metrics]
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def _difference(first: pd.DataFrame, second: pd.DataFrame, column: Column) -> dict[str, Any]:
    a, b = first[column.name], second[column.name]
    both = a.notna() & b.notna()
    by_image = pd.DataFrame({"a": a[both], "b": b[both], "image": first["image_key"][both]}).groupby("image").mean()
    a_I, b_I = by_image["a"].to_numpy(), by_image["b"].to_numpy()
    differences_I: Floats = b_I - a_I
    better_I = -differences_I if column.better == "lower" else differences_I
    is_tie = np.abs(differences_I) <= TIE * np.maximum(np.abs(a_I), np.abs(b_I))
    found = len(differences_I) > 0
    return {
        "metric": column.name,
        "unit": column.unit,
        "better": column.better,
        "samples": int(both.sum()),
        "images": len(differences_I),
        "base_mean": float(a_I.mean()) if found else None,
        "other_mean": float(b_I.mean()) if found else None,
        "difference": float(differences_I.mean()) if found else None,
        "interval": interval(differences_I),
        "p": p_value(differences_I),
        "wins": int(((better_I > 0) & ~is_tie).sum()),
        "ties": int(is_tie.sum()),
        "losses": int(((better_I < 0) & ~is_tie).sum()),
        "base_null_rate": float(a.isna().mean()) if len(a) else None,
        "other_null_rate": float(b.isna().mean()) if len(b) else None,
    }
