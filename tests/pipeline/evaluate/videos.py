"""Tiny videos for evaluations, and `evaluate` in the test's process with a bare loop in place of Ray."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import pipeline.evaluate.run
from pipeline.flow.pools import Pool
from sgi2v.video import Frames, encode_mp4
from tests.sgi2v.metrics.made_up import pattern

T, H, W = 8, 64, 96
BOX = (10, 20, 34, 44)
STEP = 3
"""Pixels a frame to the right that the square is asked to go."""


def frames_of(step: int = STEP, seed: int = 0, num_frames: int = T) -> Frames:
    """A patterned square of 24 px that goes `step` px a frame to the right over a patterned ground."""
    ground, thing = pattern(seed, H, W, 8, 60, 200), pattern(seed + 100, 24, 24, 4, 20, 240)
    frames = np.repeat(ground[None], num_frames, axis=0)
    x0, y0, x1, y1 = BOX
    for t in range(num_frames):
        frames[t, y0:y1, x0 + step * t : x1 + step * t] = thing[:, : max(W - x0 - step * t, 0)]
    return frames


def row(sample_id: str, scale: int = 1, **more: Any) -> dict[str, Any]:
    """A manifest row for such a video, whose picture is `scale` times as large."""
    x0, y0, x1, y1 = (scale * side for side in BOX)
    start = [(x0 + x1) / 2, (y0 + y1) / 2]
    end = [start[0] + scale * STEP * (T - 1), start[1]]
    values = {"sample_id": sample_id, "image": f"{sample_id}.png", "boxes": [[x0, y0, x1, y1]]}
    return {**values, "trajectories": [[start, end]], **more}


def write_video(folder: Path, sample_id: str, frames_THWC: Frames, scale: int = 1) -> None:
    """The mp4 and its picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sample_id}.mp4").write_bytes(encode_mp4(frames_THWC, 7))
    picture = Image.fromarray(frames_THWC[0])
    picture.resize((scale * picture.width, scale * picture.height)).save(folder / f"{sample_id}.png")


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A manifest as JSON lines."""
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def folder_of(folder: Path, steps: Sequence[int], scale: int = 1) -> Path:
    """A folder of videos `s0`, `s1`, ... whose squares go so far, and its table."""
    for number, step in enumerate(steps):
        write_video(folder, f"s{number}", frames_of(step, number), scale)
    write_rows(
        folder / "boxes.jsonl", [row(f"s{number}", scale, video=f"s{number}.mp4") for number in range(len(steps))]
    )
    return folder


@contextmanager
def _no_session(*_: object) -> Iterator[tuple[Pool, str]]:
    yield Pool(1, 1, 1.0), "no Ray"


def _bare_flow(
    rows: pa.Table, stage: type, arguments: tuple[Any, ...], *_: object
) -> Generator[dict[str, Any], None, None]:
    made = stage(*arguments)
    for number in range(rows.num_rows):
        yield from made(rows.slice(number, 1)).to_pylist()


@contextmanager
def evaluate_without_ray() -> Iterator[None]:
    """Let evaluations of this process use the bare loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.evaluate.run, "measuring_session", _no_session)
        patch.setattr(pipeline.evaluate.run, "measuring_flow", _bare_flow)
        yield


@pytest.fixture
def without_ray() -> Iterator[None]:
    """`evaluate_without_ray` for a whole test."""
    with evaluate_without_ray():
        yield
