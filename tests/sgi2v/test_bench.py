"""The benchmark measures and counts every phase, and its table and its JSON agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sgi2v.bench
from sgi2v.bench import Benchmark, Phase, benchmark, lines
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError
from sgi2v.estimate import count_flops, matrix_rate, uses_tf32
from sgi2v.generate import Generation, generate
from sgi2v.sampling import PHASES
from sgi2v.trial import shortest
from tests.pipeline.in_process import here
from tests.pipeline.runs import cli

SMALL = ("--model", "embedded", "--frames", "4", "--steps", "2", "--samples", "1")


@pytest.mark.whole
def test_every_phase_is_measured_and_counted(tmp_path: Path) -> None:
    done = cli("bench", *SMALL, "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert set(figures["phases"]) == set(PHASES)
    for name, phase in figures["phases"].items():
        assert phase["seconds"] > 0.0001, name
        assert phase["flops"] > 1e6, name
    assert figures["seconds"] == pytest.approx(sum(phase["seconds"] for phase in figures["phases"].values()))
    assert figures["videos_per_hour"] == pytest.approx(3600 / figures["seconds"])
    assert figures["videos_per_day"] == pytest.approx(24 * figures["videos_per_hour"])
    assert figures["of_matrix_rate"] == pytest.approx(figures["flops"] / figures["seconds"] / figures["matrix_flops"])
    assert (figures["num_frames"], figures["steps"], figures["dtype"], figures["guided_steps"]) == (4, 2, "float32", 2)
    assert figures["memory"] == "high"
    assert figures["peak_bytes"] > 100 << 20
    rates = [phase["flops"] / phase["seconds"] for phase in figures["phases"].values() if phase["seconds"]]
    assert 0 < max(rates) < 3 * figures["matrix_flops"]
    table = done.stdout.splitlines()
    assert [line.split()[0] for line in table[3:8]] == [*PHASES, "sample"]
    assert f"{figures['videos_per_hour']:.1f} videos an hour" in table[-1]


def small_settings() -> tuple[SamplerConfig, GuidanceConfig | None]:
    """The embedded model's settings with two frames and two steps, one of them guided."""
    checkpoint = open_checkpoint(ModelConfig(source="embedded"))
    sampler, guidance = shortest(checkpoint.sampler(), checkpoint.guidance())
    return sampler.replace(num_frames=2), guidance


def small_benchmark(memory: str = "auto", compiled: bool = False) -> Benchmark:
    return benchmark(ModelConfig(source="embedded"), *small_settings(), 1, 1, memory, compiled)


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, *tiers: MemoryTier) -> None:
    """Let memory run out in these tiers."""

    def generate_or_not(*arguments: Any, memory: MemoryTier, **named: Any) -> Generation:
        if memory in tiers:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return generate(*arguments, memory=memory, **named)

    monkeypatch.setattr(sgi2v.bench, "generate", generate_or_not)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize(
    ("too_large", "tier", "least", "most"),
    [((MemoryTier.HIGH, MemoryTier.MEDIUM), "low", 1.2, 1.5)],
)
def test_a_lower_tier_is_measured_and_reported_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, too_large: tuple[MemoryTier, ...], tier: str, least: float, most: float
) -> None:
    run_out_of_memory(monkeypatch, *too_large)
    result = small_benchmark()
    assert (result.memory, result.fell_back) == (tier, True)
    table = "\n".join(lines(result))
    assert f"GiB in the {tier} tier, after memory ran out in a higher tier; " in table
    assert f"the {tier} tier computes blocks of the guided passes twice; both are counted in the TFLOP" in table
    checkpoint = open_checkpoint(ModelConfig(source="embedded"))
    in_high = count_flops(checkpoint, *small_settings(), torch.float32)
    assert least * in_high["guide"] < result.phases["guide"].flops < most * in_high["guide"]
    assert result.phases["denoise"].flops == in_high["denoise"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "advice"),
    [
        ("auto", "make the frames smaller or fewer"),
        ("low", "make the frames smaller or fewer"),
        ("medium", "choose a lower --memory, or make the frames smaller or fewer"),
        ("high", "choose a lower --memory, or make the frames smaller or fewer"),
    ],
)
def test_frames_that_fit_no_tier_are_an_error(monkeypatch: pytest.MonkeyPatch, memory: str, advice: str) -> None:
    run_out_of_memory(monkeypatch, *MemoryTier)
    with pytest.raises(ConfigError, match="2 frames of 64 x 64 px do not fit into the memory of") as caught:
        small_benchmark(memory)
    assert str(caught.value).partition(": ")[2] == advice


