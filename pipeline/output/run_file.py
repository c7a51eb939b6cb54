"""run.json: the settings an output was made with, and the manifest of its last run.

The only file that reads or writes run.json. See docs/output-format.md, run.json.
"""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from manifests.access import without_secrets_in
from pipeline.config import ExecutionConfig, MetricsConfig, RunConfig, differences
from pipeline.output.storage import Storage
from sgi2v.config import GuidanceConfig, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError

RUN_FILE = "run.json"
PACKAGES = (
    "sgi2v-batch",
    "torch",
    "diffusers",
    "transformers",
    "ray",
    "pyarrow",
    "av",
    "decord",
)
"""Packages whose versions are recorded, those that are installed."""
REPLAYED_EXECUTION = ("threads_per_worker", "compile", "untrusted", "roots")
"""Execution settings that a replay takes over: they decide the last bits, and what images a row may name."""


class RunFile(BaseModel):
    """The entries of run.json that are read back; the others are for people."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    deciding: dict[str, Any]
    """The settings that decide the results, as `RunConfig.deciding` gives them."""
    manifest: str
    """Path or URL of the manifest of the last run, without secrets."""
    manifest_sha256: str | None = None
    """Digest of that manifest's bytes."""
    rows: int
    """Rows of that manifest."""
    other_samples: int
    """Finished samples that are not in that manifest."""
    model: dict[str, Any]
    """The settings of the section `model`."""
    model_revision: str
    """Commit or digest of the weights."""
    execution: dict[str, Any] = {}
    """The settings of the section `run`, without secrets."""

    @field_validator("deciding")
    @classmethod
    def _has_every_section(cls, deciding: dict[str, Any]) -> dict[str, Any]:
        missing = {"model", "sampler", "guidance", "metrics", "seed"} - deciding.keys()
        if missing:
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        return deciding

    @property
    def is_guided(self) -> bool:
        """Whether the run steers its objects; False for plain SVD."""
        return self.deciding["guidance"] is not None

    def has_manifest(self, sha256: str) -> bool:
        """Whether the last run had a manifest with this digest."""
        return self.manifest_sha256 == sha256


def describe_run(config: RunConfig, manifest_sha256: str, rows: int) -> dict[str, Any]:
    """The content of run.json for a new output, before secrets are removed. rows: of the manifest."""
    return {
        "fingerprint": config.fingerprint,
        "deciding": config.deciding(),
        **_describe_manifest(config, manifest_sha256, rows, other_samples=0),
        "model": config.model.plain(),
        "model_revision": config.model_revision,
        "execution": config.execution.plain(),
        "versions": {"python": platform.python_version(), **_installed_versions()},
    }


def _describe_manifest(config: RunConfig, manifest_sha256: str, rows: int, other_samples: int) -> dict[str, Any]:
    return {
        "manifest": config.manifest,
        "manifest_sha256": manifest_sha256,
        "rows": rows,
        "other_samples": other_samples,
    }


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def create_run_file(storage: Storage, config: RunConfig, manifest_sha256: str, rows: int) -> bool:
    """Write run.json if there is none, else check that its settings are these. rows: of the manifest.

    Returns whether there was one that has the same manifest. Raises ConfigError with every setting that differs.
    """
    run = check_output(storage, config)
    if run is None and not storage.put_new(RUN_FILE, _to_json(describe_run(config, manifest_sha256, rows))):
        run = check_output(storage, config)  # another driver was faster
    return run is not None and run.has_manifest(manifest_sha256)


def update_run_file(storage: Storage, config: RunConfig, manifest_sha256: str, rows: int, other_samples: int) -> None:
    """Replace the entries about the manifest: a run may continue an output with a manifest that has grown."""
    current = storage.get(RUN_FILE) or b"{}"
    updated = _to_json({**json.loads(current), **_describe_manifest(config, manifest_sha256, rows, other_samples)})
    if updated != current:
        storage.put(RUN_FILE, updated)


def _to_json(content: dict[str, Any]) -> bytes:
    return json.dumps(without_secrets_in(content), indent=2, sort_keys=True).encode()


def check_output(storage: Storage, config: RunConfig) -> RunFile | None:
    """run.json, or None for a new output. Raises ConfigError if its settings would give other results."""
    run = read_run(storage)
    if run is None:
        return None
    lines = differences(run.deciding, config.deciding())
    if lines:
        raise ConfigError(
            f"{storage.url} belongs to a run with other settings, which are never mixed:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGive the same settings, or another --output."
        )
    return run


def read_run(storage: Storage) -> RunFile | None:
    """run.json, or None if there is none. Raises ConfigError for a file of another program or version."""
    data = storage.get(RUN_FILE)
    if data is None:
        return None
    try:
        return RunFile.model_validate_json(data)
    except ValidationError as error:
        raise ConfigError(
            f"{storage.url}/{RUN_FILE} is not a run of this program: use another --output, or restore the file from "
            "the line `run_started` in logs/, which repeats its content"
        ) from error


def require_run(storage: Storage) -> RunFile:
    """run.json. Raises ConfigError if there is none, or one of another program."""
    run = read_run(storage)
    if run is None:
        raise ConfigError(f"there is no run at {storage.url}: it has no {RUN_FILE}")
    return run


def recorded_config(storage: Storage) -> RunConfig:
    """The settings that run.json records, for a replay. Raises ConfigError if there is no run.json."""
    run = require_run(storage)
    deciding, guidance = run.deciding, run.deciding["guidance"]
    execution = {name: run.execution[name] for name in REPLAYED_EXECUTION if name in run.execution}
    return RunConfig(
        manifest=run.manifest,
        output=storage.url,
        model=ModelConfig.parse(run.model),
        model_revision=run.model_revision,
        sampler=SamplerConfig.parse(deciding["sampler"]),
        guidance=None if guidance is None else GuidanceConfig.parse(guidance),
        metrics=MetricsConfig.parse(deciding["metrics"]),
        execution=ExecutionConfig.parse(execution),
        seed=deciding["seed"],
    )
