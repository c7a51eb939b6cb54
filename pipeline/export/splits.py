"""Splits of an export: which samples are for training and which are held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from sgi2v.errors import ConfigError

DEFAULT_SPLITS = "train=0.9,test=0.1"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_OTHER_FOLDERS = {"all", "index", "lease", "annotations"}
"""What `datasets` or the export itself calls something else."""


def parse_splits(text: str) -> dict[str, float]:
    """`train=0.9,test=0.1` as shares that sum to 1. Raises ConfigError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (word.strip() for word in part.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if _NAME.fullmatch(name) is None or name in _OTHER_FOLDERS or name in shares or not 0 < value < float("inf"):
            raise ConfigError(
                f"--splits {text!r} cannot be used: give names with shares, such as {DEFAULT_SPLITS}. A name has small "
                f"letters, digits and `_`, and is none of {', '.join(sorted(_OTHER_FOLDERS))}"
            )
        shares[name] = value
    total = sum(shares.values())
    return {name: value / total for name, value in shares.items()}


def split_of(image: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of all samples of an image. image: its digest, or another name that all of them share.

    The image and the seed alone decide it, so that a sample which is added later joins the others of its image.
    """
    digest = hashlib.sha256(f"{seed}:{image}".encode()).digest()
    place, end = int.from_bytes(digest[:8]) / 2**64, 0.0
    for name, share in shares.items():
        end += share
        if place < end:
            return name
    return list(shares)[-1]