@pytest.mark.slow
def test_a_chosen_tier_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory(monkeypatch, MemoryTier.HIGH)
    with pytest.raises(ConfigError):
        small_benchmark("high")


def test_the_table_and_the_json_hold_rates_and_videos_per_hour() -> None:
    phases = dict(zip(PHASES, (Phase(1.0, 2e12), Phase(0.0, 0.0), Phase(7.0, 30e12), Phase(2.0, 8e12)), strict=True))
    result = Benchmark(
        source="model",
        device="card",
        dtype="float32",
        threads=None,
        height=576,
        width=1024,
        num_frames=14,
        steps=50,
        guided_steps=0,
        iterations=0,
        memory="high",
        fell_back=False,
        compiled=False,
        samples=3,
        load_s=1.0,
        first_s=12.0,
        phases=phases,
        peak_bytes=3 << 30,
        matrix_flops=8e12,
        matrix_dtype="tf32",
    )
    plain = result.as_dict()
    assert plain["phases"]["encode"] == {"seconds": 1.0, "flops": 2e12, "flops_per_s": 2e12, "of_matrix_rate": 0.25}
    assert plain["phases"]["guide"]["flops_per_s"] == 0
    sample = {key: plain[key] for key in ("seconds", "flops", "flops_per_s", "of_matrix_rate")}
    assert sample == {"seconds": 10.0, "flops": 40e12, "flops_per_s": 4e12, "of_matrix_rate": 0.5}
    assert (plain["videos_per_hour"], plain["videos_per_day"], plain["peak_bytes"]) == (360, 8640, 3 << 30)
    table = lines(result)
    assert table[3].split() == ["encode", "1.000", "10.0%", "2", "2", "25.0%"]
    assert table[7].split() == ["sample", "10.000", "100.0%", "40", "4", "50.0%"]
    assert table[8] == "matrix rate 8 TFLOP/s in tf32, measured here"
    assert "peak memory 3.00 GiB in the high tier; model loaded in 1.0 s, first sample 12.0 s" in table
    assert table[-1] == "360.0 videos an hour and 8640 a day, one GPU; median of 3 samples"


def test_the_matrix_rate_is_in_tf32_where_convolutions_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert uses_tf32(torch.device("cuda"), torch.float32)
    assert not uses_tf32(torch.device("cuda"), torch.bfloat16)
    assert not uses_tf32(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not uses_tf32(torch.device("cuda"), torch.float32)
    before = torch.backends.cuda.matmul.allow_tf32
    assert matrix_rate(torch.device("cpu"), torch.float32, seconds=0.1) > 1e8
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.whole
def test_a_compiled_model_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    unets: list[object] = []
    monkeypatch.setattr(sgi2v.bench, "compile_blocks", unets.append)
    result = small_benchmark(compiled=True)
    assert result.compiled
    assert len(unets) == 1
    assert lines(result)[0] == "embedded on cpu, float32, 1 thread, compiled"


@pytest.mark.whole
@pytest.mark.slow
def test_a_missing_compiler_is_an_error_with_advice(tmp_path: Path) -> None:
    done = cli("bench", *SMALL, "--compile", PATH=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: embedded cannot be compiled on ")
    assert done.stderr.endswith("install a C++ compiler there, or leave --compile out\n")


@pytest.mark.slow
def test_a_missing_model_is_an_error() -> None:
    done = here("bench", "--model", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
