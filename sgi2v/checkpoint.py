"""Where a checkpoint comes from: a Hugging Face id, a folder, an fsspec URL, or the one that is embedded.

Nothing here loads a weight or imports torch. Only safetensors are ever read.
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
    fetch_hub,
    fetch_url,
    folder_digest,
    open_folder,
    weight_files,
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration is at hand, and whose weights are too if `path` was opened with them."""

    source: str
    """As the user named it."""
    revision: str
    """Commit of a Hugging Face id; otherwise a digest of the files."""
    path: Path
    """Local folder in diffusers layout."""
    configs: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Configuration of each component."""
    defaults: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Its own settings over ours, by section."""

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
        """Raise ConfigError, naming the nearest valid size, for one that the model cannot do."""
        multiple = self.size_multiple
        nearest = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
        if nearest != [height, width]:
            raise ConfigError(
                f"{self.source} cannot make frames of {height} x {width} (height x width): both must be multiples "
                f"of {multiple}; the nearest valid size is {nearest[0]} x {nearest[1]}"
            )


def open_checkpoint(config: ModelConfig, weights: bool = True) -> Checkpoint:
    """Bring a checkpoint's files to this machine, once per node, and check that they are all there.

    weights=False fetches only the configuration. Raises ModelError that names what is missing.
    """
    source = config.source
    if config.revision is not None and (source == EMBEDDED or "://" in source or Path(source).exists()):
        raise ModelError(f"a revision can be pinned for a Hugging Face id only, and {source} is not one")
    if source == EMBEDDED:
        path = Path(__file__).parent / "tiny" / "checkpoint"
        revision = folder_digest(path)
    elif "://" in source:
        path, revision = fetch_url(config, weights)
    elif Path(source).exists():
        path, revision = open_folder(source, Path(source))
    elif _is_hub_id(source):
        path, revision = fetch_hub(config, weights)
    else:
        raise ModelError(f"there is no model folder {source}; a Hugging Face id has the form owner/name")
    configs = _read_configs(source, path, weights)
    return Checkpoint(source, revision, path, configs, _read_defaults(path))


def available_layers(unet_config: Mapping[str, Any], feature: Feature) -> tuple[tuple[int, int], ...]:
    """Every (up block, index) that can be guided by `feature` in a U-Net of this config."""
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
    known = available_layers(unet_config, guidance.feature)
    for layer in guidance.layers:
        if layer not in known:
            names = ", ".join(str(list(each)) for each in known)
            raise ConfigError(
                f"this model has no {guidance.feature} at layer {list(layer)}: guidance.layers may be {names}"
            )


def _is_hub_id(source: str) -> bool:
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and not source.startswith((".", "/", "~"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
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
        found = configs[component].get("_class_name") or (configs[component].get("architectures") or [""])[0]
        if class_name and found != class_name:
            raise ModelError(f"{source}: {component} is a {found or 'nameless model'}, but SVD's is a {class_name}")
        if stem and weights and not weight_files(path, component, half=False)[1]:
            pickled = any((path / component).glob("*.bin")) or any((path / component).glob("*.ckpt"))
            why = " (only pickled weights are there, which are never read: convert them to safetensors)"
            missing.append(f"{component}/{stem}.safetensors" + (why if pickled else ""))
    if missing:
        raise ModelError(f"{source} is not a complete checkpoint in diffusers layout: it lacks {', '.join(missing)}")
    return configs
