"""The protocols by which a video can be measured, by name. docs/evaluating.md describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sgi2v.metrics.background import Background
from sgi2v.metrics.clip import Clip
from sgi2v.metrics.objmc import METRICS_VERSION, Fidelity
from sgi2v.metrics.quality import SampleQuality
from sgi2v.tracking.tracker import PointTracker


@dataclass(frozen=True)
class Column:
    """A value of a protocol."""

    name: str
    unit: str
    better: str
    """`lower`, `higher`, or empty where neither is better."""


@dataclass(frozen=True)
class Protocol:
    """A way to measure one video."""

    name: str
    columns: tuple[Column, ...]
    reason: str
    """The column that says why a value is null."""
    published: str
    """What the published protocol has that a measurement here may not have; empty for our own."""
    measure: Callable[[Clip, PointTracker], dict[str, Any]]
    needs_reference: bool = False


def _objmc(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    from sgi2v.metrics import measure_followed

    first_frame_HWC = clip.frames_THWC[0] if clip.first_frame_HWC is None else clip.first_frame_HWC
    values = measure_followed(clip.frames_THWC, first_frame_HWC, *clip.followed(tracker), tracker)
    return values if clip.first_frame_HWC is not None else {**values, "first_frame_psnr_db": None}


def _md_vid(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    from sgi2v.metrics.mc_bench import md_vid

    return md_vid(clip, tracker)


def _bg_obj_ctd(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    from sgi2v.metrics.ttm import bg_obj_ctd

    return bg_obj_ctd(clip, tracker)


def _track_box_iou(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    from sgi2v.metrics.box_iou import track_box_iou

    return track_box_iou(clip, tracker)


def _motion_fidelity(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    from sgi2v.metrics.dit_flow import motion_fidelity

    return motion_fidelity(clip, tracker)


_LOWER = {
    *("objmc_px", "objmc_norm", "endpoint_error_px", "objmc_nulls_frozen_px", "failure", "identity", "round_trip_px"),
    *("background_change", "background_motion_px", "still_drift_px", "flicker"),
}
_HIGHER = {
    *("direction_cosine", "control_gain", "track_box_iou", "visible_fraction", "bg_object_distance_px"),
    "first_frame_psnr_db",
}


def _objmc_columns() -> tuple[Column, ...]:
    from dataclasses import fields

    names = [field.name for kind in (Fidelity, Background, SampleQuality) for field in fields(kind)]
    texts = {"null_reason", "background_null_reason", "still_drift_px_per_box"}

    def column(name: str) -> Column:
        unit = "px" if name.endswith("_px") else ""
        return Column(name, unit, "lower" if name in _LOWER else "higher" if name in _HIGHER else "")

    return tuple(column(name) for name in names if name not in texts)


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(METRICS_VERSION, _objmc_columns(), "null_reason", "", _objmc),
        Protocol(
            "mc-bench/md-vid",
            (Column("md_vid_px", "px of the picture", "lower"),),
            "md_vid_null_reason",
            "published with CoTracker3 offline on videos of 16 frames",
            _md_vid,
        ),
        Protocol(
            "ttm/bg-obj-ctd",
            (Column("bg_obj_ctd_px", "px of the picture", "higher"),),
            "bg_obj_ctd_null_reason",
            "published with CoTracker on videos of 16 frames (SG-I2V: 14)",
            _bg_obj_ctd,
        ),
        Protocol(
            "track-box-iou",
            (Column("grid_box_iou", "", "higher"), Column("grid_box_iou_counted", "", "")),
            "grid_box_iou_null_reason",
            "",
            _track_box_iou,
        ),
        Protocol(
            "motion-fidelity/ditflow",
            (Column("motion_fidelity", "", "higher"), Column("motion_fidelity_static", "", "")),
            "motion_fidelity_null_reason",
            "published with CoTracker3 offline",
            _motion_fidelity,
            needs_reference=True,
        ),
    )
}
"""Protocols that measure one video, by name."""
DISTRIBUTIONS = ("fid", "fvd")
"""Protocols that compare all videos with real ones."""
