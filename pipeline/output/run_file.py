"""run.json: what an output was made with, and the manifest that was run last."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

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
_RUN_FIELDS = {
    "deciding": dict,
    "manifest": str,
    "rows": int,
    "other_samples": int,
    "model": dict,
    "model_revision": str,
}
"""What is read back of run.json."""


def claim_output(storage: Storage, config: RunConfig, manifest_digest: str, rows: int) -> bool:
    """Write run.json, or check that the one there decides the same results; whether it names the same manifest.

    Raises ConfigError with every setting that differs.
    """
    run = check_output(storage, config)
    if run is None and not storage.put_new(RUN_FILE, _as_file(describe_run(config, manifest_digest, rows))):
        run = check_output(storage, config)
    return is_of_manifest(run, manifest_digest)


def is_of_manifest(run: dict[str, Any] | None, manifest_digest: str) -> bool:
    """Whether what run.json says was written for this very manifest; None is no run."""
    return run is not None and run.get("manifest_sha256") == manifest_digest


def renew_manifest(storage: Storage, config: RunConfig, manifest_digest: str, rows: int, others: int) -> None:
    """Bring what run.json says of the manifest up to date: an output goes on with a manifest that has grown.

    others: as in `Plan`.
    """
    there = storage.get(RUN_FILE) or b"{}"
    renewed = _as_file({**json.loads(there), **_describe_manifest(config, manifest_digest, rows, others)})
    if renewed != there:
        storage.put(RUN_FILE, renewed)


def _describe_manifest(config: RunConfig, manifest_digest: str, rows: int, others: int) -> dict[str, Any]:
    return {
        "manifest": config.manifest,
        "manifest_sha256": manifest_digest,
        "rows": rows,
        "other_samples": others,
    }


def _as_file(described: dict[str, Any]) -> bytes:
    return json.dumps(without_secrets_in(described), indent=2, sort_keys=True).encode()


def check_output(storage: Storage, config: RunConfig) -> dict[str, Any] | None:
    """What run.json says, None where there is none; ConfigError where that run decides other results."""
    run = read_run(storage)
    if run is None:
        return None
    lines = differences(run["deciding"], config.deciding())
    if lines:
        raise ConfigError(
            f"{storage.url} belongs to a run with other settings, which are never mixed:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGive the same settings, or another --output."
        )
    return run


def read_run(storage: Storage) -> dict[str, Any] | None:
    """What run.json says, or None where there is none. Raises ConfigError for another program's or version's."""
    data = storage.get(RUN_FILE)
    if data is None:
        return None
    try:
        run = dict(json.loads(data))
        for name, kind in _RUN_FIELDS.items():
            if not isinstance(run[name], kind):
                raise TypeError(name)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{storage.url}/{RUN_FILE} is not a run of this program: use another --output") from error
    return run


def require_run(storage: Storage) -> dict[str, Any]:
    """What run.json says. Raises ConfigError where there is none, or another program's."""
    run = read_run(storage)
    if run is None:
        raise ConfigError(f"there is no run at {storage.url}: it has no {RUN_FILE}")
    return run


def describe_run(config: RunConfig, manifest_digest: str, rows: int) -> dict[str, Any]:
    """What run.json says, once its secrets are left out."""
    return {
        "fingerprint": config.fingerprint,
        "deciding": config.deciding(),
        **_describe_manifest(config, manifest_digest, rows, others=0),
        "model": config.model.plain(),
        "model_revision": config.model_revision,
        "execution": config.execution.plain(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def recorded_config(storage: Storage) -> RunConfig:
    """The settings that run.json tells. Raises ConfigError where there is none."""
    run = require_run(storage)
    deciding: dict[str, Any] = run["deciding"]
    guidance = deciding["guidance"]
    return RunConfig(
        manifest=run["manifest"],
        output=storage.url,
        model=ModelConfig.parse(run["model"]),
        model_revision=run["model_revision"],
        sampler=SamplerConfig.parse(deciding["sampler"]),
        guidance=None if guidance is None else GuidanceConfig.parse(guidance),
        metrics=MetricsConfig.parse(deciding["metrics"]),
        execution=_recorded_execution(run.get("execution", {})),
        seed=deciding["seed"],
    )


def _recorded_execution(execution: dict[str, Any]) -> ExecutionConfig:
    """What a replay needs of it: the bits of arithmetic, and what the manifest's rows may name."""
    needed = ("threads_per_worker", "compile", "untrusted", "roots")
    kept = {name: execution[name] for name in needed if name in execution}
    return ExecutionConfig.parse(kept)
