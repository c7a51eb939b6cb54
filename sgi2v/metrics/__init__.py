"""Metrics of a video, one file a family: motion fidelity (`objmc`), and what the video alone tells (`quality`)."""

from sgi2v.metrics.objmc import MotionFidelity, motion_fidelity
from sgi2v.metrics.quality import SampleQuality, sample_quality

__all__ = ["MotionFidelity", "SampleQuality", "motion_fidelity", "sample_quality"]
