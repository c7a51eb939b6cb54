"""Outputs for tests of a report, made by formula: a disc that follows its path more or less well, and its labels."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.schema import MANIFEST_SCHEMA
from pipeline.output.catalog import Catalog
from pipeline.output.records import SampleRecord, video_key
from pipeline.output.run_file import create_run_file
from pipeline.output.storage import Storage
from pipeline.output.tables import write_tables
from sgi2v.video import encode_mp4
from tests.pipeline.output.outputs import settings

FRAMES, HEIGHT, WIDTH = 8, 96, 128
RADIUS = 12
KINDS = 10
"""Different videos; further samples have copies of them."""
EPOCH = 1


def asked_path(number: int) -> NDArray[np.float64]:
    """[T, 2] asked centres of a sample's box."""
    kind = number % KINDS
    angle, length = kind * 2.4, 10.0 + 4 * (kind % 8)
    shift_2 = length * np.array([np.cos(angle), np.sin(angle)])
    return np.array([WIDTH / 2, HEIGHT / 2]) - shift_2 / 2 + np.linspace(0, 1, FRAMES)[:, None] * shift_2


def measured_path(number: int) -> NDArray[np.float64]:
    """[T, 2]: a share of the asked motion, between a still disc and one that follows."""
    path_T2 = asked_path(number)
    return path_T2[0] + (path_T2 - path_T2[0]) * gain_of(number)


def gain_of(number: int) -> float:
    """The control gain of a sample: each differs from the others, and the first is the worst of the first ten."""
    return -0.2 + 1.1 * (number % KINDS * 7 % 10 + number / 10**6) / 10


@cache
def video(kind: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """An mp4 of a disc on a gradient."""
    y, x = np.mgrid[:height, :width]
    ground_HW3 = np.stack([60 + 80 * x / width, 70 + 60 * y / height, 110 + 0 * x], axis=-1)
    colour = np.random.default_rng(kind).integers(120, 256, 3)
    frames = []
    for cx, cy in measured_path(kind):
        inside_HW = (x - cx * width / WIDTH) ** 2 + (y - cy * height / HEIGHT) ** 2 < RADIUS**2
        frames.append(np.where(inside_HW[..., None], colour, ground_HW3).astype(np.uint8))
    return encode_mp4(np.stack(frames), 7)


def box_around(centres_T2: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([centres_T2 - RADIUS, centres_T2 + RADIUS], axis=1)


def sample_id(number: int) -> str:
    return f"disc-{number:05d}"


def record(number: int, data: bytes, **changes: Any) -> SampleRecord:
    name = sample_id(number)
    digest = hashlib.sha256(data).hexdigest()
    generator = np.random.default_rng(number)
    gain, still = gain_of(number), 20.0
    metrics = {
        **{"objmc_px": still * (1 - gain), "static_objmc_px": still, "control_gain": gain, "visible_fraction": 1.0},
        **{"background_change": float(generator.gamma(2, 1.5)), "background_motion_px": float(generator.gamma(1, 0.5))},
        **{"flicker": float(generator.gamma(3, 1.0)), "metrics_version": "objmc/v2", "tracker": "lucas-kanade"},
    }
    values: dict[str, Any] = {
        **{"file_name": video_key(name, digest[:8]), "video_sha256": digest, "video_bytes": len(data)},
        **{"seed": number, "guided": True, "num_boxes": 1, "num_still": 0, "num_frames": FRAMES, "fps": 7},
        **{"height": HEIGHT, "width": WIDTH, "fit": "crop", "device": "cpu", "memory": "high"},
        **{"source_box": [0.0, 0.0, 2.0 * WIDTH, 2.0 * HEIGHT], "picture_box": [0, 0, WIDTH, HEIGHT]},
        **{"loss_first": [1.0, 0.8, 0.7], "loss_last": [0.6, 0.5, 0.45], "peak_gpu_bytes": 2**30 + number},
        **{f"seconds_{phase}": float(generator.gamma(4, 0.5)) for phase in ("load", "guide", "denoise", "decode")},
        "metrics": metrics,
    }
    return SampleRecord(name, "committed", 1, "row", "print", **{**values, **changes})


def labels_of(number: int) -> dict[str, Any]:
    """One row of labels.parquet."""
    asked_T2, measured_T2 = asked_path(number), measured_path(number)
    return {
        **{"sample_id": sample_id(number), "box": 0, "still": False, "num_frames": FRAMES},
        **{"asked_boxes": box_around(asked_T2).tolist(), "asked_centres": asked_T2.tolist()},
        **{"measured_boxes": [*box_around(measured_T2).tolist()[:-1], None]},
        **{"measured_centres": [*measured_T2.tolist()[:-1], None], "visible_fraction": [1.0] * FRAMES},
    }


LABELS_SCHEMA = pa.schema(
    {
        **{"sample_id": pa.string(), "box": pa.int64(), "still": pa.bool_(), "num_frames": pa.int64()},
        **dict.fromkeys(("asked_boxes", "asked_centres"), pa.list_(pa.list_(pa.float64()))),
        **dict.fromkeys(("measured_boxes", "measured_centres"), pa.list_(pa.list_(pa.float64()))),
        **{"visible_fraction": pa.list_(pa.float64()), "null_reason": pa.string()},
    }
)


def manifest_row(number: int) -> dict[str, Any]:
    """The row in pixels of a picture of twice the size."""
    path_T2 = asked_path(number)
    return {
        **{"sample_id": sample_id(number), "image": f"{number}.png", "scales": None, "seed": None},
        **{"boxes": [(2 * box_around(path_T2)[0]).tolist()], "trajectories": [(2 * path_T2).tolist()]},
    }


def make_output(
    folder: Path,
    count: int,
    failed: int = 0,
    labels: bool = True,
    changes: dict[int, dict[str, Any]] | None = None,
    columns: dict[str, pa.Array] | None = None,
) -> Path:
    """An output with `count` videos, then `failed` failures. changes: of records by number. columns: own ones."""
    storage = Storage(str(folder))
    rows = [manifest_row(number) for number in range(count + failed)]
    manifest = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    for name, values in (columns or {}).items():
        manifest = manifest.append_column(name, values)
    create_run_file(storage, settings(sampler={"num_frames": FRAMES}), "0" * 64, len(rows))
    catalog = Catalog(storage)
    (folder / "videos").mkdir(parents=True)
    for number in range(count):
        data = video(number % KINDS)
        made = record(number, data, **(changes or {}).get(number, {}))
        if made.file_name is not None:
            (folder / made.file_name).write_bytes(data)
        catalog.add(made)
        catalog.seal_if_due(EPOCH)
    for number in range(count, count + failed):
        code = ("image_missing", "out_of_memory", "box_outside")[number % 3]
        made = SampleRecord(
            sample_id(number), "failed", 1, "row", "print", error_code=code, message=f"{number} went wrong: do this"
        )
        catalog.add(made)
    catalog.seal(EPOCH)
    write_tables(catalog, manifest, EPOCH)
    if labels:
        table = pa.Table.from_pylist([labels_of(number) for number in range(count)], schema=LABELS_SCHEMA)
        pq.write_table(table, folder / "labels.parquet")
    return folder
