"""The choice among the candidates of one sample, without a generator and without a tracker."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.config import CandidatesConfig, candidate_seed
from pipeline.flow.candidates import Candidates
from pipeline.output.candidates import KEEPABLE, baseline_metrics
from sgi2v.errors import ErrorCode, SampleError

SEED = 17
PASSES = "control_gain > 0.5 and background_change < 2"
DIVERGED = SampleError(ErrorCode.GUIDANCE_DIVERGED, "latents became NaN")
LOST = SampleError(ErrorCode.TRACKING_FAILED, "the tracker failed")
Given = Mapping[str, float | None] | SampleError
"""The metrics of a candidate, or what is wrong with it."""


class Maker:
    """Makes candidates whose metrics are given, and knows which of their frames are still held."""

    def __init__(self, given: Sequence[Given]) -> None:
        self.given = given
        self.made: list[tuple[int, int]] = []
        self.most_held = 0
        self._frames: list[weakref.ref[Any]] = []

    def make(self, number: int, seed: int) -> Any:
        if self.given[number] is DIVERGED:
            raise DIVERGED
        frames = np.full((2, 4, 4, 3), number, np.uint8)
        self.made.append((number, seed))
        self._frames.append(weakref.ref(frames))
        gc.collect()
        self.most_held = max(self.most_held, sum(each() is not None for each in self._frames))
        return SimpleNamespace(frames=frames, decode_chunk=2)

    def measure(self, frames: Any) -> Mapping[str, Any]:
        given = self.given[int(frames[0, 0, 0, 0])]
        if isinstance(given, SampleError):
            raise given
        return {**dict.fromkeys(KEEPABLE), **given}


def choose(given: Sequence[Given], **settings: Any) -> tuple[int, list[dict[str, Any]], Maker]:
    """The number of the kept candidate, the rows of all, and their maker."""
    maker = Maker(given)
    candidates = Candidates(CandidatesConfig(number=len(given), **settings), SEED)
    generation = candidates.best(maker.make, maker.measure)
    assert [row["number"] for row in candidates.rows if row["kept"]] == [candidates.kept["number"]]
    assert int(generation.frames[0, 0, 0, 0]) == candidates.kept["number"]
    return candidates.kept["number"], candidates.rows, maker


def gains(*values: float | None) -> list[Given]:
    return [{"control_gain": value, "background_change": 1.0} for value in values]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (gains(0.1, 0.7, 0.6), 1),
        (gains(0.7, 0.7), 0),
        (gains(None, -3.0, None), 1),
        (gains(None, None), 0),
        ([{"control_gain": 0.9, "background_change": 3.0}, *gains(0.6)], 1),
        ([*gains(0.6), DIVERGED, LOST], 0),
        ([DIVERGED, *gains(None)], 1),
        ([LOST, *gains(0.2)], 1),
    ],
)
def test_what_passes_is_kept_before_what_does_not_and_then_the_highest_gain(given: list[Given], kept: int) -> None:
    assert choose(given, keep=PASSES)[0] == kept


def test_every_candidate_is_recorded_with_its_seed_and_why_it_does_not_pass() -> None:
    given: list[Given] = [{"control_gain": 0.25, "background_change": None}, DIVERGED, LOST, *gains(0.6)]
    _, rows, _ = choose(given, keep=PASSES)
    assert [row["seed"] for row in rows] == [candidate_seed(SEED, number) for number in range(4)]
    assert [row["passed"] for row in rows] == [False, None, None, True]
    assert rows[0]["why_not"] == (
        "not (control_gain > 0.5) and not (background_change < 2): control_gain is 0.25, background_change is null"
    )
    assert [row["error_code"] for row in rows] == [None, "guidance_diverged", "tracking_failed", None]
    assert [row["frames_sha256"] is None for row in rows] == [False, True, False, False]
    assert [row["control_gain"] for row in rows] == [0.25, None, None, 0.6]


def test_the_first_seed_is_the_samples_own_and_the_others_differ() -> None:
    seeds = [candidate_seed(seed, number) for seed in (SEED, SEED + 1) for number in range(3)]
    assert seeds[0] == SEED
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_no_seed_is_tried_after_one_that_passes() -> None:
    kept, rows, maker = choose(gains(0.2, 0.6, 0.9), keep=PASSES, stop_early=True)
    assert kept == 1
    assert len(rows) == len(maker.made) == 2


def test_all_seeds_are_tried_where_none_passes() -> None:
    kept, rows, _ = choose(gains(0.2, 0.4, 0.3), keep=PASSES, stop_early=True)
    assert kept == 1
    assert [row["passed"] for row in rows] == [False] * 3


def test_frames_do_not_pile_up() -> None:
    assert choose(gains(*np.linspace(0, 1, 8)))[2].most_held <= 3, "the best, the one that is measured, the new one"


def test_a_sample_whose_candidates_all_fail_fails_with_the_first_error() -> None:
    candidates, maker = Candidates(CandidatesConfig(number=2), SEED), Maker([LOST, DIVERGED])
    with pytest.raises(SampleError, match="the tracker failed") as raised:
        candidates.best(maker.make, maker.measure)
    assert raised.value.code is ErrorCode.TRACKING_FAILED
    assert [row["error_code"] for row in candidates.rows] == ["tracking_failed", "guidance_diverged"]


def test_the_gain_over_the_baseline_is_of_the_boxes_that_both_measure() -> None:
    names = ("objmc_px", "control_gain", "background_change", "background_motion_px", "null_reason")

    def metrics(*per_box: float | None) -> dict[str, Any]:
        return {**dict.fromkeys(names), "objmc_px_per_box": list(per_box)}

    def gain(own: dict[str, Any], baseline: dict[str, Any]) -> Any:
        return baseline_metrics(own, baseline)["gain_over_baseline"]

    assert gain(metrics(2.0, 3.0, None), metrics(8.0, None, 9.0)) == 0.75
    assert gain(metrics(9.0, 6.0), metrics(5.0, 5.0)) == pytest.approx(-0.5)
    assert gain(metrics(2.0, None), metrics(None, 4.0)) is None
    assert gain(metrics(0.1), metrics(0.5)) is None, "a baseline that follows already"
    assert set(baseline_metrics(metrics(1.0), metrics(2.0))) == {f"baseline_{name}" for name in names} | {
        "gain_over_baseline"
    }
