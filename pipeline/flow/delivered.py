"""A video as its user will get it: encoded, decoded again, checked, and without the bars beside the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.flow.row import InFlight, pixels_of, sampler_of, tracks_of
from pipeline.output.labels import labels_of
from sgi2v.config import SamplerConfig
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import BoxTracks


@dataclass(frozen=True)
class Delivered:
    """The mp4 of a sample, and the part of it that shows the picture."""

    video: bytes
    shown_THWC: NDArray[np.uint8]
    """The decoded frames."""
    shown_HWC: NDArray[np.uint8]
    """The given first frame."""
    tracks: BoxTracks
    """The boxes in pixels of that part."""
    corner: tuple[int, int]
    """x, y of that part in the video."""

    def measure_and_label(self, tracker: PointTracker) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """All metrics, by column, and the labels, one entry a box."""
        from sgi2v.metrics import follow_boxes, measure_followed

        clipped, followed = follow_boxes(self.shown_THWC, self.tracks, tracker)
        metrics = measure_followed(self.shown_THWC, self.shown_HWC, clipped, followed, tracker)
        return metrics, labels_of(clipped, followed, tracker, self.corner)

    def measure(self, tracker: PointTracker) -> dict[str, Any]:
        """All metrics, by column."""
        from sgi2v.metrics import measure

        return measure(self.shown_THWC, self.shown_HWC, self.tracks, tracker)


def deliver(frames_THWC: NDArray[np.uint8], row: pa.Table, state: InFlight, sampler: SamplerConfig) -> Delivered:
    """Encode frames of a sample, and read them back. row: has its first frame. sampler: of the run.

    Raises SampleError(video_invalid).
    """
    from sgi2v.video import check_video, decode_mp4, encode_mp4

    own = sampler_of(state, sampler)
    video = encode_mp4(frames_THWC, own.fps)
    decoded_THWC = decode_mp4(video)
    check_video(decoded_THWC, own.num_frames, own.height, own.width)
    first_frame_HWC = pixels_of(row, "first_frame", (own.height, own.width, 3))
    left, top, right, bottom = state.record_fields["picture_box"]  # bars beside the picture are not measured
    tracks = tracks_of(state, own)
    shown_boxes_NT4 = tracks.boxes_NT4 - np.array([left, top, left, top])
    return Delivered(
        video,
        decoded_THWC[:, top:bottom, left:right],
        first_frame_HWC[top:bottom, left:right],
        replace(tracks, boxes_NT4=shown_boxes_NT4, height=bottom - top, width=right - left),
        (left, top),
    )
