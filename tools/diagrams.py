"""Draws the diagrams of docs/how-it-works.md: python -m tools.diagrams. SVG, in the colours of the page's text."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
CHARACTER, LINE, PADDING = 7.3, 18, 12
"""Width of a character, height of a line, and space beside the text of a box, pixels."""
ACCENT, QUIET = "#4f6bed", "#8a93a6"


class Box(NamedTuple):
    """A box with lines of text; the first is its name."""

    x: int
    y: int
    lines: tuple[str, ...]

    @property
    def width(self) -> int:
        """Pixels."""
        return round(max(map(len, self.lines)) * CHARACTER) + 2 * PADDING

    @property
    def height(self) -> int:
        """Pixels."""
        return len(self.lines) * LINE + PADDING

    def svg(self) -> str:
        """The box and its text."""
        texts = "".join(
            f'<text x="{self.x + self.width / 2}" y="{self.y + PADDING / 2 + LINE * (n + 0.75)}" '
            f'text-anchor="middle" font-weight="{600 if n == 0 else 400}">{escape(line)}</text>'
            for n, line in enumerate(self.lines)
        )
        frame = f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6"/>'
        return f"{frame}{texts}"


def arrow(start: tuple[float, float], end: tuple[float, float], label: str = "") -> str:
    """A line with a head, and a label above its middle."""
    (x0, y0), (x1, y1) = start, end
    line = f'<path d="M{x0} {y0} L{x1} {y1}" marker-end="url(#head)"/>'
    if not label:
        return line
    place = f'x="{(x0 + x1) / 2}" y="{(y0 + y1) / 2 - 6}" text-anchor="middle"'
    return f'{line}<text class="label" {place}>{escape(label)}</text>'


def right(one: Box, other: Box, label: str = "") -> str:
    """An arrow from the right side of a box to the left side of another."""
    y = one.y + min(one.height, other.height) / 2
    return arrow((one.x + one.width, y), (other.x - 4, y), label)


def down(one: Box, other: Box, label: str = "") -> str:
    """An arrow from the lower side of a box to the upper side of another."""
    x = max(one.x, other.x) + min(one.width, other.width) / 2
    return arrow((x, one.y + one.height), (x, other.y - 4), label)


def drawing(title: str, width: int, height: int, *parts: str) -> str:
    """An SVG that is read in light and dark pages."""
    style = (
        "text{font:13px system-ui,sans-serif;fill:currentColor}.label{font-size:12px;fill:" + QUIET + "}"
        "rect{fill:" + ACCENT + "22;stroke:" + ACCENT + "}path{fill:none;stroke:" + QUIET + ";stroke-width:1.5}"
        "svg{color:#24292f}@media (prefers-color-scheme:dark){svg{color:#e6e9ef}}"
    )
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" style="fill:{QUIET};stroke:none"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f"<title>{escape(title)}</title><style>{style}</style><defs>{head}</defs>{''.join(parts)}</svg>\n"
    )


def flow() -> str:
    """The way of one sample."""
    row = Box(10, 40, ("manifest row", "image, boxes, paths"))
    load = Box(200, 40, ("load (CPU)", "fetch, decode, check"))
    generate = Box(435, 40, ("generate (GPU)", "one model for life"))
    commit = Box(655, 40, ("commit (CPU)", "mp4, track, measure"))
    video, record = Box(560, 140, ("video",)), Box(690, 140, ("record",))
    tables = Box(800, 140, ("tables, card",))
    ledger = Box(200, 140, ("ledger", "starts, deadlines"))
    parts = [each.svg() for each in (row, load, generate, commit, video, record, tables, ledger)]
    arrows = [right(row, load), right(load, generate, "frame"), right(generate, commit, "frames")]
    arrows += [
        arrow((commit.x + 30, commit.y + commit.height), (video.x + 40, video.y - 4), "1"),
        arrow((commit.x + 70, commit.y + commit.height), (record.x + 30, record.y - 4), "2"),
        right(record, tables),
        arrow((load.x + 80, load.y + load.height), (ledger.x + 80, ledger.y - 4)),
        arrow((generate.x + 40, generate.y + generate.height), (ledger.x + ledger.width + 4, ledger.y + 12)),
    ]
    return drawing("From a manifest row to a record", 930, 200, *parts, *arrows)


def method() -> str:
    """One guided step."""
    latents = Box(10, 60, ("latents", "of all frames"))
    unet = Box(160, 60, ("U-Net, conditional", "attention to frame 0"))
    loss = Box(405, 60, ("loss", "box in frame t = box in frame 0"))
    merge = Box(710, 60, ("merge", "low frequencies only"))
    step = Box(710, 150, ("denoising step", "classifier-free guidance"))
    parts = [each.svg() for each in (latents, unet, loss, merge, step)]
    back = f"M{loss.x + 60} {loss.y} C{loss.x + 60} 10, {latents.x + 60} 10, {latents.x + 60} {latents.y - 4}"
    parts += [
        right(latents, unet),
        right(unet, loss, "features"),
        f'<path d="{back}" marker-end="url(#head)"/>',
        f'<text class="label" x="{(loss.x + latents.x) / 2 + 60}" y="16" text-anchor="middle">AdamW, 5 updates</text>',
        right(loss, merge, "then"),
        down(merge, step),
    ]
    return drawing("One guided step", 930, 210, *parts)


def commit() -> str:
    """The order of a commit."""
    names = ("1 look at the lease", "2 put the video", "3 look again", "4 put the record")
    notes = ("a newer one: stop", "a key of this attempt", "a newer one: delete, stop", "only if none is there")
    boxes, x = [], 10
    for name, note in zip(names, notes, strict=True):
        boxes.append(Box(x, 30, (name, note)))
        x += boxes[-1].width + 30
    done, lost = Box(boxes[3].x, 120, ("committed",)), Box(boxes[2].x, 120, ("delete the own video",))
    parts = [each.svg() for each in (*boxes, done, lost)]
    parts += [right(one, other) for one, other in pairwise(boxes)]
    parts += [
        arrow((boxes[3].x + 40, boxes[3].y + boxes[3].height), (done.x + 40, done.y - 4)),
        arrow((boxes[3].x + 10, boxes[3].y + boxes[3].height), (lost.x + lost.width + 2, lost.y + 6), "taken"),
    ]
    return drawing("The order of a commit", x, 170, *parts)


if __name__ == "__main__":
    for picture in (flow, method, commit):
        (PICTURES / f"{picture.__name__}.svg").write_text(picture())
