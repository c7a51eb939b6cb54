"""The command for one lease of a GPU: what it writes down when parts fail, are skipped, or take too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sgi2v.errors import ConfigError
from tests.benchmarks.gpu_lease import checks
from tests.benchmarks.gpu_lease.lease import Figures, Lease, Part, RunningPart
from tests.benchmarks.gpu_lease.table import describe
from tests.benchmarks.gpu_lease.units import compiled, fastest


def report_of(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_failed_part_and_a_failed_figure_are_written_down_and_the_next_run(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    seen: list[dict[str, Any]] = []

    def not_available() -> Figures:
        raise ConfigError("this card has no flash attention")

    def failing(part: RunningPart) -> None:
        part.figure("first", lambda: {"seconds": 1.5, "loss": float("inf")})
        seen.append(report_of(file)["parts"])
        part.figure("bad", lambda: {"seconds": 1 / 0})
        part.figure("absent", not_available)
        raise RuntimeError("the card fell off")

    def working(part: RunningPart) -> None:
        assert part.figure("last", lambda: {"seconds": 2.0}) == {"seconds": 2.0}

    lease = Lease(file, {"device": "card"}, minutes=1)
    lease.run([Part("failing", failing, 1, 0), Part("working", working, 1, 0), Part("long", working, 1, 1000)])
    assert seen[0]["failing"]["figures"]["first"]["loss"] == "inf"  # JSON has no infinity
    parts = report_of(file)["parts"]
    assert parts["failing"]["status"] == "failed"
    assert parts["failing"]["reason"] == "RuntimeError: the card fell off"
    assert parts["failing"]["figures"]["bad"]["error"] == "ZeroDivisionError: division by zero"
    assert parts["failing"]["figures"]["absent"]["skipped"] == "this card has no flash attention"
    assert parts["working"]["figures"]["last"]["seconds"] == 2.0
    assert parts["long"]["status"] == "skipped"
    assert parts["long"]["reason"].endswith("s are left for it, and it needs 1000 s")


def test_time_that_a_part_does_not_use_is_left_to_the_later_ones(tmp_path: Path) -> None:
    left: list[float] = []

    def run(part: RunningPart) -> None:
        left.append(part.left_s)

    Lease(tmp_path / "card.json", {}, minutes=10).run([Part(name, run, 0.5, 0) for name in ("first", "second")])
    assert left == pytest.approx([300, 600], abs=30)


def test_a_figure_that_outlasts_its_part_is_interrupted(tmp_path: Path) -> None:
    def endless() -> Figures:
        while True:
            pass

    def run(part: RunningPart) -> None:
        assert part.figure("endless", endless) == {}
        assert part.figure("later", lambda: {"seconds": 1.0}) == {}

    lease = Lease(tmp_path / "card.json", {}, minutes=1.1 / 60)
    lease.run([Part("only", run, 1, 0)])
    figures = report_of(lease.file)["parts"]["only"]["figures"]
    assert figures["endless"]["skipped"] == "the time of its part is over"
    assert "are left of its part" in figures["later"]["skipped"]


def test_the_fastest_of_each_setting_are_put_together() -> None:
    figures = {
        "as it is": {"sample_s": 10.0},
        "float16": {"sample_s": 9.0},
        "bfloat16": {"sample_s": 10.0},
        "spatial attention flash": {"sample_s": 9.5},
        "spatial attention cudnn": {"sample_s": 9.2},
        "temporal attention flash": {"sample_s": 11.0},
        "temporal convolution matmul": {"error": "out of memory"},
        "channels last": {"sample_s": 9.9},
    }
    best = fastest(figures)
    assert (best.dtype, best.kernels) == ("float16", {"spatial_attention": "cudnn", "channels_last": True})
    assert [variant.kernels.get("channels_last") for variant in compiled(best)] == [None, True]
    nothing = fastest({})
    assert (nothing.dtype, nothing.kernels) == ("auto", {})


@pytest.mark.whole
@pytest.mark.slow
def test_memory_that_runs_out_is_recovered_from() -> None:
    figures = checks.oom_recovery(torch.device("cpu"), checks.SMALL)
    assert figures["passed"], figures
    assert figures["tried"][0] == "high"


def test_the_table_has_the_fastest_variant_first() -> None:
    unit = {"seconds": 0.5}
    figures = {
        "as it is": {"update": unit, "step": unit, "decode": unit, "sample_s": 65.5},
        "spatial attention flash": {"update": {"seconds": 0.25}, "step": {"seconds": 0.25}, "sample_s": 33.0},
        "spatial attention cudnn": {"skipped": "does not run"},
        "counted": {"measured_bytes": 3 << 30, "of_counted": 0.9},
    }
    samples = {"sample, as it is": {"seconds": 66.0}}
    parts = {"units": {"figures": figures}, "samples": {"figures": samples}}
    report = {"device": "card", "sizes": "full-size SVD", "versions": {"torch": "2.13.0"}, "parts": parts}
    assert list(describe(report)) == [
        "Measured on card with torch 2.13.0, full-size SVD.",
        "A whole sample, as it is, takes 66.0 s.",
        "Its peak beside the weights is 3.0 GiB, 0.90 of what is counted.",
        "",
        "| variant | update s | step s | decode s | video s |",
        "| --- | --- | --- | --- | --- |",
        "| spatial attention flash | 0.250 | 0.250 |  | 33.0 |",
        "| as it is | 0.500 | 0.500 | 0.500 | 65.5 |",
        "\nA unit without a number takes as long as that of the model as it is.",
    ]
