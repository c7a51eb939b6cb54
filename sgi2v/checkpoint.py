"""Where a checkpoint comes from: a Hugging Face id, a folder, an fsspec URL, or the one that is embedded.

Nothing here loads a weight or imports torch. Only safetensors are ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgi2v.config import Feature, GuidanceConfig, ModelConfig, SamplerConfig, from_dict
from sgi2v.errors import ConfigError, ModelError

EMBEDDED = "embedded"
DEFAULTS_FILE = "sgi2v.json"
"""Optional file of a checkpoint: {"sampler": {...}, "guidance": {...}}, its own default settings."""

COMPONENTS: Mapping[str, tuple[str, str, str]] = {
    "unet": ("config.json", "diffusion_pytorch_model", "UNetSpatioTemporalConditionModel"),
    "vae": ("config.json", "diffusion_pytorch_model", "AutoencoderKLTemporalDecoder"),
    "image_encoder": ("config.json", "model", "CLIPVisionModelWithProjection"),
    "scheduler": ("scheduler_config.json", "", "EulerDiscreteScheduler"),
    "feature_extractor": ("preprocessor_config.json", "", ""),
}
"""Folder -> (its config file, the stem of its weights, its class)."""

_SMALL_FILE = 1 << 20
_EDGE = 1 << 16


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
        return from_dict(SamplerConfig, {**values, **overrides}, "sampler")

    def guidance(self, **overrides: Any) -> GuidanceConfig:
        """The checkpoint's own guidance settings."""
        return from_dict(GuidanceConfig, {**self.defaults.get("guidance", {}), **overrides}, "guidance")

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
        revision = _folder_digest(path)
    elif "://" in source:
        path, revision = _fetch_url(source, weights)
    elif Path(source).exists():
        path = Path(source)
        if not path.is_dir():
            raise ModelError(f"{source} is a file: give the folder that holds unet/, vae/ and image_encoder/")
        revision = _folder_digest(path)
    elif _is_hub_id(source):
        path, revision = _fetch_hub(config, weights)
    else:
        raise ModelError(f"there is no model folder {source}; a Hugging Face id has the form owner/name")
    configs = _read_configs(source, path, weights)
    return Checkpoint(source, revision, path, configs, _read_defaults(path))


def weight_files(path: Path, component: str, half: bool) -> tuple[str | None, list[Path]]:
    """The variant (`fp16` or None) to load and its safetensors files; an empty list where there are none.

    half: the weights will be held in 16 bits, so an fp16 variant is preferred.
    """
    stem = COMPONENTS[component][1]
    folder = path / component
    for variant in ("fp16", None) if half else (None, "fp16"):
        infix = f".{variant}" if variant else ""
        whole, sharded = f"{stem}{infix}.safetensors", f"{stem}{infix}-*-of-*.safetensors"
        files = sorted(folder.glob(whole)) or sorted(folder.glob(sharded))
        if files:
            return variant, files
    return None, []


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


def cache_root() -> Path:
    """Where downloaded checkpoints are kept: $SGI2V_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sgi2v-batch"
    return Path(os.environ.get("SGI2V_CACHE", default))


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


def _folder_digest(path: Path) -> str:
    """Digest of a folder's names, sizes and contents; of large files the edges, which hold the header."""
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.suffix in {".json", ".safetensors"}):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _SMALL_FILE:
                digest.update(stream.read())
            else:
                digest.update(stream.read(_EDGE))
                for eighth in range(1, 8):
                    stream.seek(size * eighth // 8)
                    digest.update(stream.read(_EDGE))
                stream.seek(size - _EDGE)
                digest.update(stream.read(_EDGE))
    return digest.hexdigest()[:40]


def _fetch_url(url: str, weights: bool) -> tuple[Path, str]:
    """Copy a checkpoint from any fsspec store into the node's cache, under a lock, whole or not at all."""
    import fsspec
    from filelock import FileLock

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        listing = filesystem.find(root, detail=True)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{url} cannot be read: {error}") from error
    wanted = {
        name[len(root) :].strip("/"): info for name, info in listing.items() if name.endswith((".json", ".safetensors"))
    }
    if not wanted:
        raise ModelError(f"{url} holds no checkpoint: no .json and no .safetensors file is below it")
    described = sorted((name, info["size"], str(info.get("ETag", ""))) for name, info in wanted.items())
    revision = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:40]
    target = cache_root() / "models" / revision
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        for name, info in wanted.items():
            file = target / name
            if (not weights and not name.endswith(".json")) or (file.exists() and file.stat().st_size == info["size"]):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(file.name + ".partial")
            filesystem.get_file(info["name"], str(partial))
            partial.replace(file)
    return target, revision


def _fetch_hub(config: ModelConfig, weights: bool) -> tuple[Path, str]:
    """Download a Hugging Face snapshot, or find it in the local cache; the fp16 weights alone where they serve."""
    from filelock import FileLock
    from huggingface_hub import snapshot_download

    lock = cache_root() / "models" / (config.source.replace("/", "--") + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    patterns = [f"{component}/*.json" for component in COMPONENTS] + [DEFAULTS_FILE]
    try:
        with FileLock(lock):
            patterns += _hub_weights(config) if weights else []
            snapshot = snapshot_download(config.source, revision=config.revision, allow_patterns=patterns)
    except Exception as error:  # the hub's own errors, its HTTP library's, the disk's
        raise ModelError(
            f"{config.source} could not be fetched from Hugging Face: {error}\n"
            "Check the name, the revision and the network; a gated model needs its licence accepted and HF_TOKEN set. "
            f"--model also takes a local folder, a URL, or `{EMBEDDED}`, the small model that is inside the package."
        ) from error
    return Path(snapshot), Path(snapshot).name


def _hub_weights(config: ModelConfig) -> list[str]:
    """The weight files to download: one variant of each component; whatever is cached where there is no network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folders = [f"{component}/" for component in COMPONENTS]
    try:
        siblings = HfApi().model_info(config.source, revision=config.revision).siblings or []
    except HfHubHTTPError:
        raise
    except Exception:  # the HTTP library's own: no network
        return [f"{folder}*.safetensors" for folder in folders]
    wanted: list[str] = []
    for folder in folders:
        names = [each.rfilename for each in siblings if each.rfilename.startswith(folder)]
        files = [name for name in names if name.endswith(".safetensors")]
        half = [name for name in files if ".fp16" in name]
        wanted += half if half and config.dtype != "float32" else files
    return wanted
