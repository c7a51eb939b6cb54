"""Looking inside changes nothing, and shows what the loss compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgi2v.config import Feature, GuidanceConfig, SamplerConfig
from sgi2v.generate import generate
from sgi2v.inspection import Inspector, attention_features, principal_components
from sgi2v.model import VideoModel
from sgi2v.trajectory import BoxTracks

SAMPLER = SamplerConfig(height=64, width=128, num_frames=3, steps=4, max_cfg_scale=1.0)
GUIDANCE = GuidanceConfig(guided_steps=(1, 2), iterations=2)
TRACKS = BoxTracks.from_paths(np.array([[16.0, 16, 48, 48]]), [np.array([[32.0, 32], [80, 32]])], 3, 64, 128)


@pytest.mark.slow
def test_the_video_is_the_same_and_every_guided_step_is_kept(model: VideoModel, photograph: np.ndarray) -> None:
    expected = generate(model, photograph, TRACKS, SAMPLER, GUIDANCE, seed=5)
    inspector = Inspector()
    seen = generate(model, photograph, TRACKS, SAMPLER, GUIDANCE, seed=5, on_stage=inspector.on_stage)
    assert torch.equal(seen.latents, expected.latents)
    assert inspector.steps == (1, 2)
    changes = inspector.changes_SThw()
    assert changes.shape == (2, 3, 8, 16)
    assert changes[:, 1:].mean() > changes[:, 0].mean(), "frame 0 is what the others are compared with"
    drift = sum(
        ((inspector.after[s] - inspector.before[s]).square().mean() / inspector.before[s].square().mean())
        for s in (1, 2)
    )
    assert float(drift) ** 0.5 == pytest.approx(seen.latent_drift, rel=1e-5)
    plain, modified = (
        attention_features(model, photograph, SAMPLER, GUIDANCE, 5, 1, inspector.before[1], feature)
        for feature in (Feature.SELF_ATTENTION, Feature.MODIFIED_SELF_ATTENTION)
    )
    assert plain.shape == modified.shape == (3, 8, 16, 64)
    assert torch.allclose(plain[0], modified[0], atol=1e-5), "frame 0 attends to itself in both"
    assert not torch.allclose(plain[1], modified[1], atol=1e-3)


def test_components_of_a_plane_are_found_with_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(2, 5, 6, 2, generator=generator)
    first, second = torch.tensor([3.0, 0, 0, 0]), torch.tensor([0, 0, -1.0, 0])
    features = places[..., :1] * first + places[..., 1:] * second + 7
    components, shares = principal_components(features)
    assert components.shape == (2, 5, 6, 3)
    assert sum(shares[:2]) == pytest.approx(1)
    assert shares[0] > shares[1] > 0.05
    correlation = np.corrcoef(components[..., 0].flatten(), places[..., 0].flatten())[0, 1]
    assert correlation > 0.99
