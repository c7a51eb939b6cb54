"""Open a checkpoint from a Hugging Face id, a folder, an fsspec URL, or the package itself.

This module loads no weights and imports no torch. Weights are only ever read from safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgi2v.config import Feature, GuidanceConfig, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError, ModelError
from sgi2v.fetch import (
    COMPONENTS,
    DEFAULTS_FILE,
    EMBEDDED,
    fetch_url,
    folder_digest,
    model_hint,
    open_folder,
    weight_files,
)
from sgi2v.hub import fetch_hub


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine: its configuration, and its weights unless it was opened without them."""

    source: str
    """Where it comes from, as the user wrote it."""
    revision: str
    """Commit of a Hugging Face id, in some cases with a digest of the weights; otherwise a digest of the files."""
    path: Path
    """Local folder in diffusers layout."""
    configs: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Component -> its configuration file."""
    defaults: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Section (`sampler`, `guidance`) -> settings that replace this project's defaults."""
    note: str | None = None
    """What the user should know about where the files come from."""

    @property
    def cell_px(self) -> int:
        """Pixels per latent cell and side: 8 for SVD."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this: 64 for SVD."""
        return int(self.cell_px * 2 ** (len(self.configs["unet"]["block_out_channels"]) - 1))

    def sampler(self, **overrides: Any) -> SamplerConfig:
        """The checkpoint's own sampler settings."""
        values = {"num_frames": self.configs["unet"].get("num_frames", 14), **self.defaults.get("sampler", {})}
        return SamplerConfig.parse({**values, **overrides})

    def guidance(self, **overrides: Any) -> GuidanceConfig:
        """The checkpoint's own guidance settings."""
        return GuidanceConfig.parse({**self.defaults.get("guidance", {}), **overrides})

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError for a frame size that the model cannot make; the message names the nearest valid size."""
        multiple = self.size_multiple
        nearest = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
        if nearest != [height, width]:
            raise ConfigError(
                f"{self.source} cannot make frames of {height} x {width} (height x width): both must be multiples "
                f"of {multiple}; the nearest valid size is {nearest[0]} x {nearest[1]}"
            )


def open_checkpoint(config: ModelConfig, weights: bool = True) -> Checkpoint:
    """Fetch a checkpoint's files, once per node, and check that none is missing.

    weights: False fetches only the configuration. Raises ModelError, whose message names the missing files.
    """
    source, note = config.source, None
    if config.revision is not None and (source == EMBEDDED or "://" in source or Path(source).exists()):
        message = f"a revision can be pinned for a Hugging Face id only, and {source} is not one"
        raise ModelError(f"{message}: leave the revision out")
    if source == EMBEDDED:
        path = Path(__file__).parent / "tiny" / "checkpoint"
        revision = folder_digest(path)
    elif "://" in source:
        path, revision = fetch_url(config, weights)
    elif Path(source).exists():
        path, revision = open_folder(source, Path(source))
    elif _is_hub_id(source):
        fetched = fetch_hub(config, weights)
        path, revision, note = fetched.path, fetched.revision, fetched.note
    else:
        raise ModelError(
            f"there is no model folder {source}{model_hint(source)}: "
            "give a folder, a URL or a Hugging Face id (owner/name)"
        )
    configs = _read_configs(source, path, weights)
    return Checkpoint(source, revision, path, configs, _read_defaults(path), note)


def pinned(config: ModelConfig, revision: str) -> ModelConfig:
    """The settings that open this revision of a Hugging Face id, and ask the Hub only if the local cache lacks it.

    Other sources have no revision to ask for: their settings are unchanged.
    """
    is_hub = config.source != EMBEDDED and not Path(config.source).exists() and _is_hub_id(config.source)
    return config.replace(revision=revision.partition("+")[0]) if is_hub else config


def available_layers(unet_config: Mapping[str, Any], feature: Feature) -> tuple[tuple[int, int], ...]:
    """The (up block, index) pairs that guidance by `feature` can use in a U-Net of this config."""
    block_types = unet_config["up_block_types"]
    per_block = unet_config["layers_per_block"]
    counts = per_block if isinstance(per_block, (list, tuple)) else [per_block] * len(block_types)
    return tuple(
        (block, index)
        for block, (block_type, layers) in enumerate(zip(block_types, reversed(counts), strict=True))
        if feature is Feature.UPSAMPLE_BLOCK or "CrossAttn" in block_type
        for index in range(layers + 1)
    )


def check_layers(unet_config: Mapping[str, Any], guidance: GuidanceConfig) -> None:
    """Raise ConfigError for a guided layer that a U-Net of this config does not have."""
    available = available_layers(unet_config, guidance.feature)
    for layer in guidance.layers:
        if layer not in available:
            names = ", ".join(str([block, index]) for block, index in available)
            raise ConfigError(
                f"this model has no {guidance.feature} at layer {list(layer)}: choose guidance.layers from {names}"
            )


def _is_hub_id(source: str) -> bool:
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and not source.startswith((".", "/", "~"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value


def _read_defaults(path: Path) -> dict[str, dict[str, Any]]:
    file = path / DEFAULTS_FILE
    return _read_json(file) if file.exists() else {}


def _read_configs(source: str, path: Path, weights: bool) -> dict[str, dict[str, Any]]:
    missing: list[str] = []
    configs: dict[str, dict[str, Any]] = {}
    for component, (config_name, stem, class_name) in COMPONENTS.items():
        file = path / component / config_name
        if not file.exists():
            missing.append(f"{component}/{config_name}")
            continue
        configs[component] = _read_json(file)
        own_class = configs[component].get("_class_name") or (configs[component].get("architectures") or [""])[0]
        if class_name and own_class != class_name:
            raise ModelError(
                f"{component} of {source} is {own_class or 'of an unnamed class'}, not {class_name}: "
                "use a checkpoint of SVD's architecture"
            )
        if stem and weights and not weight_files(path, component, half=False)[1]:
            pickled = any((path / component).glob("*.bin")) or any((path / component).glob("*.ckpt"))
            advice = " (only pickled weights are there, which are never read: convert them to safetensors)"
            missing.append(f"{component}/{stem}.safetensors" + (advice if pickled else ""))
    if missing:
        raise ModelError(f"{source} is not a complete checkpoint in diffusers layout: it lacks {', '.join(missing)}")
    return configs
