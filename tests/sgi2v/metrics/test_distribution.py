"""FID and FVD: the distance of known features, and the loading code with the libraries' real signatures."""

import sys
import types

import numpy as np
import pytest
import torch

from sgi2v.errors import ConfigError
from sgi2v.metrics import distribution
from sgi2v.metrics.distribution import distance, load_features


def fid_statistics_to_metric(stat_1, stat_2, verbose):
    """As in torch-fidelity 0.4.0."""
    mu1, sigma1, mu2, sigma2 = (stat[key] for stat in (stat_1, stat_2) for key in ("mu", "sigma"))
    diff = mu1 - mu2
    tr_covmean = np.sum(np.sqrt(np.linalg.eigvals(sigma1.dot(sigma2)).astype("complex128")).real)
    return {"frechet_inception_distance": float(diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * tr_covmean)}


class Extractor(torch.nn.Module):
    """`FeatureExtractorInceptionV3`: uint8 [B, 3, H, W] in, a tuple of features [B, 2048] out."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, feature_extractor_internal_dtype=None):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        self.path = feature_extractor_weights_path

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 8, 12)
        return (x.float().mean(dim=(2, 3)),)


class Stats:
    """`FeatureStats`."""

    def __init__(self, capture_all=False, capture_mean_cov=False, max_items=None):
        self.capture_all = capture_all
        self.all_features = []

    def get_all(self):
        assert self.capture_all
        return np.concatenate(self.all_features)


class Cdfvd:
    """`cdfvd.fvd.cdfvd`: uint8 [B, T, H, W, 3] in, features pile up in `fake_stats`."""

    def __init__(self, model="i3d", n_real="full", n_fake=2048, ckpt_path=None, seed=42, compute_feats=False,
                 device="cuda", half_precision=False):  # fmt: skip
        assert (model, n_real, n_fake, compute_feats, device) == ("i3d", "full", "full", True, "cpu")
        self.ckpt_path = ckpt_path
        self.fake_stats = Stats(capture_all=compute_feats)

    def empty_fake_stats(self):
        self.fake_stats = Stats(capture_mean_cov=True)

    def add_fake_stats(self, fake_videos):
        assert fake_videos.dtype == np.uint8
        assert fake_videos.shape == (1, 12, 8, 12, 3)
        self.fake_stats.all_features.append(fake_videos.mean(axis=(1, 2, 3)))


@pytest.fixture
def libraries(monkeypatch):
    metric = types.SimpleNamespace(
        KEY_METRIC_FID="frechet_inception_distance", fid_statistics_to_metric=fid_statistics_to_metric
    )
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(FeatureExtractorInceptionV3=Extractor))
    monkeypatch.setitem(sys.modules, "torch_fidelity.metric_fid", metric)
    monkeypatch.setitem(sys.modules, "cdfvd", types.SimpleNamespace(fvd=types.SimpleNamespace(cdfvd=Cdfvd)))
    monkeypatch.setattr(distribution, "version", lambda name: "1")


def drawn(count, shift=0.0, rows=1, seed=0):
    """Features [rows, 3] of videos."""
    return list(np.random.default_rng(seed).normal(shift, 1.0, (count, rows, 3)))


def test_distance_of_the_same_features_is_zero_and_their_order_does_not_matter(libraries):
    features = drawn(40)
    found = distance(features, features[::-1], "x")
    assert found.value == pytest.approx(0.0, abs=1e-6)
    assert (found.videos, found.real, found.low_n) == (40, 40, True)
    assert len(found.halves) == 5
    assert len(set(found.halves)) == 5
    assert all(half > 0 for half in found.halves)


def test_a_shift_of_the_mean_by_d_gives_d_squared(libraries):
    features = drawn(300, rows=2)
    shifted = [each + np.array([3.0, 0.0, 4.0]) for each in features]
    found = distance(features, shifted, "x")
    assert found.value == pytest.approx(25.0, abs=1e-6)
    assert not found.low_n
    assert found.halves == pytest.approx([25.0] * 5, abs=1.5)


def test_too_few_videos_are_refused(libraries):
    with pytest.raises(ConfigError, match="needs two videos or more, and there are 1, with 40 real ones"):
        distance(drawn(1), drawn(40), "x")


@pytest.mark.parametrize(("name", "shape"), [("fid", (12, 3)), ("fvd", (1, 3))])
def test_features_of_a_video(libraries, name, shape, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.touch()
    features, library = load_features(name, str(weights), "cpu")
    video = np.zeros((12, 8, 12, 3), np.uint8)
    video[..., 2] = 9
    for _ in range(2):  # nothing piles up
        found = features(video)
        assert found.shape == shape
        np.testing.assert_array_equal(found[0], [0, 0, 9])
    assert library


@pytest.mark.parametrize("name", ["fid", "fvd"])
def test_missing_libraries_and_weights_are_named(libraries, monkeypatch, name):
    with pytest.raises(ConfigError, match=rf"--weights {name}=/missing: no such file"):
        load_features(name, "/missing", "cpu")
    for module in ("torch_fidelity", "cdfvd"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'sgi2v-batch\[evaluate\]'"):
        load_features(name, None, "cpu")
