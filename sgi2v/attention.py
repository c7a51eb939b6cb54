"""Cross-attention to the image's embedding, which is a single token: what is left of it once that is known."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class OneTokenAttention(nn.Module):
    """Cross-attention whose keys and values are one token: the softmax of one score is 1, whatever the query is.

    So each place gets the token's value, projected, and neither queries and keys nor their gradients are computed.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.to_v = attention.to_v
        self.to_out = attention.to_out[0]  # the other is a dropout of the training's
        self.rescale_output_factor = attention.rescale_output_factor

    def forward(self, _hidden_states_BSC: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        """Hidden states [B, S, C] and token [B, 1, D] -> [B, 1, C], the same for all S."""
        if encoder_hidden_states.shape[1] != 1:
            raise ValueError(f"one token of context is due, not {encoder_hidden_states.shape[1]}")
        projected: Tensor = self.to_out(self.to_v(encoder_hidden_states)) / self.rescale_output_factor
        return projected


def replace_cross_attention(unet: nn.Module) -> None:
    """Of every transformer block inside, in place, with the normalisation that only its queries needed."""
    for block in list(unet.modules()):
        if getattr(block, "attn2", None) is not None:
            block.attn2 = OneTokenAttention(block.attn2)
            block.norm2 = nn.Identity()
