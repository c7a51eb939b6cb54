"""A row of a source -> the clip that protocols measure: the video read, its boxes in pixels of its frames.

Boxes and paths are in pixels of the picture. They are mapped to the frames by the output's own record where there is
one, and else by `fit`: stretch, the default, is the frames' size over the picture's.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from manifests.decode import decode_picture
from manifests.fit import Fit, Placement, VideoSize, place
from manifests.schema import Sample, parse_row
from manifests.urls import read_image_bytes
from sgi2v.errors import ErrorCode, SampleError
from sgi2v.metrics.clip import Clip
from sgi2v.scene import asks_camera
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames, decode_mp4
from sgi2v.wording import escaped

MAX_VIDEO_BYTES = 2**30
"""Largest mp4 that is read."""
SIDE_BY_SIDE = 1.5
"""A video that is wider than the picture by this factor has other pictures left of it."""


@dataclass(frozen=True)
class Loaded:
    """A clip, and what is known of its video."""

    clip: Clip
    fields: Mapping[str, Any]
    """Columns of the result that no protocol gives."""


def load_clip(row: Mapping[str, Any], fit: Fit) -> Loaded:
    """Read the video, image and reference of a row. Raises SampleError if the row cannot be measured."""
    sample = parse_row(row)
    if row["_video"] is None:
        raise SampleError(ErrorCode.VIDEO_INVALID, "the column video is null: give a path or URL of the mp4")
    data = _read(row["_video"])
    frames_THWC = decode_mp4(data)
    image_HWC, image_fields = _image_of(row)
    offset = _prediction_offset(frames_THWC, image_HWC) if row["_side_by_side"] else 0
    placement = _placement(row, sample, frames_THWC[:, :, offset:], image_HWC, sample.fit or fit)
    placement = _moved(placement, offset)
    left, top, right, bottom = placement.picture_box
    x0, y0, x1, y1 = placement.source_box
    size = (round(y1 - y0), round(x1 - x0))
    picture = sample.tracks(len(frames_THWC), *(image_HWC.shape[:2] if image_HWC is not None else size))
    tracks = _shifted(placement.tracks(picture), placement)
    starts_N2 = _starts(row, picture)
    scale_2 = np.array([(right - left) / (x1 - x0), (bottom - top) / (y1 - y0)])
    clip = Clip(
        frames_THWC=frames_THWC[:, top:bottom, left:right],
        tracks=tracks,
        starts_N2=(starts_N2 - [x0, y0]) * scale_2,
        source_size=size,
        first_frame_HWC=None if image_HWC is None else placement.image(image_HWC)[top:bottom, left:right],
        reference_THWC=_reference_of(row),
    )
    height, width = frames_THWC.shape[1:3]
    fields = {
        **image_fields,
        "video_sha256": hashlib.sha256(data).hexdigest(),
        "num_boxes": tracks.num_boxes,
        "num_still": 0 if tracks.still_N is None else int(tracks.still_N.sum()),
        "num_frames": len(frames_THWC),
        "height": height,
        "width": width,
        "fps": _fps(data),
        "fit": placement.fit,
        "source_box": list(placement.source_box),
        "picture_box": list(placement.picture_box),
        **asked(tracks),
    }
    return Loaded(clip, fields)


def asked(tracks: BoxTracks) -> dict[str, Any]:
    """What was asked of the boxes, independent of the frames' size: for comparisons by groups of samples."""
    moving_N = ~np.zeros(tracks.num_boxes, bool) if tracks.still_N is None else ~tracks.still_N
    boxes_NT4 = tracks.boxes_NT4[moving_N]
    nothing = {"asked_displacement": None, "asked_size": None, "num_moving": 0, "asks_camera": False}
    if not len(boxes_NT4):
        return nothing
    centres_NT2 = (boxes_NT4[..., :2] + boxes_NT4[..., 2:]) / 2
    farthest_px = float(np.linalg.norm(centres_NT2 - centres_NT2[:, :1], axis=-1).max())
    areas_N = (boxes_NT4[:, 0, 2:] - boxes_NT4[:, 0, :2]).prod(axis=-1)
    return {
        "asked_displacement": farthest_px / float(np.hypot(tracks.height, tracks.width)),
        "asked_size": float(np.sqrt(areas_N / (tracks.height * tracks.width)).mean()),
        "num_moving": len(boxes_NT4),
        "asks_camera": bool(asks_camera(tracks)),
    }


