"""Metrics of a video, one file a family, all defined in docs/metrics.md.

`objmc`: motion fidelity. `background`: what the rest of the scene did. `quality`: what needs no boxes. `following`:
where the objects went, from which the first two start. A field of a dataclass of these families is a column of every
record and of `metadata.parquet`. docs/contributing.md says how to add one.
"""

from collections.abc import Sequence
from typing import Any

from sgi2v.metrics.background import Background, background
from sgi2v.metrics.following import Following, follow_boxes
from sgi2v.metrics.objmc import METRICS_VERSION, MotionFidelity, fidelity_of, motion_fidelity
from sgi2v.metrics.quality import SampleQuality, sample_quality
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import BoxTracks
from sgi2v.video import Frames

__all__ = [
    "METRICS_VERSION",
    "Background",
    "MotionFidelity",
    "SampleQuality",
    "background",
    "follow_boxes",
    "measure",
    "measure_followed",
    "motion_fidelity",
    "sample_quality",
]


def measure(frames_THWC: Frames, first_frame_HWC: Frames, tracks: BoxTracks, tracker: PointTracker) -> dict[str, Any]:
    """All metrics of a video, by column.

    frames_THWC: uint8 RGB. first_frame_HWC: the input image at the size of the frames. tracks: in pixels of the frames,
    not yet clipped to frame 0. Raises TrajectoryError and SampleError as the families do.
    """
    return measure_followed(frames_THWC, first_frame_HWC, *follow_boxes(frames_THWC, tracks, tracker), tracker)


def measure_followed(
    frames_THWC: Frames,
    first_frame_HWC: Frames,
    tracks: BoxTracks,
    followed: Sequence[Following],
    tracker: PointTracker,
) -> dict[str, Any]:
    """The same from where the objects went. tracks, followed: as `follow_boxes` gives them."""
    return {
        **fidelity_of(frames_THWC, tracks, followed, tracker).as_dict(),
        **background(frames_THWC, tracks, followed, tracker).as_dict(),
        **sample_quality(frames_THWC, first_frame_HWC).as_dict(),
    }
