"""What is left to do: the manifest minus what is committed; and whose output it is."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.schema import MANIFEST_SCHEMA, row_digest
from pipeline.config import RunConfig, differences
from pipeline.records import SampleRecord, read_failures, read_records, record_key
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
    records: tuple[SampleRecord, ...]
    """Of every finished sample of the output, failed ones that will be done again left out."""
    retried: tuple[SampleRecord, ...]
    """Failed records that make way for another try."""
    others: int
    """Finished samples of the output that the manifest does not hold: those of another manifest."""

    @property
    def done(self) -> int:
        """Rows of the manifest that are finished."""
        return self.total - int(self.todo.num_rows)


def make_plan(manifest: pa.Table, storage: Storage, retry_failed: bool, limit: int | None) -> Plan:
    """Subtract the finished samples. Raises ConfigError where a finished row has since changed."""
    # what rides along stays here: no sample is made of it
    rows = manifest.select(MANIFEST_SCHEMA.names).slice(0, limit)
    records = read_records(storage)
    within = set(rows["sample_id"].to_pylist()) if retry_failed else set()
    retried = tuple(record for record in records if record.status == "failed" and record.sample_id in within)
    retried_ids = {record.sample_id for record in retried}
    kept = tuple(record for record in records if record.sample_id not in retried_ids)
    _check_unchanged(rows, kept)
    finished = pa.array([record.sample_id for record in kept], pa.string())
    todo = rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=finished)))
    # a run that was killed has taken failed records away; their attempts still stand in the table
    before = {str(row["sample_id"]): int(row["attempts"]) for row in read_failures(storage)}
    before |= {record.sample_id: record.attempts for record in retried}
    attempts = pa.array([before.get(str(sample_id), 0) for sample_id in todo["sample_id"].to_pylist()], pa.int64())
    every = pa.array([record.sample_id for record in records], pa.string())
    others = len(records) - int(pc.sum(pc.is_in(every, value_set=manifest["sample_id"].combine_chunks())).as_py() or 0)
    return Plan(todo.append_column("_attempts", attempts), rows.num_rows, kept, retried, others)


def make_way(storage: Storage, plan: Plan) -> None:
    """Remove the failed records that are to be tried again; a run killed after this just does them."""
    for record in plan.retried:
        storage.delete(record_key(record.sample_id))


def claim_output(storage: Storage, config: RunConfig, manifest_digest: str, rows: int) -> None:
    """Write run.json, or check that the one there decides the same results.

    Raises ConfigError with every setting that differs.
    """
    if not storage.put_new(RUN_FILE, _as_file(describe_run(config, manifest_digest, rows))):
        check_output(storage, config)


def renew_manifest(storage: Storage, config: RunConfig, manifest_digest: str, rows: int, others: int) -> None:
    """Bring what run.json says of the manifest up to date: an output goes on with a manifest that has grown.

    others: as in `Plan`.
    """
    there = json.loads(storage.get(RUN_FILE) or b"{}")
    renewed = {**there, **_describe_manifest(config, manifest_digest, rows, others)}
    if renewed != there:
        storage.put(RUN_FILE, _as_file(renewed))


def _describe_manifest(config: RunConfig, manifest_digest: str, rows: int, others: int) -> dict[str, Any]:
    return {"manifest": config.manifest, "manifest_sha256": manifest_digest, "rows": rows, "other_samples": others}


def _as_file(described: dict[str, Any]) -> bytes:
    return json.dumps(described, indent=2, sort_keys=True).encode()


def check_output(storage: Storage, config: RunConfig) -> bool:
    """Whether the output holds a run; ConfigError where that run decides other results."""
    run = read_run(storage)
    if run is None:
        return False
    lines = differences(run["deciding"], config.deciding())
    if lines:
        raise ConfigError(
            f"{storage.url} belongs to a run with other settings, which are never mixed:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGive the same settings, or another --output."
        )
    return True


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
    """What run.json says."""
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
    dtype = auto_dtype(on_gpu)
    others = sorted({record.dtype for record in plan.records if record.dtype not in {None, dtype}})
    if others:
        raise ConfigError(
            f"the samples in {config.output} were made in {', '.join(map(str, others))}, and these workers would make "
            f"theirs in {dtype}: use the same kind of worker, or another --output with --dtype {others[0]}"
        )


def _check_unchanged(rows: pa.Table, records: tuple[SampleRecord, ...]) -> None:
    digests = {record.sample_id: record.row_digest for record in records}
    finished = rows.filter(pc.is_in(rows["sample_id"], value_set=pa.array(list(digests), pa.string())))
    changed = [row["sample_id"] for row in finished.to_pylist() if row_digest(row) != digests[row["sample_id"]]]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise ConfigError(
            f"{len(changed)} rows have changed since their samples were made: {shown}. "
            "Give the changed rows new sample ids, or use another --output."
        )
