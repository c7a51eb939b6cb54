"""A wheel of the package that runs here, installed or of a checkout, for clusters that have none or another."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

DISTRIBUTION = "sgi2v-batch"
PACKAGES = ("sgi2v", "manifests", "pipeline", "jobs")
ROOT = Path(__file__).parents[1]
TAGS = b"Wheel-Version: 1.0\nGenerator: sgi2v-batch\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
TIME = (1980, 1, 1, 0, 0, 0)
"""Of every file in the wheel, so that the same code gives the same bytes."""


def build_wheel(folder: Path) -> Path:
    """Write the wheel into a folder, and return its path.

    Its version has a digest of the files: pip leaves an installed package alone whose version is the same, and Ray
    keeps the environment that it made for a wheel of the same name.
    """
    contents = dict(_files())
    digest = hashlib.sha256()
    for name, data in sorted(contents.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    installed = distribution(DISTRIBUTION)
    version = f"{installed.version.partition('+')[0]}+ship.{digest.hexdigest()[:12]}"
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO")  # the latter in a checkout
    metadata = (text or "").replace(f"\nVersion: {installed.version}\n", f"\nVersion: {version}\n", 1)
    info = f"{stem}.dist-info"
    contents[f"{info}/METADATA"] = metadata.encode()
    contents[f"{info}/WHEEL"] = TAGS
    contents[f"{info}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    contents[f"{info}/RECORD"] = _record(contents, f"{info}/RECORD").encode()
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name, TIME), data, zipfile.ZIP_DEFLATED)
    return wheel


def _files() -> Iterator[tuple[str, bytes]]:
    """Every file of our packages by its place in the wheel."""
    yield "sgi2v_batch.py", (ROOT / "sgi2v_batch.py").read_bytes()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(ROOT).as_posix(), file.read_bytes()


def _record(contents: dict[str, bytes], own: str) -> str:
    """The table of a wheel's files, each with its digest and size."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(data)))
    rows.writerow((own, "", ""))
    return text.getvalue()
