"""Where a sample's boxes come from: one file per proposer. docs/contributing.md says how to add one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from manifests.boxes.proposer import BoxProposer
from sgi2v.errors import ConfigError
from sgi2v.wording import did_you_mean

PROPOSERS: Mapping[str, str] = {
    "salient": "manifests.boxes.salient:Salient",
    "masks": "manifests.boxes.masks:Masks",
    "detections": "manifests.boxes.detections:Detections",
    "grid": "manifests.boxes.grid:Grid",
    "whole": "manifests.boxes.whole:Whole",
}
"""Every proposer's class by its name. It is imported when it is used, because OpenCV is slow to import."""


def load_proposer(name: str, **options: object) -> BoxProposer:
    """Make the proposer of that name. Raises ConfigError for another name, and for options that it cannot use."""
    if name not in PROPOSERS:
        known = ", ".join(PROPOSERS)
        raise ConfigError(f"there is no box proposer {name!r}{did_you_mean(name, PROPOSERS)}: use one of {known}")
    module, _, class_name = PROPOSERS[name].partition(":")
    return cast("BoxProposer", getattr(import_module(module), class_name)(**options))
