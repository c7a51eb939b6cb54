"""The tier and the decoder's chunk are chosen by what a process may allocate, and what cannot fit is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sgi2v import costs
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig
from sgi2v.costs import Cost, cost_key, known_cost
from sgi2v.errors import ConfigError
from sgi2v.estimate import choose_chunk, choose_tier, count_cost
from sgi2v.model import VideoModel, resolve_vae_dtype
from sgi2v.room import ALLOCATOR_SLACK, CONTEXT_BYTES, GIB, limit_process, use_expandable_segments
from tests.sgi2v.test_generate import GUIDANCE, SAMPLER
from tools.costs import without_updates
from tools.full_size import VAE, write_configs

PEAKS = {"encode": 0.5, "step": 2, "frame": 1, "update_high": 8, "update_medium": 5, "update_low": 3}
COST = Cost(4 * GIB, {}, {part: round(gib * GIB / ALLOCATOR_SLACK) for part, gib in PEAKS.items()})
"""What a sample takes on the card: a GiB of each part is a GiB with the allocator's slack."""
LARGE = SAMPLER.replace(height=576, width=1024)


@dataclass
class Card:
    """A GPU of 14 GiB with 4 GiB of weights on it, as torch describes it."""

    free_gib: float = 9
    reserved_gib: float = 0
    """What torch has reserved and does not use."""
    share: float = 1.0
    """What torch may allocate in this process."""

    def mem_get_info(self, _: object) -> tuple[int, int]:
        return int(self.free_gib * GIB), 14 * GIB

    def memory_allocated(self, _: object) -> int:
        return 4 * GIB

    def memory_reserved(self, _: object) -> int:
        return int((4 + self.reserved_gib) * GIB)

    def current_device(self) -> int:
        return 0

    def get_per_process_memory_fraction(self, device: int | torch.device) -> float:
        assert device == 0, "torch takes no device without a number here"
        return self.share

    def set_per_process_memory_fraction(self, share: float, device: int | torch.device) -> None:
        assert device == 0, "torch takes no device without a number here"
        self.share = share

    def get_device_name(self, _: object = None) -> str:
        return "Test GPU"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    for name in dir(Card):
        if not name.startswith("_") and callable(getattr(card, name)):
            monkeypatch.setattr(torch.cuda, name, getattr(card, name))
    return card


