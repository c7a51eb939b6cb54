"""Rows that papers publish, for people to see beside a comparison: never among our own rows."""

from __future__ import annotations

from dataclasses import dataclass

CAVEAT = (
    "These numbers come from different clips, sizes, frame counts, trackers, scored points, averaging orders and "
    "FID/FVD implementations; only rows inside one table of one paper compare, and none compares with a number "
    "measured by this tool."
)


@dataclass(frozen=True)
class PublishedTable:
    """A table of one paper."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


PUBLISHED = (
    PublishedTable(
        "SG-I2V (arXiv 2411.04989 v1), Table 1: VIPSeg, 14 frames, all lower is better. Read in two copies that agree, "
        "not in the paper; the protocol of its ObjMC is not released",
        ("method", "size", "kind", "FID", "FVD", "ObjMC"),
        (
            ("Image Conductor", "256x384", "supervised", "48.81", "463.21", "21.07"),
            ("DragNUWA 1.5", "320x576", "supervised", "30.73", "253.57", "10.84"),
            ("DragAnything", "320x576", "supervised", "30.81", "268.47", "11.64"),
            ("SVD (no control)", "576x1024", "none", "30.50", "340.52", "39.59"),
            ("FreeTraj, adapted by the authors", "576x1024", "zero-shot", "46.61", "394.14", "36.43"),
            ("DragDiffusion, adapted by the authors", "576x1024", "zero-shot", "30.93", "458.29", "31.49"),
            ("SG-I2V", "576x1024", "zero-shot", "28.87", "298.10", "14.43"),
        ),
    ),
    PublishedTable(
        "Time-to-Move (arXiv 2511.08633), Table 1, SVD: MC-Bench, 16 frames (SG-I2V: 14). CTD lower, BG-Obj CTD higher "
        "is better",
        ("method", "CTD", "BG-Obj CTD"),
        (
            ("DragAnything", "10.645", "50.885"),
            ("SG-I2V (14 frames)", "5.796", "12.042"),
            ("MotionPro", "8.685", "24.485"),
            ("TTM", "7.967", "35.340"),
        ),
    ),
    PublishedTable(
        "MotionPro (arXiv 2505.20287): MC-Bench, 16 frames, object-level. MD-Img and MD-Vid lower, frame consistency "
        "higher is better",
        ("method", "MD-Img", "MD-Vid", "frame consistency"),
        (
            ("MOFA-Video", "15.56", "12.04", "0.9951"),
            ("DragAnything", "12.30", "11.37", "0.9917"),
            ("MotionPro", "10.48", "8.59", "0.9943"),
        ),
    ),
    PublishedTable(
        "MotionPro (arXiv 2505.20287): MC-Bench, 16 frames, fine-grained",
        ("method", "MD-Img", "MD-Vid", "frame consistency"),
        (
            ("DragDiffusion", "14.70", "13.84", "0.9947"),
            ("MOFA-Video", "13.94", "10.50", "0.9972"),
            ("MotionPro", "10.56", "8.34", "0.9962"),
        ),
    ),
    PublishedTable(
        "DragAnything (arXiv 2403.07420): VIPSeg, 14 frames, all lower is better",
        ("method", "FID", "FVD", "ObjMC"),
        (("DragNUWA", "39.8", "519.3", "324.6"), ("DragAnything", "33.5", "494.8", "305.7")),
    ),
)
"""Each table as its paper has it, in its order."""


def published_lines() -> list[str]:
    """The tables in Markdown, each row labelled *as published*."""
    lines = ["## As published", "", CAVEAT]
    for table in PUBLISHED:
        header = (*table.header, "")
        lines += ["", f"{table.title}.", "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        lines += [f"| {' | '.join(row)} | *as published* |" for row in table.rows]
    return lines
