"""A comparison as Markdown, and as a drawing of its intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluate.published import published_lines
from sgi2v.wording import counted

IN_STRATA = (
    *("objmc_px", "control_gain", "background_change", "md_vid_px", "bg_obj_ctd_px", "grid_box_iou", "motion_fidelity"),
)
"""Metrics that the tables of groups show; all are in comparison.json."""
ROW_PX, LABEL_PX, PLOT_PX, NOTE_PX, MARGIN_PX = 26, 250, 520, 250, 20
FONT_SIZE = 14
LIMIT = 100.0
"""The drawing ends at a change by so many percent."""
PAPER, INK, SOFT, GOOD, BAD, OPEN = (
    (255, 255, 255),
    (30, 32, 38),
    (170, 174, 182),
    (24, 128, 88),
    (190, 60, 40),
    (90, 96, 110),
)


def markdown(comparison: Mapping[str, Any], published: bool) -> str:
    """The comparison for people."""
    versions = comparison["versions"]
    lines = [
        "# Comparison",
        "",
        f"{counted(comparison['samples'], 'sample')} of {counted(comparison['images'], 'image')} in all of them, "
        "paired by sample id. Means are over images; the samples of an image are averaged first. Intervals hold 95 %, "
        "by a bootstrap over images. p is of changed signs, corrected by Holm over the metrics of a pair.",
        "",
        f"Measured by {versions.get('metrics_version')}, {versions.get('tracker')} {versions.get('tracker_version')}.",
        "",
        "| | samples | not shared | failed | location |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {side['name']} | {side['samples']} | {side['not_shared']} | {side['failed']} | {side['url']} |"
            for side in comparison["sides"]
        ),
    ]
    lines += [f"\nNote: {note}." for note in comparison["notes"]]
    for pair in comparison["pairs"]:
        lines += ["", f"## {pair['other']} against {pair['base']}", "", *_table(pair, pair["metrics"])]
        for kind, groups in pair["strata"].items():
            lines += ["", f"### By {kind}", "", *_strata_table(groups)]
    if published:
        lines += ["", *published_lines()]
    return "\n".join(lines) + "\n"


def _table(pair: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"| metric | better | {pair['base']} | {pair['other']} | difference | p | wins, ties, losses | images | null: "
        f"{pair['base']}, {pair['other']} |",
        "|" + " --- |" * 9,
    ]
    for row in rows:
        unit = f", {row['unit']}" if row["unit"] else ""
        lines.append(
            f"| `{row['metric']}`{unit} | {row['better']} | {_number(row['base_mean'])} | "
            f"{_number(row['other_mean'])} | {_with_interval(row)} | {_p(row['p_holm'])} | "
            f"{row['wins']}, {row['ties']}, {row['losses']} | {row['images']} | "
            f"{_percent(row['base_null_rate'])}, {_percent(row['other_null_rate'])} |"
        )
    return lines


def _strata_table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    if not groups:
        return ["What was asked of the samples is not known."]
    names = [row["metric"] for row in next(iter(groups.values())) if row["metric"] in IN_STRATA]
    lines = [f"| | {' | '.join(f'`{name}`' for name in names)} |", "|" + " --- |" * (1 + len(names))]
    for group, rows in groups.items():
        by_name = {row["metric"]: row for row in rows}
        cells = [f"{_with_interval(by_name[name])}, {counted(by_name[name]['images'], 'image')}" for name in names]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _with_interval(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    if row["interval"] is None:
        return f"{row['difference']:+.3f}"
    low, high = row["interval"]
    return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def drawing(comparison: Mapping[str, Any]) -> bytes:
    """A PNG: each metric's change against the base, in percent of the base's mean, better to the right."""
    blocks = [(pair, [row for row in pair["metrics"] if _relative(row) is not None]) for pair in comparison["pairs"]]
    height = 2 * MARGIN_PX + sum((3 + max(len(rows), 1)) * ROW_PX for _, rows in blocks)
    picture = Image.new("RGB", (2 * MARGIN_PX + LABEL_PX + PLOT_PX + NOTE_PX, height), PAPER)
    top = MARGIN_PX
    for pair, rows in blocks:
        top = _draw_block(ImageDraw.Draw(picture), pair, rows, top)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _draw_block(draw: ImageDraw.ImageDraw, pair: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], top: int) -> int:
    font = ImageFont.load_default(FONT_SIZE)
    left = MARGIN_PX + LABEL_PX

    def write(x: int, y: int, text: str, colour: tuple[int, int, int], anchor: str = "lm") -> None:
        draw.text((x, y), text, font=font, fill=colour, anchor=anchor)

    write(
        MARGIN_PX,
        top + ROW_PX // 2,
        f"{pair['other']} against {pair['base']}: change of the mean, better to the right",
        INK,
    )
    bottom = top + (1 + max(len(rows), 1)) * ROW_PX
    for percent in (-100, -50, 0, 50, 100):
        x = _x(left, percent)
        draw.line((x, top + ROW_PX, x, bottom), fill=INK if percent == 0 else SOFT)
        write(x, bottom + ROW_PX // 2, f"{percent:+d} %" if percent else "0", OPEN, "mm")
    if not rows:
        write(left, top + ROW_PX + ROW_PX // 2, "no metric has a value in both", OPEN)
    for number, row in enumerate(rows):
        y = top + (1 + number) * ROW_PX + ROW_PX // 2
        value, ends = _relative(row) or (0.0, None)
        colour = OPEN if ends is None or ends[0] <= 0 <= ends[1] else GOOD if value > 0 else BAD
        write(MARGIN_PX, y, row["metric"], INK)
        if ends is not None:
            draw.line((_x(left, ends[0]), y, _x(left, ends[1]), y), fill=colour, width=3)
        x = _x(left, value)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        write(
            left + PLOT_PX + MARGIN_PX,
            y,
            f"{_number(row['base_mean'])} -> {_number(row['other_mean'])}, n {row['images']}",
            OPEN,
        )
    return bottom + 2 * ROW_PX


def _x(left: int, percent: float) -> int:
    return left + round(PLOT_PX * (min(max(percent, -LIMIT), LIMIT) + LIMIT) / (2 * LIMIT))


def _relative(row: Mapping[str, Any]) -> tuple[float, tuple[float, float] | None] | None:
    """The change and its interval in percent of the base's mean, positive where it is better. None without a mean."""
    base, difference = row["base_mean"], row["difference"]
    if not base or difference is None:
        return None
    scale = (-100 if row["better"] == "lower" else 100) / abs(base)
    if row["interval"] is None:
        return difference * scale, None
    low, high = sorted(end * scale for end in row["interval"])
    return difference * scale, (low, high)
