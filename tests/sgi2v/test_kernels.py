"""Every choice of kernels computes the same as torch's own, and says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgi2v.attention
from sgi2v.attention import PACKED, TORCH, SelfAttention, attend
from sgi2v.config import GuidanceConfig, KernelConfig, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError
from sgi2v.guidance import guided_features
from sgi2v.kernels import first_that_runs, use_kernels
from sgi2v.model import VideoModel, encode_image, load_model
from sgi2v.sampling import Schedule, denoise, draw_noise
from sgi2v.trial import moving_box
from tests.sgi2v.test_features import FRAMES, HEIGHT, WIDTH, inputs

Calls = list[tuple[Tensor, Tensor, Tensor]]
CPU = torch.device("cpu")
VARIANTS = [
    KernelConfig(spatial_attention="flash", frame0_attention="flash", temporal_attention="flash"),
    KernelConfig(spatial_attention="math", frame0_attention="math", temporal_attention="math"),
    KernelConfig(temporal_attention="packed"),
    KernelConfig(temporal_convolution="conv3d"),
    KernelConfig(temporal_convolution="matmul"),
    KernelConfig(channels_last=True),
    KernelConfig(cfg_passes=2),
]


@pytest.fixture(scope="module")
def own_model(golden_checkpoint: Path) -> VideoModel:
    return load_model(str(golden_checkpoint), device="cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Queries, keys and values of each call of torch's attention."""
    seen: Calls = []
    original = F.scaled_dot_product_attention

    def noted(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen.append((query, key, value))
        return original(query, key, value, **options)

    monkeypatch.setattr(sgi2v.attention.F, "scaled_dot_product_attention", noted)
    return seen


def random_heads(batch: int, tokens: int) -> Iterator[Tensor]:
    """Queries, keys and values, as diffusers hands them over."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        yield torch.randn(batch, tokens, 2, 8, dtype=torch.float64, generator=generator).transpose(1, 2)


@pytest.mark.parametrize("kernel", ["flash", "math", PACKED])
@pytest.mark.parametrize(("batch", "tokens"), [(7, 5), (27, 14), (3, 100), (2, 130)])
def test_every_kernel_has_the_same_values_and_gradients(kernel: str, batch: int, tokens: int) -> None:
    results = []
    for each in (TORCH, kernel):
        leaves = [tensor.requires_grad_(True) for tensor in random_heads(batch, tokens)]
        attended = attend(*leaves, each)
        assert attended.shape == (batch, tokens, 16)
        results.append((attended, *torch.autograd.grad(attended.square().sum(), leaves)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_packed_sequences_are_as_long_as_the_kernel_computes_at_once(
    calls: Calls,
) -> None:
    attend(*random_heads(27, 14), PACKED)
    assert [query.shape for query, *_ in calls] == [(3, 2, 126, 8)]


def test_a_batch_that_cuda_does_not_bear_is_split(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgi2v.attention, "LARGEST_BATCH", 3)
    split = attend(*random_heads(7, 5))
    assert [len(query) for query, *_ in calls] == [3, 3, 1]
    monkeypatch.undo()
    assert torch.equal(split, attend(*random_heads(7, 5)))


def test_all_frames_read_one_set_of_keys_of_frame_0(own_model: VideoModel, calls: Calls) -> None:
    guided_features(own_model.unet, inputs(), GuidanceConfig(layers=((3, 0),)))
    query, key, value = calls[-1]
    assert query.shape[::2] == (1, FRAMES * HEIGHT * WIDTH)
    assert key.shape[::2] == value.shape[::2] == (1, HEIGHT * WIDTH)
    assert 0 not in (*key.stride(), *value.stride())


def features_and_gradient(model: VideoModel) -> tuple[Tensor, Tensor]:
    """Guided features and a gradient, in the type of the weights."""
    weights = {name: value.to(model.unet.dtype) for name, value in inputs().items()}
    weights["sample"].requires_grad_(True)
    features = guided_features(model.unet, weights, model.checkpoint.guidance())
    return features.detach(), torch.autograd.grad(features.square().sum(), weights["sample"])[0]


def denoised(model: VideoModel) -> Tensor:
    sampler = SamplerConfig(height=64, width=128, num_frames=3, steps=2)
    noise = draw_noise(0, sampler, model.cell_px)
    conditioning = encode_image(model, moving_box(sampler)[0], noise.augmentation_1CHW, sampler)
    schedule = Schedule(model, sampler.steps)
    return denoise(model, schedule, conditioning, noise.initial_TChw * schedule.init_noise_sigma, sampler)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.whole
def test_a_trained_model_computes_the_same_with_every_choice_of_kernels() -> None:
    """In float32, to what its rounding allows."""
    model = load_model("embedded", device="cpu")
    features, gradient = features_and_gradient(model)
    latents = denoised(model)
    descriptions = {model.kernels}
    for config in VARIANTS:
        changed = use_kernels(model, config)
        descriptions.add(changed.kernels)
        own_features, own_gradient = features_and_gradient(changed)
        assert relative(own_features, features) < 2e-6, changed.kernels
        assert relative(own_gradient, gradient) < 2e-5, changed.kernels
        assert relative(denoised(changed), latents) < 1e-5, changed.kernels
    assert len(descriptions) == len(VARIANTS) + 1
    restored = use_kernels(model, KernelConfig())
    assert torch.equal(features_and_gradient(restored)[1], gradient)
    assert restored.kernels == "spatial torch, frame0 torch, temporal torch, conv2d"
    assert use_kernels(model, KernelConfig(cfg_passes=2)).kernels == f"{restored.kernels}, cfg in 2 passes"


@pytest.mark.whole
@pytest.mark.slow
def test_the_sums_are_the_same_with_every_choice_of_kernels(golden_checkpoint: Path) -> None:
    """In float64, because random weights turn float32's rounding into a tenth of the gradient."""
    model = load_model(str(golden_checkpoint), device="cpu")
    model.unet.double()
    expected = features_and_gradient(model)
    for config in VARIANTS:
        changed = use_kernels(model, config)
        for wanted, actual in zip(expected, features_and_gradient(changed), strict=True):
            assert relative(actual, wanted) < 1e-8, changed.kernels


def test_each_branch_of_classifier_free_guidance_gets_a_pass(own_model: VideoModel) -> None:
    batches: list[int] = []
    handle = own_model.unet.register_forward_pre_hook(
        lambda _, __, arguments: batches.append(len(arguments["sample"])), with_kwargs=True
    )
    try:
        for passes in (1, 2):
            denoised(use_kernels(own_model, KernelConfig(cfg_passes=passes)))
    finally:
        handle.remove()
    assert batches == [2, 2, 1, 1, 1, 1]


@pytest.mark.whole
@pytest.mark.slow
def test_chosen_kernels_compile_into_one_graph(golden_checkpoint: Path) -> None:
    kernels = KernelConfig(
        spatial_attention="math", temporal_attention="packed", temporal_convolution="matmul", channels_last=True
    )
    model = load_model(ModelConfig(source=str(golden_checkpoint), kernels=kernels), device="cpu")
    resnet, transformer = model.unet.down_blocks[0].resnets[0], model.unet.down_blocks[0].attentions[0]
    torch.manual_seed(0)
    hidden = torch.randn(FRAMES, resnet.spatial_res_block.in_channels, HEIGHT, WIDTH)
    indicator = torch.zeros(1, FRAMES)
    torch.compiler.reset()
    for block, condition in (
        (resnet, torch.randn(FRAMES, resnet.spatial_res_block.time_emb_proj.in_features)),
        (transformer, torch.randn(FRAMES, 1, model.unet.config.cross_attention_dim)),
    ):
        compiled = torch.compile(block.forward, backend="aot_eager", fullgraph=True, dynamic=False)
        arguments = hidden, condition, indicator
        expected, actual = block(*arguments), compiled(*arguments)
        if not isinstance(expected, Tensor):
            expected, actual = expected[0], actual[0]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_a_kernel_that_does_not_run_here_is_refused_by_name(own_model: VideoModel) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.kernels\.temporal_attention = efficient does not run on cpu in float32"
    ):
        use_kernels(own_model, KernelConfig(temporal_attention="efficient"))


