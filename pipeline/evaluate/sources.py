"""Which videos are measured, and what was asked of each: one row a video, whatever made it.

A source is an output of this program, an evaluation, a manifest with the column `video`, a folder of mp4s beside such
a table, or a folder with a folder for each sample: `first_frame.png` (MotionPro, MC-Bench) or `img.png` (SG-I2V) and
an mp4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.io import EXTENSIONS, read_manifest
from manifests.schema import KNOWN
from manifests.sources.mc_bench import OWN_COLUMNS, McBenchSettings, from_mc_bench, recipe_of
from manifests.sources.sgi2v import from_sgi2v
from manifests.urls import resolve_uri
from pipeline.evaluate.config import EvaluationConfig
from pipeline.output.run_file import RUN_FILE, read_run
from pipeline.output.storage import Storage
from pipeline.output.tables import FIRST_OWN, METADATA
from sgi2v.errors import ConfigError
from sgi2v.locations import local_path, open_store
from sgi2v.wording import counted, did_you_mean

VIDEO, REFERENCE = "video", "reference"
"""Own columns of a manifest: where each video lies, and a real video of the same motion."""
FIRST_FRAME, IMG = "first_frame.png", "img.png"
EVALUATION_FILE = "evaluation.json"
"""What says that a folder is an evaluation."""
SHOWN = 3
"""Names that a message shows of many."""
PLACES = ("source_box", "picture_box")
"""Columns of an output that say which part of the frames shows which part of the picture."""


@dataclass(frozen=True)
class Source:
    """The videos of an evaluation."""

    rows: pa.Table
    """The manifest's columns, and VIDEO_COLUMNS."""
    notes: tuple[str, ...] = ()
    """What a person should know, such as videos without a row."""


VIDEO_COLUMNS = pa.schema(
    [
        pa.field("_video", pa.string()),
        pa.field("_image", pa.string()),
        pa.field("_reference", pa.string()),
        pa.field("_side_by_side", pa.bool_()),
        pa.field("_source_box", pa.list_(pa.float64())),
        pa.field("_picture_box", pa.list_(pa.int64())),
    ]
)
"""Where a row's video, image and reference lie; whether the video is the right-most part of a wider one; and where an
output says that the picture is."""


def find_videos(config: EvaluationConfig) -> Source:
    """The videos and their rows. Raises ConfigError where none can be measured, ManifestError for a bad table."""
    videos = config.videos
    if PurePosixPath(videos.partition("?")[0]).suffix.lower() in EXTENSIONS:
        if config.manifest is not None:
            raise ConfigError(
                f"{videos} is a table already: leave out --manifest, or give a folder of videos before it"
            )
        return _of_manifest(videos, config)
    storage = Storage(videos)
    if storage.get(RUN_FILE) is not None or storage.get(EVALUATION_FILE) is not None:
        if config.manifest is not None:
            raise ConfigError(f"{videos} knows its own boxes and paths: leave out --manifest")
        return _of_output(storage)
    return _of_folder(config)


def _of_output(storage: Storage) -> Source:
    """The videos of an output or evaluation, from its table."""
    table = storage.read(METADATA, lambda stream: pq.read_table(stream, use_threads=False))
    if table is None:
        raise ConfigError(
            f"{storage.url} has no {METADATA} yet: wait until its run has written it, each minute and at its end"
        )
    names = table.column_names
    if FIRST_OWN not in names or not {"sample_id", "file_name", "boxes", "trajectories"} <= set(names):
        raise ConfigError(
            f"{storage.url}/{METADATA} lacks the boxes and paths of its videos: run an output of this "
            "version, or give its videos with a manifest that has a column `video`"
        )
    if not table.num_rows:
        raise ConfigError(f"{storage.url} has no video: no sample was made")
    run = read_run(storage) if storage.get(RUN_FILE) is not None else None
    manifest = storage.url if run is None else run.manifest
    own = [name for name in names[names.index(FIRST_OWN) :] if name not in VIDEO_COLUMNS.names]
    rows = table.select(["sample_id", *own])
    picked = table.select([name for name in ("file_name", "video_uri", "image", "image_uri", *PLACES) if name in names])
    places = [
        {
            "_video": row.get("video_uri") or _below(storage.url, row["file_name"]),
            "_image": _recorded_image(row, manifest),
            "_side_by_side": False,
            **{f"_{name}": row.get(name) for name in PLACES},
        }
        for row in picked.to_pylist()
    ]
    left = 0 if run is None else run.rows_left(table.num_rows)
    notes = [f"{storage.url} has {counted(left, 'row')} without a video: what is there is measured"] if left else []
    return Source(_with_places(rows, places), tuple(notes))


