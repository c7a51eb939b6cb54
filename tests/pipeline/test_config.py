"""Settings: which wins, which are refused, and which decide the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manifests.fit import Fit
from pipeline.config import RunConfig, default_output, differences, read_toml, resolve, sample_seed
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import GuidanceConfig, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError

EMBEDDED: Mapping[str, Mapping[str, Any]] = {"model": {"source": "embedded"}}


def settle(
    toml: Mapping[str, Mapping[str, Any]] | None = None, unguided: bool = False, **flags: Mapping[str, Any]
) -> RunConfig:
    return resolve("m.parquet", "out", toml or {}, {**EMBEDDED, **flags}, unguided)[0]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_checkpoint_then_preset_then_file_then_flags() -> None:
    checkpoint = open_checkpoint(ModelConfig(source="embedded"))
    own = checkpoint.sampler()
    assert own != SamplerConfig(), "the embedded checkpoint brings settings of its own"
    assert settle().sampler == own
    assert settle().guidance == checkpoint.guidance()
    fast = settle(run={"preset": "fast"})
    assert (own.steps, fast.sampler.steps) == (20, 8)
    assert fast.guidance is not None
    assert (checkpoint.guidance().iterations, fast.guidance.iterations) == (5, 2)
    assert fast.guidance.learning_rate == 4 * checkpoint.guidance().learning_rate
    scene = settle(run={"preset": "scene"})
    learning_rate = 1.5 * checkpoint.guidance().learning_rate
    held = checkpoint.guidance(hold_rest=True, gradient_floor=0.3, learning_rate=learning_rate)
    assert (scene.sampler, scene.guidance) == (own, held)
    both = settle({"guidance": {"hold_rest": True}}, run={"preset": "fast"})
    assert (both.sampler, both.guidance) == (fast.sampler, fast.guidance.replace(hold_rest=True))
    toml = {"run": {"preset": "fast"}, "sampler": {"steps": own.steps + 5, "fps": 9}}
    assert settle(toml).sampler == own.replace(steps=own.steps + 5, fps=9)
    assert settle(toml, sampler={"steps": 3}).sampler == own.replace(steps=3, fps=9)
    assert settle(toml, run={"preset": "paper"}).guidance == checkpoint.guidance()


def test_a_settings_file_is_read_by_section(settings: Path) -> None:
    settings.write_text(
        "[run]\nworkers = 3\nseed = 5\n[guidance]\nlayers = [[2, 1]]\nlearning_rate = 1\nguided_range = [0.9, 0.6]\n"
    )
    settings.write_bytes(b"\xef\xbb\xbf" + settings.read_bytes())  # the mark that Notepad writes
    config = settle(read_toml(str(settings)))
    assert config.execution.workers == 3
    assert config.seed == 5
    assert config.guidance is not None
    assert config.guidance.layers == ((2, 1),)
    assert config.guidance.learning_rate == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sampler]\nstep = 3", r"unknown setting sampler\.step \(did you mean steps\?\): known are height, width"),
        ("[guidance]\nlr = 0.2", r"unknown setting guidance\.lr: known are layers"),
        ("[run]\nworker = 2", r"unknown setting run\.worker \(did you mean workers\?\): known are workers"),
        (
            "[metrics]\ntrackers = 'x'",
            r"unknown setting metrics\.trackers \(did you mean tracker\?\): known are tracker",
        ),
        ("[sampling]\nsteps = 3", r"unknown section \[sampling\] \(did you mean sampler\?\): known are model, sampler"),
        ("steps = 3", r"settings\.toml: unknown section \[steps\]"),
        ("sampler = 3", r"settings\.toml: sampler must be a section, \[sampler\]"),
        ("[sampler]\nsteps = '3'", r"sampler\.steps must be an integer, not '3'"),
        ("[sampler]\nsteps = 3.5", r"sampler\.steps must be an integer, not 3\.5"),
        ("[sampler]\nsteps = true", r"sampler\.steps must be an integer, not True"),
        ("[sampler]\nnum_frames = 1", r"sampler\.num_frames must be 2 or more, not 1"),
        ("[guidance]\nlayers = 'all'", r"guidance\.layers must be a list, not 'all'"),
        ("[guidance]\nguided_range = [0.9]", r"guidance\.guided_range\[1\] is missing"),
        ("[guidance]\nfeature = 'colour'", r"guidance\.feature must be one of modified_self_attention"),
        ("[run]\nseed = 'x'", r"run\.seed must be an integer, not 'x'"),
        ("[run]\nseed = true", r"run\.seed must be an integer, not True"),
        ("[run]\nworkers = 0", r"run\.workers must be 1 or more, not 0"),
        ("[run]\npreset = 'slow'", r"run\.preset must be one of paper, fast, scene, not 'slow'"),
        ("[metrics]\ntracker = 'eyes'", r"lucas-kanade"),
        ("[model]\ndtype = 'int8'", r"model\.dtype must be one of auto, float32, float16, bfloat16"),
        ("[sampler", r"settings\.toml cannot be read as TOML"),
    ],
)
def test_what_is_unknown_or_wrong_is_named(settings: Path, text: str, message: str) -> None:
    settings.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        settle(read_toml(str(settings)))


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        read_toml(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": {"steps": 4}},
        {"guidance": {"hold_rest": True}},
        {"guidance": {"gradient_floor": 0.3}},
        {"guidance": {"mask_update": True}},
        {"sampler": {"height": 128}},
        {"sampler": {"fps": 8}},
        {"guidance": {"learning_rate": 0.1}},
        {"guidance": {"layers": [[2, 0]]}},
        {"run": {"seed": 1}},
        {"run": {"baseline": "unguided"}},
        {"candidates": {"number": 2}},
        {"candidates": {"keep": "control_gain > 0.6"}},
        {"model": {"source": "embedded", "dtype": "bfloat16"}},
        {"unguided": True},
    ],
)
def test_what_decides_the_results_decides_the_fingerprint(changes: dict[str, Any]) -> None:
    assert settle(**changes).fingerprint != settle().fingerprint


def test_where_and_how_wide_a_run_goes_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    here = settle()
    assert settle().fingerprint == here.fingerprint
    assert settle(run={"workers": 7, "threads_per_worker": 1, "gpus_per_worker": 0.5}).fingerprint == here.fingerprint
    kernels = {"source": "embedded", "kernels": {"cfg_passes": 2, "temporal_attention": "packed"}}
    assert settle(model=kernels).model.kernels.cfg_passes == 2
    assert settle(model=kernels).fingerprint == here.fingerprint
    elsewhere = resolve("s3://bucket/other.parquet", "s3://bucket/out", {}, EMBEDDED)[0]
    assert elsewhere.fingerprint == here.fingerprint
    assert settle(sampler=here.sampler.plain()).fingerprint == here.fingerprint
    read_back = json.loads(json.dumps(here.deciding()))
    assert differences(read_back, here.deciding()) == [], "tuples come back as lists, and are the same"


def test_differences_are_listed_one_per_line() -> None:
    there = settle().deciding()
    here = settle(sampler={"steps": 4}, run={"seed": 1}, guidance={"learning_rate": 0.1}).deciding()
    lr, steps = GuidanceConfig().learning_rate, there["sampler"]["steps"]
    assert differences(there, here) == [
        f"guidance.learning_rate: {lr} before, 0.1 now",
        f"sampler.steps: {steps} before, 4 now",
        "seed: 817 before, 1 now",
    ]
    unguided = settle(unguided=True).deciding()
    assert differences(there, unguided) == ["guidance: on before, off now"]
    assert differences(unguided, there) == ["guidance: off before, on now"]
    no_merge = settle(guidance={"fft_cutoff": None}).deciding()
    assert differences(there, no_merge) == ["guidance.fft_cutoff: 0.5 before, off now"]
    assert differences({"dtype": "auto", "layers": [[2, 1]]}, {"dtype": "float32", "layers": [[1, 0]]}) == [
        "dtype: auto before, float32 now",
        "layers: [[2,1]] before, [[1,0]] now",
    ]


def test_where_results_go_by_default() -> None:
    assert default_output("data/cats.parquet") == "runs/cats"
    assert default_output("s3://bucket/cats.v2.jsonl") == "runs/cats.v2"
    assert settle().output == str(Path("out").absolute())
    assert resolve("m.parquet", "s3://bucket/out", {}, EMBEDDED)[0].output == "s3://bucket/out"


def test_a_sample_has_one_seed_wherever_it_is_made() -> None:
    assert sample_seed("cat", 817) == sample_seed("cat", 817)
    assert len({sample_seed(name, base) for name in ("cat", "dog") for base in (817, 818)}) == 4
    assert 0 <= sample_seed("cat", 817) < 2**63


def test_an_untrusted_manifest_has_its_roots_and_a_trusted_one_none(tmp_path: Path) -> None:
    assert settle().execution.access.roots is None
    given = settle(run={"untrusted": True, "roots": ["s3://bucket/pictures", str(tmp_path)]})
    assert given.execution.access.roots == ("s3://bucket/pictures", str(tmp_path))
    assert given.fingerprint == settle().fingerprint
    with pytest.raises(ConfigError, match="add --untrusted or remove --root"):
        settle(run={"roots": ["/data"]})


@pytest.mark.parametrize("roots", ["/data", ["/data", 3]])
def test_roots_that_are_no_list_of_texts_are_refused(roots: Any) -> None:
    with pytest.raises(ConfigError, match=r"run\.roots.* must be (a list|text), not"):
        settle(run={"untrusted": True, "roots": roots})


def test_the_fingerprint_of_settings_does_not_change_between_versions() -> None:
    sampler = SamplerConfig(height=320, max_cfg_scale=3)
    guidance = GuidanceConfig(layers=((2, 1),), guided_steps=(1, 2))
    config = RunConfig("m", "o", ModelConfig(), "abc", sampler, guidance, fit="stretch")
    assert config.fingerprint == "c491f78402071757", "a digest of the version of the metrics, and of no fit"
    fits: tuple[Fit, ...] = ("crop", "pad", "bucket")
    assert len({replace(config, fit=fit).fingerprint for fit in fits} | {config.fingerprint}) == 4
