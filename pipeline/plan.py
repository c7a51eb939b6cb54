"""The plan of a run: the manifest's rows minus the finished samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from manifests.access import Access, display_uri
from manifests.io import Manifest
from manifests.schema import known_columns
from pipeline.config import RunConfig
from pipeline.output.catalog import Catalog
from pipeline.output.inputs import ImageComparison, changed_rows, compare_images
from pipeline.output.keys import VIDEO_COLUMNS
from pipeline.output.run_file import RunFile, other_manifest
from pipeline.output.storage import Storage
from sgi2v.config import auto_dtype
from sgi2v.errors import ConfigError
from sgi2v.wording import counted

SHOWN_IDS = 5
"""Sample ids that a message names."""


@dataclass(frozen=True)
class Plan:
    """The rows that a run has to do, and the samples that are finished."""

    todo: pa.Table
    """The known columns of the rows to do, with `_attempts`: how many runs have finished the row before."""
    total: int
    """Rows of the manifest, up to the limit."""
    catalog: Catalog
    """The finished samples of the output. A failed sample stays in it until it is finished again."""
    other_samples: int
    """Finished samples of the output that are not among these rows: of another manifest, or behind the limit."""
    redone: pa.Table
    """`sample_id` and VIDEO_COLUMNS of the committed samples to do again, because their row or image changed."""
    not_compared: Mapping[str, str]
    """Finished samples whose image could not be compared with the one they were made from, each with the reason."""
    without_digest: int
    """Finished samples whose image could not be compared, because an earlier version did not record its digest."""

    @property
    def done(self) -> int:
        """Rows of the manifest that are finished."""
        return self.total - int(self.todo.num_rows)


@dataclass(frozen=True)
class Images:
    """Where the images lie that a plan compares with those that finished samples were made from."""

    manifest: str
    """Path or URL of the manifest, where relative paths start."""
    access: Access


@dataclass(frozen=True)
class Wanted:
    """Which rows a run is to do."""

    retry_failed: bool = False
    """Failed rows again."""
    limit: int | None = None
    """Only the first rows of the manifest; None: all."""
    redo_changed: bool = False
    """Finished rows again whose row or image has changed."""
    check_images: bool = False
    """Read the images of finished rows again, and refuse changed ones."""
    another_manifest: bool = False
    """Take finished samples of a manifest at another location for rows of this one."""


def plan_of(
    config: RunConfig,
    manifest: Manifest,
    storage: Storage,
    recorded: RunFile | None,
    wanted: Wanted,
    on_compare: Callable[[], object] = lambda: None,
) -> Plan:
    """The plan for what is wanted. Raises ConfigError as `make_plan`.

    recorded: run.json as the last run left it. on_compare: called before images are read again, which can take long.
    """
    images = images_to_compare(config, recorded, wanted.check_images or wanted.redo_changed)
    if images is not None:
        on_compare()
    return make_plan(
        manifest.table,
        storage,
        wanted.retry_failed,
        wanted.limit,
        manifest_unchanged=recorded is not None and recorded.has_manifest(manifest.sha256),
        redo_changed=wanted.redo_changed,
        images=images,
        other_manifest=None if wanted.another_manifest else other_manifest(recorded, config.manifest),
    )


def images_to_compare(config: RunConfig, run: RunFile | None, on_request: bool) -> Images | None:
    """The images of the manifest: on request, or if the output's samples are of a manifest at another location.

    run: run.json as the last run left it, without a digest of its manifest if it was killed before it had removed
    changed samples.
    """
    if run is None or (run.is_of(config.manifest) and run.manifest_sha256 is not None and not on_request):
        return None
    return Images(config.manifest, config.execution.access)


def make_plan(
    manifest: pa.Table,
    storage: Storage,
    retry_failed: bool,
    limit: int | None,
    manifest_unchanged: bool = False,
    redo_changed: bool = False,
    images: Images | None = None,
    other_manifest: str | None = None,
) -> Plan:
    """Subtract the finished samples from the manifest.

    retry_failed: failed samples are to do again. limit: only the first rows. manifest_unchanged: this manifest was
    planned before, so its rows need no comparison. redo_changed: finished samples whose row or image has changed are
    to do again; else they raise ConfigError. images: None compares rows only. other_manifest: the manifest at another
    location that the samples of the output came from; then rows that are finished already raise ConfigError.
    """
    # other columns do not decide a sample, so they do not travel through the stages
    rows = known_columns(manifest)
    catalog = Catalog(storage)
    index = catalog.index
    positions = pc.index_in(rows["sample_id"], value_set=index["sample_id"].combine_chunks())
    if other_manifest is not None:
        _check_none_finished(rows.filter(pc.is_valid(positions))["sample_id"].to_pylist(), storage, other_manifest)
    is_failed = pc.equal(index["status"], "failed")
    is_retried = is_failed.take(positions) if retry_failed else pa.nulls(len(rows), pa.bool_())
    is_todo = pc.or_(pc.is_null(positions), pc.fill_null(is_retried, False))
    finished = rows.filter(pc.invert(is_todo))
    other_rows = [] if manifest_unchanged and not redo_changed else changed_rows(finished, index)
    compared = ImageComparison()
    if images is not None:
        compared = compare_images(catalog, finished, images.manifest, images.access)
    changed = pa.array(sorted({*other_rows, *compared.changed}), pa.string())
    if redo_changed:
        is_todo = pc.or_(is_todo, pc.is_in(rows["sample_id"], value_set=changed))
    elif len(changed):
        failed_ids = set(index.filter(is_failed)["sample_id"].to_pylist())
        raise ConfigError("\n".join(_describe_changes(other_rows, list(compared.changed), failed_ids)))
    attempts = pc.fill_null(index["attempts"].take(positions), 0)
    attempts = pc.max_element_wise(attempts, catalog.lost_attempts(rows["sample_id"]))  # whose keys are not used again
    rows = rows.append_column("_attempts", attempts).slice(0, limit)
    todo = rows.filter(is_todo.slice(0, limit))
    _check_case(todo, index)
    beyond = changed.filter(pc.invert(pc.is_in(changed, value_set=rows["sample_id"].combine_chunks()))).to_pylist()
    if beyond:  # left as they are, they would pass for samples of the changed manifest
        raise ConfigError(
            f"{counted(len(beyond), 'changed row')} would not be made again: {_shown(beyond)}. Leave out --limit."
        )
    redone = index.filter(
        pc.and_(pc.invert(is_failed), pc.is_in(index["sample_id"], value_set=todo["sample_id"].combine_chunks()))
    )
    planned = pc.is_in(index["sample_id"], value_set=rows["sample_id"].combine_chunks())
    return Plan(
        todo=todo,
        total=rows.num_rows,
        catalog=catalog,
        other_samples=index.num_rows - (pc.sum(planned).as_py() or 0),
        redone=redone.select(["sample_id", *VIDEO_COLUMNS]),
        not_compared=compared.unreadable,
        without_digest=compared.unrecorded,
    )


def _check_none_finished(ids: list[str], storage: Storage, other_manifest: str) -> None:
    """Raise ConfigError if there are ids: finished samples of another manifest would pass for those of this one."""
    if ids:
        raise ConfigError(
            f"{storage.url} has samples with the ids of {counted(len(ids), 'row')} of this manifest ({_shown(ids)}), "
            f"made from another manifest: {display_uri(other_manifest)}. Give another --output. If they are the same "
            "samples, because the manifest has moved, add --another-manifest: rows and images are then compared."
        )


def check_dtype(plan: Plan, config: RunConfig, on_gpu: bool) -> None:
    """Raise ConfigError if `dtype = auto` would give other weights than those of the finished samples."""
    if config.model.dtype != "auto":
        return  # an explicit dtype is one of the deciding settings, which are compared
    own = auto_dtype(on_gpu)
    recorded = pc.unique(plan.catalog.index["dtype"]).to_pylist()
    others = sorted({dtype for dtype in recorded if dtype not in (None, own)})
    if others:
        raise ConfigError(
            f"the samples in {config.output} were made in {', '.join(map(str, others))}, and these workers would make "
            f"theirs in {own}: use the same kind of worker, or another --output with "
            f"--dtype {others[0]}"
        )


def _describe_changes(rows: list[str], images: list[str], failed: set[str]) -> Iterator[str]:
    """A line for each kind of change of finished samples, with what to do. failed: all failed samples."""
    for ids, what in ((rows, "changed in the manifest"), (images, "with a changed image")):
        mended = [sample_id for sample_id in ids if sample_id in failed]
        others = [sample_id for sample_id in ids if sample_id not in failed]
        if mended:
            yield (
                f"{counted(len(mended), 'failed row')} {what}: {_shown(mended)}. "
                "Run failed rows again with --retry-failed."
            )
        if others:
            yield (
                f"{counted(len(others), 'finished row')} {what}: {_shown(others)}. "
                "Make changed rows again with --redo-changed, give them new sample ids, or use another --output."
            )


def _shown(ids: list[str]) -> str:
    more = len(ids) - SHOWN_IDS
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")


def _check_case(todo: pa.Table, index: pa.Table) -> None:
    """Raise ConfigError if a row to do and a finished sample differ only in the case of their ids.

    On disks of macOS and Windows they would be one file.
    """
    others = index.filter(pc.invert(pc.is_in(index["sample_id"], value_set=todo["sample_id"].combine_chunks())))
    other_ids = others["sample_id"].combine_chunks()
    found = pc.index_in(pc.ascii_lower(todo["sample_id"]), value_set=pc.ascii_lower(other_ids))
    pairs = [
        f"{new} and {other_ids[position]}"
        for new, position in zip(todo["sample_id"].to_pylist(), found.to_pylist(), strict=True)
        if position is not None
    ]
    if pairs:
        raise ConfigError(
            f"ids of the manifest and of finished samples differ only in case: {_shown(pairs)}. "
            "They would be one file on many disks: give the rows other ids, or use another --output."
        )