@pytest.fixture
def on_gpu(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> VideoModel:
    """The model on that card, with samples of two sizes whose cost is known."""
    for sampler in (SAMPLER, LARGE):
        for guidance, cost in ((GUIDANCE, COST), (None, without_updates(COST))):
            key = cost_key(model.checkpoint, sampler, guidance, "float32", "float32")
            monkeypatch.setitem(costs._kept, key, cost)
    return dataclasses.replace(model, device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("free_gib", "reserved_gib", "share", "tier"),
    [
        (9, 0, 1.0, MemoryTier.HIGH),
        (7, 0, 1.0, MemoryTier.MEDIUM),
        (3.1, 0, 1.0, MemoryTier.LOW),
        (3, 6, 1.0, MemoryTier.HIGH),
        (3, 3, 1.0, MemoryTier.MEDIUM),
        (9, 0, 0.65, MemoryTier.MEDIUM),
        (9, 0, 0.5, MemoryTier.LOW),
        (1, 0, 0.5, MemoryTier.LOW),  # a neighbour may free its part again
    ],
)
def test_the_tier_is_chosen_by_what_torch_can_still_allocate(
    on_gpu: VideoModel, card: Card, free_gib: float, reserved_gib: float, share: float, tier: MemoryTier
) -> None:
    card.free_gib, card.reserved_gib, card.share = free_gib, reserved_gib, share
    assert choose_tier("auto", on_gpu, SAMPLER, GUIDANCE) is tier
    assert choose_tier("high", on_gpu, SAMPLER, GUIDANCE) is MemoryTier.HIGH


@pytest.mark.parametrize(
    ("free_gib", "share", "guidance", "advice"),
    [
        (2, 1.0, GUIDANCE, "or use a GPU with 8 GiB or more"),
        (1, 1.0, None, "or use a GPU with 7 GiB or more"),
        (9, 0.4, GUIDANCE, r"or give each worker more of the GPU \(--gpus-per-worker\), or use a GPU with 8"),
    ],
)
def test_a_model_that_cannot_fit_is_refused_with_what_would(
    on_gpu: VideoModel, card: Card, free_gib: float, share: float, guidance: GuidanceConfig | None, advice: str
) -> None:
    card.free_gib, card.share = free_gib, share
    with pytest.raises(ConfigError, match="4 frames of 576 x 1024 px do not fit into the memory of Test GPU") as raised:
        choose_tier("auto", on_gpu, LARGE, guidance)
    assert raised.match("GiB are left beside the 4.0 GiB of weights: make the frames [0-9]+ x [0-9]+ px")
    assert raised.match(advice)


def test_a_model_whose_weights_leave_nothing_is_refused_without_a_frame_size(on_gpu: VideoModel, card: Card) -> None:
    card.free_gib = 0
    with pytest.raises(ConfigError, match=r"0\.0 GiB are left beside the 4\.0 GiB of weights: use a GPU with 8 GiB"):
        choose_tier("auto", on_gpu, SAMPLER, GUIDANCE)


@pytest.mark.parametrize(("free_gib", "chunk"), [(9, 4), (3.5, 3), (0.1, 1)])
def test_as_many_frames_are_decoded_at_once_as_fit(on_gpu: VideoModel, card: Card, free_gib: float, chunk: int) -> None:
    card.free_gib = free_gib
    assert choose_chunk(on_gpu, SAMPLER, GUIDANCE) == chunk
    assert choose_chunk(on_gpu, SAMPLER.replace(decode_chunk_size=2), GUIDANCE) == min(chunk, 2)
    assert choose_chunk(on_gpu, SAMPLER.replace(num_frames=6), GUIDANCE) == 6, "a cost that is not known counts nothing"


def test_on_a_cpu_the_setting_decides(model: VideoModel) -> None:
    assert choose_tier("auto", model, SAMPLER, GUIDANCE) is MemoryTier.HIGH
    assert choose_chunk(model, SAMPLER, GUIDANCE) == SAMPLER.num_frames


def test_a_process_on_a_shared_gpu_is_limited_to_its_share_less_its_context(card: Card) -> None:
    limit_process(torch.device("cuda"), 1.0)
    assert card.share == 1
    limit_process(torch.device("cuda"), 0.5)
    assert card.share == pytest.approx(0.5 - CONTEXT_BYTES / (14 * GIB))
    limit_process(torch.device("cuda"), 0.01)
    assert card.share == 0, "no room is no negative room"


@pytest.fixture
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return


@pytest.mark.usefixtures("_clean_environment")
def test_the_allocators_segments_grow_unless_the_user_has_set_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    use_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:64")
        use_expandable_segments()
        assert os.environ[name] == "max_split_size_mb:64"
        assert os.environ.get("PYTORCH_ALLOC_CONF", "max_split_size_mb:64") == "max_split_size_mb:64"


@pytest.mark.parametrize(
    ("dtype", "capability", "expected"),
    [
        (torch.float16, (7, 5), torch.float32),  # T4
        (torch.float16, (7, 0), torch.float32),  # V100
        (torch.float16, (8, 0), torch.bfloat16),
        (torch.bfloat16, (8, 0), torch.bfloat16),
        (torch.float32, (7, 5), torch.float32),
    ],
)
def test_the_vaes_type_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_vae_dtype(VAE, dtype, torch.device("cuda")) is expected


def test_a_decoded_frame_counts_in_the_vaes_own_type(tmp_path: Path) -> None:
    """Below compute capability 8.0 the VAE runs in float32, and 8 frames take 18 GiB, not 9."""
    checkpoint = open_checkpoint(ModelConfig(source=str(write_configs(tmp_path))), weights=False)
    gib = {}
    for vae_dtype in ("bfloat16", "float32"):
        cost = known_cost(cost_key(checkpoint, SamplerConfig(), GuidanceConfig(), "float16", vae_dtype))
        assert cost is not None
        gib[vae_dtype] = 8 * cost.peak_bytes["frame"] / GIB
    assert gib == {"bfloat16": pytest.approx(9.0, abs=0.01), "float32": pytest.approx(18.0, abs=0.01)}


@pytest.mark.whole
@pytest.mark.slow
def test_memory_grows_with_the_pixels_as_the_advice_assumes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(ModelConfig(source=str(write_configs(tmp_path))), weights=False)
    sampler = SamplerConfig(height=320, width=576)
    small = count_cost(checkpoint, sampler, GuidanceConfig(), torch.float16, torch.bfloat16)
    whole = known_cost(cost_key(checkpoint, SamplerConfig(), GuidanceConfig(), "float16", "bfloat16"))
    assert whole is not None
    share = 320 * 576 / (576 * 1024)
    ratio = small.working_bytes(MemoryTier.LOW, 1) / whole.working_bytes(MemoryTier.LOW, 1)
    assert ratio == pytest.approx(share, rel=0.1)
