"""One 16-bit type for all workers of an output, whatever their cards are.

`dtype = auto` depends on the card, and a cluster may have several kinds. Samples of one output must not differ by the
node that they were made on, so the first worker's type is every worker's, and a finished sample's comes before that.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sgi2v.config import DType, ModelConfig
from sgi2v.errors import ModelError

if TYPE_CHECKING:
    from pipeline.flow.attempts import LedgerClient


def with_agreed_dtype(model: ModelConfig, device: str, ledger: LedgerClient | None) -> ModelConfig:
    """The settings of the model with the type that the workers of this run have agreed on.

    Raises ModelError for a card that does not compute in that type.
    """
    if model.dtype != "auto" or device != "cuda" or ledger is None:
        return model
    import torch

    from sgi2v.model import resolve_dtype

    own = str(resolve_dtype("auto", torch.device(device))).removeprefix("torch.")
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return model.replace(dtype=agreed_dtype(own, has_bfloat16, torch.cuda.get_device_name(), ledger))


def agreed_dtype(own: DType | str, has_bfloat16: bool, card: str, ledger: LedgerClient) -> str:
    """The type that all workers take. own: what this card would take alone."""
    agreed = ledger.agree_dtype(own)
    if agreed == "bfloat16" and not has_bfloat16:
        raise ModelError(
            f"the samples of this output are made in bfloat16, in which {card} on {socket.gethostname()} does not "
            "compute: choose the other cards with --accelerator-type, or give --dtype float16 and another --output"
        )
    return agreed