def _read(uri: str) -> bytes:
    try:
        return read_image_bytes(uri, MAX_VIDEO_BYTES)
    except SampleError as error:
        message = error.message.replace("the image", "the video").replace("this image", "this video")
        raise SampleError(ErrorCode.VIDEO_INVALID, message) from error
    except OSError as error:
        raise SampleError(ErrorCode.VIDEO_INVALID, f"{escaped(uri)} cannot be read: {error}") from error


def _reference_of(row: Mapping[str, Any]) -> Frames | None:
    """The real video of a row. None if there is none of its name. Raises SampleError for one that cannot be decoded."""
    if row["_reference"] is None:
        return None
    try:
        data = read_image_bytes(row["_reference"], MAX_VIDEO_BYTES)
    except (SampleError, OSError):
        return None  # its values are null, `no_reference`
    return decode_mp4(data)


def _image_of(row: Mapping[str, Any]) -> tuple[Frames | None, dict[str, Any]]:
    """The picture of a row. None if it cannot be read and an output says where it is in the frames."""
    uri = row["_image"]
    try:
        if uri is None:
            raise SampleError(ErrorCode.IMAGE_MISSING, "the row names no image")
        data = read_image_bytes(uri)
        return decode_picture(data).pixels_HWC, {"image_sha256": hashlib.sha256(data).hexdigest(), "image_note": None}
    except (SampleError, OSError) as error:
        if row["_source_box"] is None:
            raise
        return None, {"image_sha256": None, "image_note": f"not read: {error}"}


def _prediction_offset(frames_THWC: Frames, image_HWC: Frames | None) -> int:
    """Where the right-most part of the frames begins, as wide as the picture: MotionPro shows five side by side."""
    assert image_HWC is not None
    height, width = image_HWC.shape[:2]
    if frames_THWC.shape[2] < SIDE_BY_SIDE * width * frames_THWC.shape[1] / height:
        return 0
    if frames_THWC.shape[1] != height:
        raise SampleError(
            ErrorCode.VIDEO_INVALID,
            f"the video is {frames_THWC.shape[1]} px high and its first frame {height} px: of pictures side by side, "
            "the right-most one is found by the width of the first frame only where the heights agree",
        )
    return int(frames_THWC.shape[2] - width)


def _moved(placement: Placement, offset: int) -> Placement:
    """The placement in frames that have so many more columns at the left."""
    left, top, right, bottom = placement.picture_box
    moved = (left + offset, top, right + offset, bottom)
    return replace(placement, width=placement.width + offset, picture_box=moved)


def _placement(
    row: Mapping[str, Any], sample: Sample, frames_THWC: Frames, image_HWC: Frames | None, fit: Fit
) -> Placement:
    height, width = frames_THWC.shape[1:3]
    if row["_source_box"] is not None and row["_picture_box"] is not None:
        x0, y0, x1, y1 = row["_source_box"]
        left, top, right, bottom = row["_picture_box"]
        return Placement(row.get("fit") or "crop", height, width, (x0, y0, x1, y1), (left, top, right, bottom))
    assert image_HWC is not None
    tracks = sample.tracks(len(frames_THWC), *image_HWC.shape[:2])
    if len(frames_THWC) and tracks.num_boxes:
        tracks.clip_to_first_frame()  # raises for a box outside the picture
    placement = place(tracks, VideoSize(height, width), "crop" if fit == "bucket" else fit)
    for _, error in placement.lost_boxes(tracks):
        raise error
    return placement


def _shifted(tracks: BoxTracks, placement: Placement) -> BoxTracks:
    """Tracks of the frames in pixels of the part that shows the picture."""
    left, top, right, bottom = placement.picture_box
    boxes_NT4 = tracks.boxes_NT4 - np.array([left, top, left, top])
    return replace(tracks, boxes_NT4=boxes_NT4, height=bottom - top, width=right - left)


def _starts(row: Mapping[str, Any], tracks: BoxTracks) -> Floats:
    """The scored point of each object in the picture: where its drag starts if the row says so, else its centre."""
    centres_N2 = tracks.centres_NT2[:, 0]
    drags = row.get("drag_starts")
    if drags is None or len(drags) != len(centres_N2):
        return centres_N2
    return np.array(drags, np.float64).reshape(-1, 2)


def _fps(data: bytes) -> int | None:
    import av

    with av.open(io.BytesIO(data), format="mp4") as container:
        rate = container.streams.video[0].average_rate
        return None if rate is None else round(float(rate))
