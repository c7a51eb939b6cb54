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

from manifests.access import stored_uri, without_secrets_in
from manifests.shards import FOLDER
from pipeline.config import (
    FIRST_FIT,
    FIRST_METRICS,
    CandidatesConfig,
    ExecutionConfig,
    MetricsConfig,
    RunConfig,
    differences,
)
from pipeline.output.storage import Storage
from sgi2v.config import GuidanceConfig, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError
from sgi2v.locations import local_path, split_protocol

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
SAME_STORE = {"s3a": "s3", "gcs": "gs", "abfss": "az", "abfs": "az"}
"""Protocols that are other names of the same store."""
WITH_QUERY = frozenset({"http", "https", "az", "abfs", "adl"})
"""Protocols whose URLs may carry a signature behind a question mark. In others it is a part of the key."""
MANIFEST_NAMES = ("manifest", "manifest_location")
"""Entries that name the manifest. They are found again by these names, so only real secrets are left out."""
REPLAYED_EXECUTION = ("threads_per_worker", "compile", "untrusted", "roots")
"""Execution settings that a replay takes over: they decide the last bits, and what images a row may name."""


class RunFile(BaseModel):
    """The entries of run.json that are read back; the others are for people."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    deciding: dict[str, Any]
    """The settings that decide the results, as `RunConfig.deciding` gives them."""
    manifest: str
    """Path or URL of the manifest of the last run, without secrets."""
    manifest_location: str | None = None
    """The one name of that location, as `location_of` gave it then; None in outputs of earlier versions."""
    manifest_sha256: str | None = None
    """Digest of that manifest's bytes; None while finished samples are there that its rows did not give."""
    rows: int
    """Rows of that manifest."""
    limit: int | None = None
    """Rows of that manifest that the last run was asked for: the first ones; None: all."""
    shard: str | None = None
    """Which part of that manifest these rows are, such as `0/3`; None: all of it."""
    other_samples: int
    """Finished samples that are not among those rows."""
    model: dict[str, Any]
    """The settings of the section `model`."""
    model_revision: str
    """Commit or digest of the weights."""
    execution: dict[str, Any] = {}
    """The settings of the section `run`, without secrets."""
    size_multiple: int = 64
    """Height and width that the model can make are multiples of this, pixels."""
    versions: dict[str, str] = {}
    """Versions of Python and of the installed packages that compute."""

    @property
    def asked_rows(self) -> int:
        """Rows that the last run was asked for."""
        return self.rows if self.limit is None else min(self.rows, self.limit)

    @property
    def limit_of(self) -> int | None:
        """Rows of that manifest, if the last run was asked for fewer."""
        return self.rows if self.asked_rows < self.rows else None

    def rows_left(self, finished: int) -> int:
        """Asked rows without a record. finished: samples of the output, those of other rows among them."""
        return max(self.asked_rows - max(finished - self.other_samples, 0), 0)

    @field_validator("deciding")
    @classmethod
    def _has_every_section(cls, deciding: dict[str, Any]) -> dict[str, Any]:
        missing = {"model", "sampler", "guidance", "metrics", "seed"} - deciding.keys()
        if missing:
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        return {"fit": FIRST_FIT, "metrics_version": FIRST_METRICS, **deciding}

    @property
    def is_guided(self) -> bool:
        """Whether the run steers its objects; False for plain SVD."""
        return self.deciding["guidance"] is not None

    def has_manifest(self, sha256: str) -> bool:
        """Whether the last run had a manifest with this digest."""
        return self.manifest_sha256 == sha256

    def is_of(self, manifest: str) -> bool:
        """Whether the manifest of the last run has this location, whatever is in it now."""
        return (self.manifest_location or location_of(self.manifest)) == location_of(manifest)


def location_of(manifest: str) -> str:
    """The one name of a manifest's location: a local file's real path, a URL without secrets and signatures."""
    if (local := local_path(manifest)) is not None:
        return str(local.resolve())
    protocol, rest = split_protocol(stored_uri(manifest))
    protocol = SAME_STORE.get(protocol, protocol)
    if protocol in WITH_QUERY:
        host, slash, path = rest.partition("?")[0].partition("/")
        rest = f"{host.rpartition('@')[2].lower() if protocol in {'http', 'https'} else host}{slash}{path}"
    return f"{protocol}://{rest}"


def describe_run(config: RunConfig, manifest_sha256: str, rows: int, limit: int | None = None) -> dict[str, Any]:
    """The content of run.json for a new output, before secrets are removed. rows: of the manifest; limit: to do."""
    return {
        "fingerprint": config.fingerprint,
        "deciding": config.deciding(),
        **_describe_manifest(config, manifest_sha256, rows, limit, other_samples=0),
        "model": config.model.plain(),
        "model_revision": config.model_revision,
        "size_multiple": config.size_multiple,
        "execution": config.execution.plain(),
        "versions": {"python": platform.python_version(), **_installed_versions()},
    }


