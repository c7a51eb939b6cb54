"""Self-attention with a chosen kernel, and cross-attention to the image embedding, which is one token.

Axes: B batch, S places, C channels, D width of the image embedding; in self-attention N heads, D head channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""torch's kernels of attention, by the name that a setting gives them."""
TORCH, PACKED = "torch", "packed"
"""Two more kernels: whichever torch picks for each call, and several short sequences packed into a long one."""
LARGEST_BATCH = 65535
"""Sequences of one call. CUDA bears no larger grid, and some kernels put the batch on it."""
PACKED_TOKENS = 128
"""Tokens of a packed sequence: what a fused kernel computes at once, and pads a shorter sequence to."""


def attend(query_BNSD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor, kernel: str = TORCH) -> Tensor:
    """Scaled dot-product attention by a kernel of BACKENDS, TORCH or PACKED, heads joined: [B, S, N D]."""
    parts = (torch.split(tensor, LARGEST_BATCH) for tensor in (query_BNSD, key_BNSD, value_BNSD))
    attended = [_attend_at_once(query, key, value, kernel) for query, key, value in zip(*parts, strict=True)]
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _attend_at_once(query_BNSD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor, kernel: str) -> Tensor:
    if kernel == PACKED:
        return _attend_packed(query_BNSD, key_BNSD, value_BNSD)
    if kernel == TORCH:
        attended_BNSD = F.scaled_dot_product_attention(query_BNSD, key_BNSD, value_BNSD)
    else:
        with sdpa_kernel(BACKENDS[kernel]):
            attended_BNSD = F.scaled_dot_product_attention(query_BNSD, key_BNSD, value_BNSD)
    return attended_BNSD.transpose(1, 2).flatten(2)


def _attend_packed(query_BNSD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor) -> Tensor:
    """Attention of short sequences, as many as fit into PACKED_TOKENS side by side; none sees another's tokens."""
    batch, _, tokens, _ = query_BNSD.shape
    together = max(PACKED_TOKENS // tokens, 1)
    sequence = torch.arange(together * tokens, device=query_BNSD.device) // tokens
    is_own = sequence[:, None] == sequence

    def packed(tensor_BNSD: Tensor) -> Tensor:
        tensor_BSND = F.pad(tensor_BNSD.transpose(1, 2), (0, 0, 0, 0, 0, 0, 0, -batch % together))
        return tensor_BSND.reshape(-1, together * tokens, *tensor_BSND.shape[2:]).transpose(1, 2)

    # of torch's fused kernels on a GPU, this one takes a mask
    with sdpa_kernel(BACKENDS["efficient"]) if query_BNSD.is_cuda else nullcontext():
        attended_BNSD = F.scaled_dot_product_attention(
            packed(query_BNSD), packed(key_BNSD), packed(value_BNSD), attn_mask=is_own
        )
    attended_BSC = attended_BNSD.transpose(1, 2).flatten(2)
    return attended_BSC.reshape(-1, tokens, attended_BSC.shape[-1])[:batch]


class SelfAttention:
    """A diffusers attention processor for self-attention with a chosen kernel."""

    def __init__(self, kernel: str = TORCH, frame0_kernel: str = TORCH) -> None:
        """kernel, frame0_kernel: as `attend` takes them."""
        self.kernel = kernel
        self.frame0_kernel = frame0_kernel

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.project(attn, self.attended(attn, attn.to_q(hidden_states), hidden_states))

    def attended(self, attn: Any, query_BSC: Tensor, hidden_BSC: Tensor) -> Tensor:
        """The output before the output projection: [B, S, C]."""
        key, value = (_heads(attn, project(hidden_BSC)) for project in (attn.to_k, attn.to_v))
        return attend(_heads(attn, query_BSC), key, value, self.kernel)

    def attended_to_first(self, attn: Any, query_BSC: Tensor, hidden_BSC: Tensor) -> Tensor:
        """The same against the keys and values of the first of the batch, which are detached.

        The queries of the whole batch are one sequence, so that there is one set of keys.
        """
        query = _heads(attn, query_BSC.flatten(0, 1)[None])
        key, value = (_heads(attn, project(hidden_BSC[:1])).detach() for project in (attn.to_k, attn.to_v))
        return attend(query, key, value, self.frame0_kernel).view_as(query_BSC)

    def project(self, attn: Any, attended_BSC: Tensor) -> Tensor:
        """The output projection."""
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended_BSC)) / attn.rescale_output_factor
        return projected


def _heads(attn: Any, projected_BSC: Tensor) -> Tensor:
    return projected_BSC.view(*projected_BSC.shape[:2], attn.heads, -1).transpose(1, 2)


def self_attentions(unet: nn.Module, temporal: bool) -> Iterator[Any]:
    """The self-attention of every transformer block, over frames (temporal) or over places."""
    name = "temporal_transformer_blocks" if temporal else "transformer_blocks"
    for module in unet.modules():
        for block in getattr(module, name, ()):
            yield block.attn1


class OneTokenAttention(nn.Module):
    """Cross-attention to one token, without its queries and keys.

    The softmax of a single score is 1 for every query. So each place gets the token's projected value, and neither
    queries and keys nor their gradients need to be computed.
    """

    def __init__(self, attention: Any) -> None:
        """attention: the diffusers attention to replace; its weights are shared."""
        super().__init__()
        self.to_v = attention.to_v
        self.to_out = attention.to_out[0]  # to_out[1] is dropout, for training only
        self.rescale_output_factor = attention.rescale_output_factor

    def forward(self, _hidden_states_BSC: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        """Hidden states [B, S, C] and token [B, 1, D] -> [B, 1, C], the same for all S."""
        if encoder_hidden_states.shape[1] != 1:
            raise ValueError(f"expected 1 context token, got {encoder_hidden_states.shape[1]}")
        projected: Tensor = self.to_out(self.to_v(encoder_hidden_states)) / self.rescale_output_factor
        return projected


def replace_cross_attention(unet: nn.Module) -> None:
    """Replace the cross-attention of every transformer block in place, and remove the norm that fed its queries."""
    for block in list(unet.modules()):
        if getattr(block, "attn2", None) is not None:
            block.attn2 = OneTokenAttention(block.attn2)
            block.norm2 = nn.Identity()
