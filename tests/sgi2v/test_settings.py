"""Settings check themselves: the type, the range and the name of every field."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from sgi2v.config import Feature, GuidanceConfig, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError
from sgi2v.settings import Settings


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (GuidanceConfig, {"layers": [[2.9, 1.2]]}, "guidance.layers[0][0] must be an integer, not 2.9"),
        (GuidanceConfig, {"layers": [[2, -1]]}, "guidance.layers[0][1] must be 0 or more, not -1"),
        (GuidanceConfig, {"layers": [[2, 1, 0]]}, "guidance.layers[0] must have 2 at most values, not 3"),
        (GuidanceConfig, {"layers": []}, "guidance.layers must have 1 or more values, not 0"),
        (GuidanceConfig, {"layers": "all"}, "guidance.layers must be a list, not 'all'"),
        (GuidanceConfig, {"guided_steps": [0.5]}, "guidance.guided_steps[0] must be an integer, not 0.5"),
        (GuidanceConfig, {"guided_steps": [True]}, "guidance.guided_steps[0] must be an integer, not True"),
        (GuidanceConfig, {"guided_range": [0.9]}, "guidance.guided_range[1] is missing from [0.9]"),
        (GuidanceConfig, {"guided_range": [0.5, 0.6]}, "guidance.guided_range must fall"),
        (GuidanceConfig, {"guided_range": [1.5, 0.6]}, "guidance.guided_range[0] must be 1.0 or less, not 1.5"),
        (GuidanceConfig, {"feature": "colour"}, "guidance.feature must be one of modified_self_attention, self_"),
        (GuidanceConfig, {"learning_rate": 0}, "guidance.learning_rate must be greater than 0.0, not 0"),
        (GuidanceConfig, {"learning_rate": float("nan")}, "guidance.learning_rate must be a finite number, not nan"),
        (SamplerConfig, {"motion_bucket_id": -7}, "sampler.motion_bucket_id must be 0 or more, not -7"),
        (SamplerConfig, {"motion_bucket_id": 256}, "sampler.motion_bucket_id must be 255 or less, not 256"),
        (SamplerConfig, {"num_frames": 10**6}, "sampler.num_frames must be 4096 or less, not 1000000"),
        (SamplerConfig, {"steps": 3.0}, "sampler.steps must be an integer, not 3.0"),
        (SamplerConfig, {"steps": "3"}, "sampler.steps must be an integer, not '3'"),
        (SamplerConfig, {"hight": 64}, "unknown setting sampler.hight (did you mean height?): known are height, width"),
        (ModelConfig, {"source": ""}, "model.source must not be empty"),
        (ModelConfig, {"dtype": "int8"}, "model.dtype must be one of auto, float32, float16, bfloat16, not 'int8'"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(
    settings: type[Settings], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(**values)
    assert message in str(refused.value)


def test_every_wrong_value_is_listed() -> None:
    with pytest.raises(ConfigError) as refused:
        SamplerConfig(steps=0, fps=1)
    assert str(refused.value) == "sampler.steps must be 1 or more, not 0\nsampler.fps must be 2 or more, not 1"


def test_plain_values_become_settings_and_come_back() -> None:
    plain = {"layers": [[2, 1]], "feature": "self_attention", "guided_range": [1, 0.5], "fft_cutoff": False}
    guidance = GuidanceConfig.parse(plain)
    assert guidance.layers == ((2, 1),)
    assert guidance.feature is Feature.SELF_ATTENTION
    assert guidance.guided_range == (1.0, 0.5)
    assert guidance.fft_cutoff is None, "TOML has no null: false stands for it"
    assert GuidanceConfig.parse(guidance.plain()) == guidance
    assert pickle.loads(pickle.dumps(guidance)) == guidance  # noqa: S301
    assert hash(GuidanceConfig.parse(plain)) == hash(guidance)
    with pytest.raises(ConfigError, match=r"guidance must be a section of settings, not 3"):
        GuidanceConfig.parse(3)


def test_settings_are_frozen_and_a_changed_copy_is_checked_again() -> None:
    sampler = SamplerConfig()
    with pytest.raises(ValidationError):
        sampler.steps = 3
    assert sampler.replace(steps=3) == SamplerConfig(steps=3)
    with pytest.raises(ConfigError, match=r"sampler\.steps must be 1 or more"):
        sampler.replace(steps=0)


@pytest.mark.parametrize("settings", [GuidanceConfig, ModelConfig, SamplerConfig])
def test_every_field_is_described(settings: type[Settings]) -> None:
    assert [name for name, field in settings.model_fields.items() if not field.description] == []