def _recorded_image(row: dict[str, Any], manifest: str) -> str | None:
    """Where the image of a finished sample lies: as recorded, unless secrets or data were left out there."""
    uri = row.get("image_uri")
    if uri and "***" not in uri and not uri.startswith("data:"):
        return str(uri)
    return None if row["image"] is None else resolve_uri(row["image"], manifest)


def _of_manifest(manifest: str, config: EvaluationConfig) -> Source:
    rows = read_manifest(manifest)
    if VIDEO not in rows.column_names:
        hint = did_you_mean(VIDEO, [name for name in rows.column_names if name not in KNOWN])
        raise ConfigError(
            f"{manifest} has no column `{VIDEO}`{hint}: add it, with a path or URL of the mp4 of each row, "
            "or give the folder of the videos, and this table with --manifest"
        )
    return _joined(rows, manifest, config, lambda name: resolve_uri(name, manifest), None)


def _of_folder(config: EvaluationConfig) -> Source:
    files = list(_files_below(config.videos))
    mp4s = [file for file in files if file.lower().endswith(".mp4")]
    if not mp4s:
        raise ConfigError(
            f"{config.videos} has no mp4: give an output, a manifest with a column `{VIDEO}`, or a folder of mp4s"
        )
    if not any("/" not in file for file in mp4s):
        return _of_sample_folders(config, files, mp4s)
    manifest = config.manifest or _table_in(config.videos, files)
    rows = read_manifest(manifest)
    return _joined(rows, manifest, config, lambda name: _below(config.videos, name), mp4s)


def _of_sample_folders(config: EvaluationConfig, files: Sequence[str], mp4s: Sequence[str]) -> Source:
    """A folder for each sample: its first frame, and its video, which may stand right of other pictures."""
    folders = sorted({file.rpartition("/")[0] for file in mp4s})
    is_side_by_side = any(f"{folder}/{FIRST_FRAME}" in files for folder in folders)
    rows, manifest = _rows_of_sample_folders(config, is_side_by_side, files)
    by_id = {}
    for folder in folders:
        here = [file for file in mp4s if file.rpartition("/")[0] == folder]
        if config.video_name is not None:
            here = [file for file in here if file.rpartition("/")[2] == config.video_name]
        if len(here) > 1:
            names = ", ".join(file.rpartition("/")[2] for file in here[:SHOWN])
            raise ConfigError(f"{config.videos}/{folder} has {len(here)} mp4s ({names}): say which with --video-name")
        if here:
            name = folder.rpartition("/")[2]
            by_id[name] = by_id[folder.replace("/", "-")] = here[0]
    ids = rows["sample_id"].to_pylist()
    found = [by_id.get(sample_id) for sample_id in ids]
    if not any(found):
        raise ConfigError(_no_overlap(manifest, ids, config.videos, folders))
    images = rows["image"].to_pylist()
    places = [
        {
            "_video": _below(
                config.videos, video if video is not None else f"{sample_id}/{config.video_name or '*.mp4'}"
            ),
            "_image": resolve_uri(image, manifest) if image else None,
            "_reference": _reference(config, sample_id),
            "_side_by_side": is_side_by_side,
        }
        for sample_id, video, image in zip(ids, found, images, strict=True)
    ]
    return Source(_with_places(rows, places), _unused(len(set(by_id.values())), sum(map(bool, found)), config.videos))


def _rows_of_sample_folders(
    config: EvaluationConfig, is_side_by_side: bool, files: Sequence[str]
) -> tuple[pa.Table, str]:
    """The rows of such a folder, and the manifest that their images are relative to."""
    if config.manifest is not None:
        return read_manifest(config.manifest), config.manifest
    here = f"{config.videos.rstrip('/')}/manifest.parquet"
    if local_path(config.videos) is None:
        raise ConfigError(f"{config.videos}: give the boxes and paths of its samples with --manifest")
    if not is_side_by_side and any(file.endswith(f"/{IMG}") for file in files):
        return from_sgi2v(config.videos, config.videos), here
    if is_side_by_side and any(file.endswith("/first_frame_mask.png") for file in files):
        settings = McBenchSettings()
        made = from_mc_bench(config.videos, config.videos, settings)
        return made.manifest(OWN_COLUMNS, recipe_of(settings), config.videos), here
    raise ConfigError(
        f"{config.videos} does not say what was asked of its samples: give their boxes and paths with "
        "--manifest (`sgi2v-batch manifest from-mc-bench` makes one)"
    )


