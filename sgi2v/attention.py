"""Cross-attention to the image embedding, which is one token.

Axes: B batch, S places, C channels, D width of the image embedding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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
