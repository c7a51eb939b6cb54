"""Manifests from videos: the first frame of a clip is the image, and what moved in it gives the paths.

A row has one clip. Its own column `reference` names the part of the video that shows the true motion. The camera's
motion is part of the paths.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from manifests.access import display_uri, stored_uri
from manifests.boxes.filters import BoxFilters, filtered
from manifests.boxes.proposer import BoxProposer, PictureError, Proposed
from manifests.place import VIDEOS, find_files, name_fault, name_in_manifest
from manifests.skipped import Skipped
from manifests.sources.clips import Clip, ClipSettings, Moved, NoClip, clips_of, follow
from manifests.sources.made import REFERENCE, Made, names_of, together
from manifests.sources.processes import in_processes
from sgi2v.errors import StorageError
from sgi2v.locations import credentials_advice, local_path, open_store
from sgi2v.settings import Settings
from sgi2v.source_video import SourceVideoError, open_video
from sgi2v.tracking.lucas_kanade import LucasKanade
from sgi2v.video import Frames
from sgi2v.wording import escaped

PNG_COMPRESSION = 3
"""zlib's level. A photograph is hardly smaller at the default of 6, and takes twice the time."""
OWN_COLUMNS = [pa.field("reference", REFERENCE)]


Propose = Callable[[Frames, str], Proposed]
"""`BoxProposer.propose`, or that of FilteredBoxes."""


class VideoFile(NamedTuple):
    """A video among those that were asked for."""

    uri: str
    """Absolute."""
    key: str
    """Relative to the place that was asked for."""
    name: str
    """Begin of its sample ids."""


class Target(NamedTuple):
    """Where a manifest and its pictures will be."""

    folder: str
    """Of the manifest, a path or a URL."""
    pictures: str
    """Folder in it for the first frames."""


@dataclass(frozen=True)
class FilteredBoxes:
    """The boxes of a proposer that pass the filters, in videos of this size that show the middle of the picture."""

    proposer: BoxProposer
    filters: BoxFilters
    height: int
    width: int

    def propose(self, image_HWC: Frames, key: str) -> Proposed:
        """The boxes of one picture; those that do not pass are among the notes. Raises PictureError."""
        boxes, notes = self.proposer.propose(image_HWC, key)
        if not self.proposer.finds_objects:
            return Proposed(boxes, notes)
        scale = max(self.height / image_HWC.shape[0], self.width / image_HWC.shape[1])
        sifted = filtered(boxes, image_HWC, self.filters, (scale, scale))
        return Proposed(list(sifted.kept), [*notes, *sifted.dropped])