def test_auto_takes_the_first_kernel_that_runs() -> None:
    assert first_that_runs(("efficient", "cudnn", "flash", "math"), {8, 64}, CPU, torch.float32) == "flash"
    assert first_that_runs(("efficient",), {8}, CPU, torch.float32) is None


def test_every_self_attention_has_a_chosen_kernel(own_model: VideoModel) -> None:
    processors = [processor for name, processor in own_model.unet.attn_processors.items() if ".attn1." in name]
    assert len(processors) == 2 * 16
    assert all(isinstance(processor, SelfAttention) for processor in processors)


def test_settings_name_the_kernels_and_are_read_back() -> None:
    config = ModelConfig.parse({"kernels": {"temporal_attention": "packed", "cfg_passes": 2}})
    assert config.kernels == KernelConfig(temporal_attention="packed", cfg_passes=2)
    assert ModelConfig.parse(config.plain()) == config
    with pytest.raises(ConfigError, match=r"model\.kernels\.spatial_attention must be one of auto, torch, flash"):
        ModelConfig.parse({"kernels": {"spatial_attention": "xformers"}})


@pytest.mark.gpu
def test_every_kernel_bears_more_sequences_than_a_grid_of_cuda() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    heads = [
        torch.randn(70_000, 14, 2, 64, device="cuda", dtype=torch.float16, generator=generator).transpose(1, 2)
        for _ in range(3)
    ]
    expected = attend(*heads, "math")
    for kernel in (TORCH, PACKED, "flash", "efficient", "cudnn"):
        if first_that_runs((kernel,), {64}, torch.device("cuda"), torch.float16) is not None:
            torch.testing.assert_close(attend(*heads, kernel), expected, rtol=0, atol=1e-2)


@pytest.mark.gpu
def test_a_trained_model_computes_the_same_with_every_choice_of_kernels_on_a_gpu() -> None:
    model = load_model("embedded", device="cuda", dtype="float32")
    tf32_off = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    on_gpu = {name: value.cuda() for name, value in inputs().items()}
    with tf32_off, torch.no_grad():
        expected = guided_features(model.unet, on_gpu, model.checkpoint.guidance())
        for config in (*VARIANTS, KernelConfig(spatial_attention="efficient"), KernelConfig(spatial_attention="cudnn")):
            try:
                changed = use_kernels(model, config)
            except ConfigError:
                continue  # not with float32, or not on this card
            features = guided_features(changed.unet, on_gpu, model.checkpoint.guidance())
            assert relative(features, expected) < 2e-5, changed.kernels