def _describe_manifest(
    config: RunConfig, manifest_sha256: str | None, rows: int, limit: int | None, other_samples: int
) -> dict[str, Any]:
    return {
        "manifest": stored_uri(config.manifest),
        "manifest_location": location_of(config.manifest),
        "manifest_sha256": manifest_sha256,
        "rows": rows,
        "limit": limit,
        "shard": config.shard,
        "other_samples": other_samples,
    }


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def create_run_file(
    storage: Storage, config: RunConfig, manifest_sha256: str, rows: int, limit: int | None = None
) -> RunFile | None:
    """Write run.json if there is none, else check that its settings are these. rows: of the manifest; limit: to do.

    Returns the one that was there, or None. Raises ConfigError with every setting that differs.
    """
    run = check_output(storage, config)
    if run is None and not storage.put_new(RUN_FILE, _to_json(describe_run(config, manifest_sha256, rows, limit))):
        run = check_output(storage, config)  # another driver was faster
    return run


def update_run_file(
    storage: Storage,
    config: RunConfig,
    manifest_sha256: str | None,
    rows: int,
    other_samples: int,
    limit: int | None = None,
) -> None:
    """Replace the entries about the manifest: a run may continue an output with a manifest that has grown."""
    current = storage.get(RUN_FILE) or b"{}"
    described = _describe_manifest(config, manifest_sha256, rows, limit, other_samples)
    updated = _to_json({**json.loads(current), **described})
    if updated != current:
        storage.put(RUN_FILE, updated)


def write_merged_run_file(storage: Storage, shard: Storage, rows: int, other_samples: int) -> None:
    """Write the run.json of an output that shards are merged into.

    shard: any of them; their settings are equal. rows: of the whole manifest. Raises ConfigError if the output has
    other settings or is a shard itself.
    """
    of_shard, there = require_run(shard), read_run(storage)
    if there is not None and there.shard is not None:
        raise ConfigError(f"{storage.url} is the shard {there.shard} itself: give the output of the whole manifest")
    if there is not None and (lines := differences(there.deciding, of_shard.deciding)):
        raise ConfigError(
            f"{storage.url} has other settings than {shard.url}:\n" + "\n".join(f"  {each}" for each in lines)
        )
    content = json.loads(shard.get(RUN_FILE) or b"{}")
    merged = _to_json({**content, "shard": None, "limit": None, "rows": rows, "other_samples": other_samples})
    if storage.get(RUN_FILE) != merged:
        storage.put(RUN_FILE, merged)


def _to_json(content: dict[str, Any]) -> bytes:
    stored = {name: content[name] for name in MANIFEST_NAMES if name in content}  # they have no secrets already
    return json.dumps({**without_secrets_in(content), **stored}, indent=2, sort_keys=True).encode()


def check_output(storage: Storage, config: RunConfig) -> RunFile | None:
    """run.json, or None for a new output. Raises ConfigError if its settings would give other results."""
    run = read_run(storage)
    if run is None:
        return None
    if run.shard != config.shard:
        made = "a whole manifest" if run.shard is None else f"the shard {run.shard} of a manifest"
        asked = "without --shard" if run.shard is None else f"with --shard {run.shard}"
        raise ConfigError(f"{storage.url} has the results of {made}: run {asked}, or give another --output")
    lines = differences(run.deciding, config.deciding())
    if len(lines) == 1 and lines[0].startswith("metrics_version"):
        raise ConfigError(
            f"{storage.url} was measured by another version of this program, and the metrics of two versions are never "
            f"mixed:\n  {lines[0]}\nGive another --output, or go on with the version that made this one."
        )
    if lines:
        raise ConfigError(
            f"{storage.url} belongs to a run with other settings, which are never mixed:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGive the same settings, or another --output."
        )
    return run


def other_manifest(run: RunFile | None, manifest: str) -> str | None:
    """The manifest of the output's last run, if it has another location than this one. run: of run.json."""
    return None if run is None or run.is_of(manifest) else run.manifest


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
        shards = [name for name in storage.names(FOLDER) if name.isdigit()]
        hint = (
            f". It has shards: look at {storage.url}/{FOLDER}/{shards[0]}, or join them with `merge`" if shards else ""
        )
        raise ConfigError(f"there is no run at {storage.url}: it has no {RUN_FILE}{hint}")
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
        candidates=CandidatesConfig.parse(deciding.get("candidates", {})),
        baseline=deciding.get("baseline"),
        execution=ExecutionConfig.parse(execution),
        seed=deciding["seed"],
        fit=deciding["fit"],
        size_multiple=run.size_multiple,
    )