def _table_in(folder: str, files: Sequence[str]) -> str:
    tables = [file for file in files if "/" not in file and PurePosixPath(file).suffix.lower() in EXTENSIONS]
    if len(tables) != 1:
        found = f"it has {len(tables)} ({', '.join(tables[:SHOWN])})" if tables else "it has none"
        raise ConfigError(
            f"{folder}: a table with the boxes and paths of the videos is needed, and {found}: give one "
            "with --manifest, with the columns of a manifest and `video`"
        )
    return _below(folder, tables[0])


def _joined(rows: pa.Table, manifest: str, config: EvaluationConfig, locate: Any, mp4s: Sequence[str] | None) -> Source:
    """Rows with their videos: of the column `video`, else `<sample_id>.mp4`. mp4s: what a folder has; None: unknown."""
    ids = rows["sample_id"].to_pylist()
    names = rows[VIDEO].to_pylist() if VIDEO in rows.column_names else [f"{sample_id}.mp4" for sample_id in ids]
    if not all(name is None or isinstance(name, str) for name in names):
        raise ConfigError(f"{manifest}: column {VIDEO} must be text, a path or URL of each row's mp4")
    references = rows[REFERENCE].to_pylist() if REFERENCE in rows.column_names else [None] * len(ids)
    if mp4s is not None and not {_plain(name) for name in names if name} & set(mp4s):
        raise ConfigError(_no_overlap(manifest, [name or "null" for name in names], config.videos, mp4s))
    places = [
        {
            "_video": None if name is None else locate(name),
            "_image": None if image is None else resolve_uri(image, manifest),
            "_reference": resolve_uri(reference, manifest) if reference else _reference(config, sample_id),
            "_side_by_side": False,
        }
        for sample_id, name, image, reference in zip(ids, names, rows["image"].to_pylist(), references, strict=True)
    ]
    used = len({_plain(name) for name in names if name} & set(mp4s or ()))
    return Source(_with_places(rows, places), _unused(len(mp4s), used, config.videos) if mp4s is not None else ())


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _no_overlap(manifest: str, wanted: Sequence[str], folder: str, found: Sequence[str]) -> str:
    return (
        f"no row of {manifest} has its video in {folder}: the rows want {', '.join(wanted[:SHOWN])}, and the folder "
        f"has {', '.join(found[:SHOWN])}. Give a column `{VIDEO}`, or the other folder"
    )


def _unused(there: int, used: int, folder: str) -> tuple[str, ...]:
    left = there - used
    return (f"{folder} has {counted(left, 'mp4')} without a row: not measured",) if left > 0 else ()


def _reference(config: EvaluationConfig, sample_id: str) -> str | None:
    """The real video of a sample: of the same name, in the folder of real videos."""
    return None if config.references is None else _below(config.references, f"{sample_id}.mp4")


def _with_places(rows: pa.Table, places: Sequence[dict[str, Any]]) -> pa.Table:
    found = pa.Table.from_pylist(list(places), VIDEO_COLUMNS)
    for field in VIDEO_COLUMNS:
        rows = rows.append_column(field, found[field.name])
    return rows


def _below(folder: str, name: str) -> str:
    """A file of a folder; a whole path or URL as it is."""
    return name if "://" in name or name.startswith("/") else f"{folder.rstrip('/')}/{_plain(name)}"


def _files_below(folder: str) -> Iterator[str]:
    """The names of all files in a folder and its folders, relative to it, in order. Raises ConfigError without one."""
    try:
        file_system, path = open_store(folder)
        root = path.rstrip("/")
        if not file_system.isdir(root):
            raise FileNotFoundError(root)
        for name in sorted(file_system.find(root)):
            relative = name[len(root) :].lstrip("/")
            if not relative.startswith("."):
                yield relative
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{folder} is not there: give an output, a manifest or a folder of videos") from error
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{folder} cannot be listed: {error}") from error


def mp4s_in(folder: str) -> list[str]:
    """The locations of all mp4s in a folder. Raises ConfigError if there is none."""
    found = [_below(folder, file) for file in _files_below(folder) if file.lower().endswith(".mp4")]
    if not found:
        raise ConfigError(f"--real {folder} has no mp4")
    return found
