"""What is left to do: the manifest minus what is committed; and whose output it is."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.access import without_secrets_in
from manifests.schema import MANIFEST_SCHEMA, row_digest, rows_of
from pipeline.catalog import Catalog
from pipeline.config import RunConfig, differences
from pipeline.storage import Storage
from sgi2v.config import auto_dtype
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
DIGESTED_AT_ONCE = 5000
"""Rows as Python objects: what is held in memory."""
_RUN_FIELDS = {
    "deciding": dict,
    "manifest": str,
    "rows": int,
    "other_samples": int,
    "model": dict,
    "model_revision": str,
}
"""What is read back of run.json."""


@dataclass(frozen=True)
class Plan:
    """The rows to do, and how the others stand."""

    todo: pa.Table
    """The known columns of manifest rows, with `_attempts`: how often they have been finished before."""
    total: int
    """Rows of the manifest, within the limit."""
    catalog: Catalog
    """The finished samples of the output; what is tried again stands there as failed until it is finished again."""
    others: int
    """Finished samples of the output that the manifest does not hold: those of another manifest."""

    @property
    def done(self) -> int:
        """Rows of the manifest that are finished."""
        return self.total - int(self.todo.num_rows)


def make_plan(
    manifest: pa.Table, storage: Storage, retry_failed: bool, limit: int | None, unchanged: bool = False
) -> Plan:
    """Subtract the finished samples. unchanged: the manifest is the one that has been planned last.

    Raises ConfigError where a finished row has since changed.
    """
    # what rides along stays here: no sample is made of it
    rows = manifest.select(MANIFEST_SCHEMA.names)
    catalog = Catalog(storage)
    index = catalog.index
    places = pc.index_in(rows["sample_id"], value_set=index["sample_id"].combine_chunks())
    again = pc.equal(index["status"], "failed").take(places) if retry_failed else pa.nulls(len(rows), pa.bool_())
    is_todo = pc.or_(pc.is_null(places), pc.fill_null(again, False))
    if not unchanged:
        _check_unchanged(rows.append_column("_digest", index["row_digest"].take(places)).filter(pc.invert(is_todo)))
    others = index.num_rows - (len(rows) - places.null_count)
    rows = rows.append_column("_attempts", pc.fill_null(index["attempts"].take(places), 0)).slice(0, limit)
    return Plan(rows.filter(is_todo.slice(0, limit)), rows.num_rows, catalog, others)


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
        "model": asdict(config.model),
        "model_revision": config.model_revision,
        "execution": asdict(config.execution),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def check_dtype(plan: Plan, config: RunConfig, on_gpu: bool) -> None:
    """Raise ConfigError where `auto` would now choose another type of the weights than for the samples there."""
    if config.model.dtype != "auto":
        return  # then it is among the deciding settings
    possible = sorted({auto_dtype(on_gpu, has_bfloat16) for has_bfloat16 in (False, True)})
    found = pc.unique(plan.catalog.index["dtype"]).to_pylist()
    others = sorted({each for each in found if each is not None and each not in possible})
    if others:
        raise ConfigError(
            f"the samples in {config.output} were made in {', '.join(map(str, others))}, and these workers would make "
            f"theirs in {' or '.join(possible)}: use the same kind of worker, or another --output with "
            f"--dtype {others[0]}"
        )


def _check_unchanged(finished: pa.Table) -> None:
    """finished: rows with the digest of the row that their sample was made from, `_digest`."""
    changed = [
        row["sample_id"]
        for batch in finished.to_batches(max_chunksize=DIGESTED_AT_ONCE)
        for row in rows_of(pa.Table.from_batches([batch]))
        if row_digest(row) != row["_digest"]
    ]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise ConfigError(
            f"{len(changed)} rows have changed since their samples were made: {shown}. "
            "Give the changed rows new sample ids, or use another --output."
        )
