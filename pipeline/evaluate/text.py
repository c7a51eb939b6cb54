"""The summary of an evaluation as a person reads it."""

from __future__ import annotations

from pipeline.evaluate.run import EvaluationResult
from pipeline.output.tables import FAILURES, METADATA
from sgi2v.metrics.protocols import PROTOCOLS
from sgi2v.wording import counted

SHOWN = {
    "objmc/v2": ("objmc_px", "control_gain", "objmc_nulls_frozen_px", "failure", "background_change"),
}
"""Values of a protocol with many that are shown; all are in the files."""


def summary_text(result: EvaluationResult) -> str:
    """Counts, and the mean of each value with the number of videos that have it and have not."""
    summary, output = result.summary, result.config.output
    counts = f"{result.measured} measured, {result.before} before, {summary['failed']} failed"
    lines = [
        f"{counts}, of {counted(summary['measured'] + summary['failed'] + summary['left'], 'video')}, "
        f"in {result.seconds:.1f} s"
    ]
    lines += [f"  failed   {number:>6}  {code}" for code, number in summary["failed_by_code"].items()]
    frames = summary["videos_by_frames"]
    if len(frames) > 1:
        lengths = ", ".join(f"{counted(count, 'video')} of {number}" for number, count in frames.items())
        lines.append(f"  frames   {lengths}: paths are resampled to each, and distances of both are in one mean")
    for protocols in summary["metrics"].values():
        for name, found in protocols.items():
            lines.append(f"  {name}: {found['note']}")
            lines += [f"    {line}" for line in _value_lines(name, found)]
            if len(result.config.trackers) == 1 and found["null_reasons"]:
                reasons = ", ".join(f"{number} {reason}" for reason, number in found["null_reasons"].items())
                lines.append(f"    null: {reasons}")
    lines += _agreement_lines(result)
    for name, found in summary.get("distributions", {}).items():
        low = ", low_n" if found["low_n"] else ""
        halves = ", ".join(f"{value:.2f}" for value in found["halves"])
        lines.append(
            f"  {name} {found['value']:.2f}{low}, n {found['videos']} and {found['real']} real; "
            f"random halves {halves} ({found['library']}; {found['note']})"
        )
    lines.append(f"  metrics  {output}/{METADATA}")
    if summary["failed"]:
        lines.append(f"  failures {output}/{FAILURES}   (the same command tries them again)")
    if result.interrupted:
        left = counted(summary["left"], "video")
        lines.append(f"Interrupted with {left} left. Nothing is lost: the same command goes on from here.")
    return "\n".join(lines)


def _value_lines(name: str, found: dict[str, dict[str, dict[str, float | None]]]) -> list[str]:
    columns = {column.name: column for column in PROTOCOLS[name].columns}
    lines = []
    for column, value in found["values"].items():
        if column not in SHOWN.get(name, columns):
            continue
        better = f", {columns[column].better} is better" if columns[column].better else ""
        mean = "-" if value["mean"] is None else f"{value['mean']:.3f}"
        lines.append(f"{column:24} {mean:>9}  over {value['videos']}, {value['nulls']} null{better}")
    return lines


def _agreement_lines(result: EvaluationResult) -> list[str]:
    lines = []
    for each in result.summary["rank_agreement"]:
        if each["spearman"] is not None and each["kendall"] is not None:
            lines.append(
                f"  {each['metric']:24} {' and '.join(each['trackers'])}: Spearman {each['spearman']:.2f}, "
                f"Kendall {each['kendall']:.2f}, over {counted(each['videos'], 'video')}"
            )
    return lines
