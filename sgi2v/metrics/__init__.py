"""Metrics of a video, one file a family: motion fidelity (`objmc`) and quality without control (`quality`).

A field of a dataclass here is a column of every record and of `metadata.parquet`: RECORD_SCHEMA in
`pipeline/output/records.py` takes its columns from the fields of `Fidelity` and `SampleQuality`.

To add a metric of the whole video: add a field to `SampleQuality`, with a docstring that states its unit and when it
is null, and compute it in `sample_quality`.

To add a metric of a box's motion: add a field to `Fidelity` that defaults to None, and compute it in `_box_fidelity`.
It becomes two columns: `<name>`, the mean over the boxes that have a value, and `<name>_per_box`, a list. Raise
OBJMC_VERSION if the meaning of an existing column changes.

To add a family: write a file with a frozen dataclass that has `as_dict`, and a function that measures it. Add the
dataclass to `_record_schema` in `pipeline/output/records.py`, and the call to the commit stage in
`pipeline/flow/commit.py`.

A field's type is bool, int, float, str or a list or tuple of one of them, each of them `| None` where it may be null.
Test the metric in `tests/sgi2v/metrics/test_<family>.py` on a video whose value is known, and name it in the README.
"""

from sgi2v.metrics.objmc import MotionFidelity, motion_fidelity
from sgi2v.metrics.quality import SampleQuality, sample_quality

__all__ = ["MotionFidelity", "SampleQuality", "motion_fidelity", "sample_quality"]
