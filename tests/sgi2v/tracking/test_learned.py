"""The adapters of trackers with weights: axes, corners, colours, query formats and loading.

The models are stand-ins with the signatures of the published code. Each knows that everything moves by one step a frame
in its own coordinates, and checks what it is given.
"""

import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch

from sgi2v.errors import ConfigError
from sgi2v.tracking import TRACKERS, load_tracker

T, H, W = 4, 40, 72
QUERIES = np.array([[0.5, 0.75], [10.0, 30.25], [60.75, 5.5]])
STEP = np.array([2.0, -0.5])
"""Pixels a frame that everything moves, xy."""


def video():
    """Red on the left half, green above on the right, blue below."""
    frames = np.zeros((T, H, W, 3), np.uint8)
    frames[:, :, : W // 2, 0] = 250
    frames[:, : H // 2, W // 2 :, 1] = 250
    frames[:, H // 2 :, W // 2 :, 2] = 250
    return frames


def check_colours(frame_HWC, high, low):
    """A frame is upright and RGB."""
    height, width = frame_HWC.shape[:2]
    for y, x, channel in (
        (height // 4, width // 4, 0),
        (height // 4, 3 * width // 4, 1),
        (3 * height // 4, 3 * width // 4, 2),
    ):
        assert frame_HWC[y, x, channel] == pytest.approx(high)
        assert frame_HWC[y, x, (channel + 1) % 3] == pytest.approx(low)


class CoTracker(torch.nn.Module):
    """`CoTrackerPredictor`: video [B, T, 3, H, W] of 0 to 255; queries (t, x, y), the first pixel's centre is 0."""

    def __init__(self, checkpoint=None, offline=True, v2=False, window_len=60):
        super().__init__()
        self.checkpoint = checkpoint
        self.model = torch.nn.Linear(1, 1)

    def forward(self, video, queries=None, segm_mask=None, grid_size=0, grid_query_frame=0, backward_tracking=False):
        assert video.shape == (1, T, 3, H, W)
        check_colours(video[0, 0].permute(1, 2, 0).numpy(), 250, 0)
        assert (queries[..., 0] == 0).all()
        np.testing.assert_allclose(queries[0, :, 1:].numpy(), QUERIES - 0.5, atol=1e-5)
        times = torch.arange(T)[None, :, None, None]
        tracks = queries[:, None, :, 1:] + times * torch.tensor(STEP)
        return tracks, torch.tensor([True, True, False]).repeat(1, T, 1)


class Tapir(torch.nn.Module):
    """`TAPIR`: video [B, T, H, W, 3] in [-1, 1]; queries (t, y, x) from the corner; a dict of [B, Q, T, ...], xy."""

    def __init__(self, bilinear_interp_with_depthwise_conv=False, num_pips_iter=4, pyramid_level=1):
        super().__init__()
        assert pyramid_level == 1
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, video, query_points, is_training=False, query_chunk_size=64):
        assert video.shape == (1, T, 256, 256, 3)
        check_colours(video[0, 0].numpy(), 250 / 255 * 2 - 1, -1)
        np.testing.assert_allclose(
            query_points[0].numpy(), np.c_[[0, 0, 0], (QUERIES * [256 / W, 256 / H])[:, ::-1]], rtol=1e-5
        )
        xy = query_points[:, :, None, [2, 1]] + torch.arange(T)[:, None] * torch.tensor(STEP * [256 / W, 256 / H])
        hidden = torch.tensor([-9.0, -9.0, 9.0])[None, :, None].repeat(1, 1, T)
        return {"tracks": xy, "occlusion": hidden, "expected_dist": torch.full((1, 3, T), -9.0)}


class TapNext(torch.nn.Module):
    """`TAPNext`: one frame after the other; (t, y, x) in, (y, x) out, from the corner; logits [B, T, Q, 1]."""

    def __init__(self, image_size, width=768, patch_size=(8, 8)):
        super().__init__()
        assert image_size == (256, 256)

    def forward(self, video, query_points=None, state=None):
        assert video.shape == (1, 1, 256, 256, 3)
        check_colours(video[0, 0].numpy(), 250 / 255 * 2 - 1, -1)
        assert (query_points is None) != (state is None)
        if state is None:
            state = (0, query_points)
        number, queries = state
        yx = queries[:, None, :, 1:] + number * torch.tensor((STEP * [256 / W, 256 / H])[::-1].copy())
        logits = torch.tensor([1.0, 1.0, -1.0])[None, None, :, None]
        return yx, torch.zeros(1, 1, 3, 512), logits, (number + 1, queries)


class AllTracker(torch.nn.Module):
    """`Net(seqlen)`: `forward_sliding` of images [1, T, 3, H, W] of 0 to 255 gives maps of flow, dx first, and of both
    visibility and confidence."""

    def __init__(self, seqlen, use_attn=True):
        super().__init__()
        assert seqlen == 16
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward_sliding(self, images, iters=4, sw=None, is_training=False, window_len=None, stride=None):
        batch, times, colours, height, width = images.shape
        assert (batch, colours) == (1, 3)
        assert times > 2, "of two frames the model gives no axis of time"
        assert height % 8 == 0
        assert width % 8 == 0
        check_colours(images[0, 0].permute(1, 2, 0).numpy(), 250, 0)
        scale = np.array([width / W, height / H])
        flow = torch.arange(times)[:, None] * torch.tensor(STEP * scale)
        flows = flow[None, :, :, None, None].expand(1, times, 2, height, width).clone()
        seen = torch.ones(1, times, 2, height, width)
        seen[..., : height // 4, 3 * width // 4 :] = 0.1  # where the last query is
        return flows, seen, None, None


@pytest.fixture
def code(monkeypatch, tmp_path):
    """The published modules with the stand-ins, and a file of weights for each."""

    def module(name, **content):
        parts = name.split(".")
        for end in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        made = types.ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def restore_model_from_jax_checkpoint(model, ckpt_path):
        assert set(np.load(ckpt_path)) == {"backbone/mask_token"}
        return model

    module("tapnet.torch.tapir_model", TAPIR=Tapir)
    module("tapnet.tapnext.tapnext_torch", TAPNext=TapNext)
    monkeypatch.setitem(
        sys.modules,
        "tapnet.tapnext.tapnext_torch_utils",
        types.SimpleNamespace(restore_model_from_jax_checkpoint=restore_model_from_jax_checkpoint),
    )
    module("nets.alltracker", Net=AllTracker)
    torch.save(Tapir().state_dict(), tmp_path / "tapir")
    torch.save({"model": AllTracker(16).state_dict()}, tmp_path / "alltracker")
    torch.save(CoTracker().model.state_dict(), tmp_path / "cotracker3")
    with (tmp_path / "tapnext").open("wb") as file:
        np.savez(file, **{"backbone/mask_token": np.zeros(1)})

    def load(repo, model, *args, source="github", trust_repo=None, skip_validation=False, verbose=True, **kwargs):
        assert repo.startswith("facebookresearch/co-tracker:")
        assert (model, kwargs) == ("cotracker3_offline", {"pretrained": False})
        return CoTracker()

    monkeypatch.setattr(torch.hub, "load", load)
    return tmp_path


LEARNED = ("tapir", "tapnext", "alltracker", "cotracker3")


@pytest.mark.parametrize("name", LEARNED)
def test_tracks_are_in_pixels_of_the_frames(code, name):
    points = load_tracker(name, str(code / name)).track(video(), QUERIES)
    expected = QUERIES + np.arange(T)[:, None, None] * STEP
    np.testing.assert_allclose(points.points_TQ2, expected, atol=1e-3)
    inside = ((expected >= 0) & (expected < [W, H])).all(axis=-1)
    assert (points.visible_TQ[:, :2] == inside[:, :2]).all()
    assert points.visible_TQ[0, 2], "a query is visible in its own frame"
    assert not points.visible_TQ[1:, 2].any()
    assert (points.points_TQ2[2:, 0, 1] < 0).all(), "a track that leaves the frame is not clipped"


@pytest.mark.parametrize("name", LEARNED)
def test_one_frame_or_no_query_needs_no_model(name, tmp_path):
    tracker = load_tracker(name, str(tmp_path / "missing"))
    points = tracker.track(video()[:1], QUERIES)
    np.testing.assert_array_equal(points.points_TQ2, QUERIES[None])
    assert points.visible_TQ.all()
    assert tracker.track(video(), np.zeros((0, 2))).points_TQ2.shape == (T, 0, 2)


def test_alltracker_takes_two_frames(code):
    points = load_tracker("alltracker", str(code / "alltracker")).track(video()[:2], QUERIES)
    np.testing.assert_allclose(points.points_TQ2[1], QUERIES + STEP, atol=1e-3)


def test_cotracker_is_taken_from_its_package_where_that_is_installed(code, monkeypatch):
    package = types.ModuleType("cotracker")
    package.__spec__ = ModuleSpec("cotracker", None)
    monkeypatch.setitem(sys.modules, "cotracker", package)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", types.SimpleNamespace(CoTrackerPredictor=CoTracker))
    tracker = load_tracker("cotracker3", str(code / "cotracker3"))
    tracker.track(video(), QUERIES)
    assert tracker._model.checkpoint == str(code / "cotracker3")


def test_the_version_names_the_weights(code):
    first, second = (load_tracker(name, str(code / name)).version for name in ("tapir", "alltracker"))
    assert first.startswith("1+weights-")
    assert first != second


def test_licences_are_stated():
    assert "no commercial use" in TRACKERS["cotracker3"].licence
    assert all(TRACKERS[name].licence for name in TRACKERS)


def test_published_weights_are_fetched_into_the_folder_of_the_hub(code, monkeypatch, tmp_path):
    asked = []

    def download_url_to_file(url, dst, hash_prefix=None, progress=True):
        asked.append(url)
        (tmp_path / "fetched").write_bytes((code / "tapir").read_bytes())
        (tmp_path / "fetched").rename(dst)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download_url_to_file)
    for _ in range(2):
        load_tracker("tapir").track(video(), QUERIES)
    assert asked == [TRACKERS["tapir"].weights_url]


def test_what_cannot_be_had_is_named(code, monkeypatch, tmp_path):
    def no_network(url, dst, hash_prefix=None, progress=True):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(ConfigError, match=r"cannot be fetched .*no route to host.* give --weights tapir=FILE"):
        load_tracker("tapir").track(video(), QUERIES)
    with pytest.raises(ConfigError, match=r"--weights tapir=.*no such file"):
        load_tracker("tapir", "/missing").track(video(), QUERIES)
    monkeypatch.delitem(sys.modules, "nets.alltracker")
    monkeypatch.delitem(sys.modules, "nets")
    with pytest.raises(ConfigError, match=r"alltracker needs code .* PYTHONPATH"):
        load_tracker("alltracker", str(code / "alltracker")).track(video(), QUERIES)
    with pytest.raises(ConfigError, match=r"weights of tapir in .*cotracker3 cannot be loaded .*: take those of"):
        load_tracker("tapir", str(code / "cotracker3")).load()
    with pytest.raises(ConfigError, match="the tracker lucas-kanade has no weights"):
        load_tracker("lucas-kanade", "x")
