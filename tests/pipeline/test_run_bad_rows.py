"""Every bad row fails with its own code, every odd one works, and no other row is affected."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import BOX, PATH, SIDE, picture, records, row, table, write_rows

pytestmark = pytest.mark.slow

GOOD = ("good-1", "good-2", "good-3", "good-4")

ODD_IMAGES: Mapping[str, Callable[[Path], None]] = {
    "cmyk.jpg": lambda path: picture(11).convert("CMYK").save(path),
    "grey-16-bit.png": lambda path: Image.fromarray(np.asarray(picture(12).convert("L")).astype(np.uint16) * 257).save(
        path
    ),
    "palette.png": lambda path: picture(13).quantize(32).save(path),
    "alpha.png": lambda path: _with_alpha(picture(14)).save(path),
    "exif-rotated.jpg": lambda path: _turned(picture(15)).save(path, exif=_exif(6)),
}
"""Images that are unusual but valid."""

BAD_IMAGES: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "missing.png": ("image_missing", lambda path: None),
    "unreachable.png": ("image_missing", lambda path: None),
    "folder.png": ("image_missing", lambda path: path.mkdir()),
    "zero-bytes.png": ("image_undecodable", lambda path: path.write_bytes(b"")),
    "text.png": ("image_undecodable", lambda path: path.write_text("this is no picture\n" * 20)),
    "truncated.jpg": ("image_undecodable", lambda path: path.write_bytes(_truncated_jpeg())),
    "bomb.png": ("image_too_large", lambda path: Image.new("1", (20_000, 20_000)).save(path)),
}

BAD_BOXES: Mapping[str, list[float]] = {
    "box-zero-area": [8.0, 8.0, 8.0, 40.0],
    "box-reversed": [40.0, 40.0, 8.0, 8.0],
    "box-outside": [200.0, 200.0, 240.0, 240.0],
    "box-nan": [math.nan, 8.0, 40.0, 40.0],
    "box-infinite": [8.0, 8.0, math.inf, 40.0],
}

BAD_PATHS: Mapping[str, list[list[list[float]]]] = {
    "path-one-point": [[[24.0, 24.0]]],
    "path-nan": [[[24.0, 24.0], [math.nan, 24.0]]],
    "path-counts-unequal": [PATH, PATH],
}

ODD_ROWS: Mapping[str, Mapping[str, Any]] = {
    "box-partly-outside": {"boxes": [[-20.0, 8.0, 30.0, 40.0]]},
    "path-leaves-frame": {"trajectories": [[[24.0, 24.0], [400.0, 24.0]]]},
    "no-boxes": {"boxes": [], "trajectories": []},
}


def _with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _turned(image: Image.Image) -> Image.Image:
    """Twice as wide as high, once its EXIF orientation is applied."""
    return image.resize((SIDE, 2 * SIDE)).transpose(Image.Transpose.ROTATE_90).resize((SIDE, 2 * SIDE))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _truncated_jpeg() -> bytes:
    sink = io.BytesIO()
    picture(16).save(sink, "JPEG")
    return sink.getvalue()[: len(sink.getvalue()) // 2]


def write_table_of_bad_rows(folder: Path) -> tuple[Path, dict[str, str]]:
    """A manifest, and the error code of each of its bad rows."""
    rows, codes = [], {}
    picture().save(folder / "good.png")
    for sample_id in GOOD:
        rows.append(row(sample_id, image="good.png"))
    for name, save in ODD_IMAGES.items():
        save(folder / name)
        rows.append(row(name, image=name))
    for name, changes in ODD_ROWS.items():
        rows.append(row(name, **{"image": "good.png", **changes}))
    for name, (code, spoil) in BAD_IMAGES.items():
        spoil(folder / name)
        rows.append(row(name, image="http://127.0.0.1:1/x.png" if name.startswith("unreachable") else name))
        codes[name] = code
    for name, box in BAD_BOXES.items():
        rows.append(row(name, image="good.png", boxes=[box]))
        codes[name] = "box_outside"
    for name, paths in BAD_PATHS.items():
        rows.append(row(name, image="good.png", boxes=[BOX], trajectories=paths))
        codes[name] = "trajectory_invalid"
    return write_rows(folder / "m.parquet", rows), codes


def test_every_bad_row_has_its_code_and_every_other_row_its_video(tmp_path: Path) -> None:
    manifest, codes = write_table_of_bad_rows(tmp_path)
    output = tmp_path / "out"
    with without_ray():
        process = run_tiny_here(manifest, output)
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr + process.stdout

    written = records(output)
    works = {*GOOD, *ODD_IMAGES, *ODD_ROWS}
    assert {name: record["error_code"] for name, record in written.items() if record["status"] == "failed"} == codes
    assert {name for name, record in written.items() if record["status"] == "committed"} == works
    assert set(table(output)["sample_id"].to_pylist()) == works
    assert written["no-boxes"]["guided"] is False
    assert written["no-boxes"]["null_reason"] == "no_boxes"
    assert written["good-1"]["guided"] is True
    assert len({written[name]["frames_sha256"] for name in GOOD}) == len(GOOD), "every sample has its own seed"

    failures = {line["sample_id"]: line for line in table(output, "failures.parquet").to_pylist()}
    assert {name: line["error_code"] for name, line in failures.items()} == codes
    for name, line in failures.items():
        assert line["attempts"] == 1
        assert len(line["message"]) > 20, name
        assert "Traceback" not in line["message"], name
        assert f"{name} FAILED {codes[name]}: " in process.stderr
    for code in set(codes.values()):
        assert f"  failed     {list(codes.values()).count(code):>6}  {code}" in process.stdout.splitlines()

    # one image is there now: its row is made, the others fail again
    picture().save(tmp_path / "missing.png")
    with without_ray():
        again = run_tiny_here(manifest, output, "--retry-failed")
    assert again.returncode == 1, again.stderr
    assert f"{len(written)} rows: {len(works)} done before, {len(codes)} to do" in again.stderr
    written = records(output)
    assert (written["missing.png"]["status"], written["missing.png"]["attempts"]) == ("committed", 2)
    failures = {line["sample_id"]: line for line in table(output, "failures.parquet").to_pylist()}
    assert set(failures) == set(codes) - {"missing.png"}
    assert {line["attempts"] for line in failures.values()} == {2}
    assert set(table(output)["sample_id"].to_pylist()) == works | {"missing.png"}

    status = here("status", output)
    assert status.returncode == 0
    assert status.stdout.startswith(f"{len(works) + 1} made, {len(codes) - 1} failed, 0 left, of {len(written)} rows\n")


def test_a_dry_run_lists_the_same_rows_and_makes_nothing(tmp_path: Path) -> None:
    manifest, codes = write_table_of_bad_rows(tmp_path)
    process = run_tiny_here(manifest, tmp_path / "out", "--dry-run")
    assert process.returncode == 2, process.stderr
    assert not (tmp_path / "out").exists()
    for name in set(codes) - {"unreachable.png"}:
        assert f"({name})" in process.stdout
    assert not [name for name in (*GOOD, *ODD_IMAGES, *ODD_ROWS) if f"({name})" in process.stdout]
    assert pq.read_table(manifest).num_rows == sum(map(len, (GOOD, ODD_IMAGES, ODD_ROWS, codes)))