def from_videos(
    place: str,
    target: Target,
    propose: Propose,
    settings: ClipSettings,
    processes: int,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """One row per clip in which something moves, of every video of a folder, a glob, or any fsspec URL of these.

    The first frames are written on the way. on_video: called with the number of videos that are done, and of all.
    Raises ConfigError where there is no video, and StorageError.
    """
    videos = list_videos(place)
    work = partial(rows_of_video, target=target, propose=propose, settings=settings)
    parts: list[Made] = [Made() for _ in videos]
    for done, (number, part) in enumerate(in_processes(work, videos, processes), start=1):
        message = "the process that read it died, as happens with damaged files: encode it again"
        parts[number] = part or Made(skipped=[Skipped(videos[number].key, "video_crashed", message)])
        on_video(done, len(videos))
    return together(parts)


def list_videos(place: str) -> list[VideoFile]:
    """The videos of a place in the order of their names, subfolders included. Raises ConfigError and StorageError."""
    found = find_files(place, VIDEOS, "video")
    names = names_of([str(PurePosixPath(key).with_suffix("")) for key in found.keys])
    return [VideoFile(*each) for each in zip(found.uris, found.keys, names, strict=True)]


def rows_of_video(video: VideoFile, target: Target, propose: Propose, settings: ClipSettings) -> Made:
    """The rows of one video, whose first frames are written on the way, and what was left out.

    propose: gets the first frame of a clip, and the name of its picture, `<sample_id>.png`. Raises StorageError where
    a picture cannot be written; what is wrong with the video is an entry of `skipped`.
    """
    made = Made()
    if fault := name_fault(video.uri):
        made.skipped.append(Skipped(escaped(video.key), "name_invalid", fault))
        return made
    try:
        with local_copy(video.uri) as path:
            for clip in clips_of(open_video(path), settings):
                if isinstance(clip, NoClip):
                    made.skipped.append(Skipped(video.key, clip.code, clip.message, clip.start_s))
                else:
                    _add_clip(made, clip, video, target, propose, settings)
        if not made.rows and not made.skipped:
            message = f"no shot was found in it that is {settings.seconds:.2f} s long, as a clip is"
            made.skipped.append(Skipped(video.key, "shot_short", message))
    except SourceVideoError as error:
        made.skipped.append(Skipped(video.key, error.code, error.message))
    except MemoryError:
        message = "there is not enough memory for one clip of it: make it smaller, or use fewer processes"
        made.skipped.append(Skipped(video.key, "video_too_large", message))
    except OSError as error:
        made.skipped.append(Skipped(video.key, "video_unreadable", f"it cannot be read: {error}"))
    return made


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A path of the file: its own, or that of a copy which is deleted afterwards. Raises OSError."""
    path = local_path(uri)
    if path is not None:
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder) / "video")
        try:
            file_system, name = open_store(uri)
            file_system.get_file(name, copy)
        except Exception as error:  # each fsspec file system raises its own library's errors
            advice = credentials_advice(error, uri)
            raise OSError(f"{type(error).__name__}: {error}{advice}") from error
        yield copy


def _add_clip(
    made: Made, clip: Clip, video: VideoFile, target: Target, propose: Propose, settings: ClipSettings
) -> None:
    """Add the clip's row if something moves in it, and an entry for everything that does not."""
    sample_id = f"{video.name}-{round(clip.start_s * 1000):08d}"
    leave_out = partial(Skipped, video.key, start_s=clip.start_s)
    try:
        proposed = propose(clip.first_HWC, f"{sample_id}.png")
    except PictureError as error:
        made.skipped.append(leave_out(error.code, error.message))
        return
    made.skipped += [leave_out(note.code, note.message) for note in proposed.notes]
    if not proposed.boxes:
        made.skipped.append(leave_out("no_boxes", "no box was found in its first frame"))
        return
    kept: list[tuple[list[float], Moved]] = []
    for proposal, moved in zip(proposed.boxes, follow(clip, proposed.boxes, LucasKanade(), settings), strict=True):
        box = [float(value) for value in proposal.box_xyxy]
        if not isinstance(moved, Moved):
            made.skipped.append(leave_out(moved.code, moved.message, box=box))
        elif len(kept) == settings.objects:
            message = f"more than {settings.objects} of the clip's boxes move"
            made.skipped.append(leave_out("objects_many", message, box=box))
        else:
            kept.append((box, moved))
    if not kept:
        made.skipped.append(leave_out("clip_static", "none of its boxes has a path"))
        return
    made.rows.append(
        {
            "sample_id": sample_id,
            "image": _write_picture(clip.first_HWC, sample_id, target),
            "boxes": [box for box, _ in kept],
            "trajectories": [moved.path_P2.round(2).tolist() for _, moved in kept],
            "scales": [moved.scale_P.round(4).tolist() for _, moved in kept],
            "reference": {
                "uri": stored_uri(name_in_manifest(video.uri, target.folder)),
                "start_s": round(clip.start_s, 6),
                "end_s": round(clip.start_s + settings.seconds, 6),
            },
        }
    )


def _write_picture(image_HWC: Frames, sample_id: str, target: Target) -> str:
    """Write the PNG, and return how the manifest names it."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HWC)).save(sink, "png", compress_level=PNG_COMPRESSION)
    name = f"{target.pictures}/{sample_id}.png"
    uri = f"{target.folder.rstrip('/')}/{name}"
    try:
        file_system, path = open_store(uri)
        if isinstance(file_system, LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        file_system.pipe_file(path, sink.getvalue())
    except Exception as error:  # each fsspec file system raises its own library's errors
        raise StorageError(f"{display_uri(uri)} cannot be written: {error}{credentials_advice(error, uri)}") from error
    return name


def recipe_of(settings: ClipSettings, boxes: FilteredBoxes) -> dict[str, Any]:
    """What the manifest says about how it was made."""
    proposer = boxes.proposer
    options = proposer.plain() if isinstance(proposer, Settings) else {}
    return {
        "source": "videos",
        "videos": settings.plain(),
        "boxes": {"proposer": proposer.name, **options},
        "filters": boxes.filters.plain(),
        "tracker": f"{LucasKanade.name} {LucasKanade().version}",
    }
