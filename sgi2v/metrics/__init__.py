"""Metrics of a video, one file a family: motion fidelity (`objmc`) and quality without control (`quality`).

A field of a dataclass here is a column of every record and of `metadata.parquet`. CONTRIBUTING.md says how to add one.
"""

from sgi2v.metrics.objmc import MotionFidelity, motion_fidelity
from sgi2v.metrics.quality import SampleQuality, sample_quality

__all__ = ["MotionFidelity", "SampleQuality", "motion_fidelity", "sample_quality"]
