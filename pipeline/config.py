"""What one run is: its inputs, its settings, and what of them decides the results.

Order of settings, the later wins: the checkpoint's own, the preset, the TOML file, the command line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.access import Access
from sgi2v.checkpoint import Checkpoint, check_layers, open_checkpoint
from sgi2v.config import GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig, apply_preset, from_dict
from sgi2v.errors import ConfigError
from sgi2v.tracking import TRACKERS, load_tracker

MEMORY = ("auto", *MemoryTier)
SECTIONS = ("model", "sampler", "guidance", "metrics", "run")


@dataclass(frozen=True)
class MetricsConfig:
    """How motion fidelity is measured."""

    tracker: str = "lucas-kanade"
    """Name of the point tracker."""

    def __post_init__(self) -> None:
        if self.tracker not in TRACKERS:
            raise ConfigError(f"metrics.tracker must be one of {', '.join(sorted(TRACKERS))}, not {self.tracker!r}")


@dataclass(frozen=True)
class ExecutionConfig:
    """Where and how wide a run goes; none of it decides the results, down to the last bits of arithmetic."""

    workers: int | None = None
    """Model-holding actors; None: one per GPU, or per CPU where there is no GPU."""
    gpus_per_worker: float | None = None
    """GPUs that each worker takes; None: 1 where the cluster has one, else 0."""
    threads_per_worker: int = 1
    """CPU threads of a worker without a GPU; the same number gives the same bits."""
    sample_timeout_s: float = 3600.0
    """How long one stage may take over one sample before its worker is ended and the sample started again, seconds."""
    memory: str = "auto"
    """Memory tier of the samples, `high`, `medium` or `low`; auto: the first that the device has room for, and a lower
    one after a sample that ran out of memory."""
    compile: bool = False
    """Whether a worker compiles its U-Net's blocks before its first sample."""
    untrusted: bool = False
    """Whether images must lie below the manifest's folder or one of `roots`."""
    roots: tuple[str, ...] = ()
    """Folders and URL prefixes that an untrusted manifest may name as well."""
    address: str | None = None
    """Ray cluster to attach to; None starts Ray on this machine."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"run.workers must be 1 or more, not {self.workers}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"run.gpus_per_worker must not be negative, not {self.gpus_per_worker}")
        if self.memory not in MEMORY:
            raise ConfigError(f"run.memory must be one of {', '.join(MEMORY)}, not {self.memory!r}")
        object.__setattr__(self, "roots", tuple(absolute(str(root)) for root in self.roots))
        if self.roots and not self.untrusted:
            raise ConfigError("run.roots says nothing without run.untrusted: give --untrusted, or no --root")
        if not self.sample_timeout_s > 0:
            raise ConfigError(f"run.sample_timeout_s must be positive, not {self.sample_timeout_s}")
        if self.threads_per_worker < 1:
            raise ConfigError(f"run.threads_per_worker must be 1 or more, not {self.threads_per_worker}")

    @property
    def access(self) -> Access:
        """Where images may lie."""
        return Access(self.roots if self.untrusted else None)


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is made of."""

    manifest: str
    """Path or URL of the manifest."""
    output: str
    """Folder or URL that the results go to."""
    model: ModelConfig
    model_revision: str
    """Commit or digest of the weights."""
    sampler: SamplerConfig
    guidance: GuidanceConfig | None
    """None generates without control."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    seed: int = 817
    """Base of the seeds of rows that bring none."""

    def deciding(self) -> dict[str, Any]:
        """What decides the results, as plain values: two runs may share an output only if it is equal."""
        return {
            "model": {"revision": self.model_revision, "dtype": self.model.dtype},
            "sampler": dataclasses.asdict(self.sampler),
            "guidance": None if self.guidance is None else dataclasses.asdict(self.guidance),
            "metrics": dataclasses.asdict(self.metrics),
            "seed": self.seed,
        }

    @property
    def fingerprint(self) -> str:
        """Digest of what decides the results."""
        return hashlib.sha256(canonical_json(self.deciding()).encode()).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, tuples as lists."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every setting that differs between two plain configurations, one line each."""
    lines: list[str] = []
    for key in sorted({*there, *here}):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif canonical_json(old) != canonical_json(new):
            lines.append(f"{prefix}{key}: {canonical_json(old)} there, {canonical_json(new)} here")
    return lines


def read_toml(path: str) -> dict[str, dict[str, Any]]:
    """Read a settings file, local or by URL. Raises ConfigError that names what is unknown."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as stream:
            settings = tomllib.loads(stream.read().decode())
    except Exception as error:  # whatever a store's client raises
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    for section, values in settings.items():
        if section in SECTIONS and not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} must be a section, [{section}], not {values!r}")
        if section not in SECTIONS:
            raise ConfigError(f"{path}: unknown section [{section}]: known are {', '.join(SECTIONS)}")
    return settings


def default_output(manifest: str) -> str:
    """`runs/<manifest name>`, on this machine."""
    return f"runs/{Path(manifest.rstrip('/')).stem}"


def cluster_address(execution: ExecutionConfig) -> str | None:
    """The Ray cluster to attach to: the one named, or that of the job that this process belongs to."""
    return execution.address or os.environ.get("RAY_ADDRESS")


def absolute(location: str) -> str:
    """A local path made absolute, for processes that start elsewhere; a URL as it is."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def resolve(
    manifest: str,
    output: str | None,
    toml: Mapping[str, Mapping[str, Any]],
    flags: Mapping[str, Mapping[str, Any]],
    unguided: bool = False,
    weights: bool = True,
) -> tuple[RunConfig, Checkpoint]:
    """Settle every setting, and open the checkpoint far enough to know that the model can do it.

    toml, flags: values by section, flags without those that were not given. weights: fetch them too, where this
    machine will need them. Raises ConfigError or ModelError.
    """

    def section(name: str) -> dict[str, Any]:
        return {**toml.get(name, {}), **flags.get(name, {})}

    run = section("run")
    seed, preset = run.pop("seed", RunConfig.seed), run.pop("preset", "paper")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"run.seed must be int, not {seed!r}")
    model = from_dict(ModelConfig, section("model"), "model")
    execution = from_dict(ExecutionConfig, run, "run")
    checkpoint = open_checkpoint(model, weights=weights and not cluster_address(execution))
    sampler, guidance = apply_preset(preset, checkpoint.sampler(), checkpoint.guidance())
    sampler = from_dict(SamplerConfig, {**dataclasses.asdict(sampler), **section("sampler")}, "sampler")
    guidance = from_dict(GuidanceConfig, {**dataclasses.asdict(guidance), **section("guidance")}, "guidance")
    checkpoint.check_size(sampler.height, sampler.width)
    guidance.step_indices(sampler.steps)
    check_layers(checkpoint.configs["unet"], guidance)
    metrics = from_dict(MetricsConfig, section("metrics"), "metrics")
    load_tracker(metrics.tracker)
    config = RunConfig(
        manifest=absolute(manifest),
        output=absolute(output or default_output(manifest)),
        model=model,
        model_revision=checkpoint.revision,
        sampler=sampler,
        guidance=None if unguided else guidance,
        metrics=metrics,
        execution=execution,
        seed=seed,
    )
    return config, checkpoint


def sample_seed(sample_id: str, base: int) -> int:
    """A 63-bit seed for a row that brings none: the same wherever and whenever the row is made."""
    return int.from_bytes(hashlib.sha256(f"{base}:{sample_id}".encode()).digest()[:8], "big") >> 1
