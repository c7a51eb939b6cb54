"""Manifests from example folders of the SG-I2V publication."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.io import read_manifest, write_manifest
from manifests.schema import MANIFEST_SCHEMA, parse_row
from manifests.sources.sgi2v import from_sgi2v
from manifests.validate import validate
from sgi2v.errors import ManifestError

PATHS = np.array([[[10, 10], [30, 20], *[[20 + t, 15 + 2 * t] for t in range(14)]]] * 2, np.float64)


def example(folder: Path, paths: np.ndarray = PATHS) -> Path:
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 48), "grey").save(folder / "img.png")
    np.save(folder / "traj.npy", paths)
    return folder


def test_folders_become_rows_in_natural_order(tmp_path: Path) -> None:
    for name in ("108", "9", "15", "cat"):
        example(tmp_path / "examples" / name)
    (tmp_path / "examples" / "README.md").write_text("not an example")
    manifest = from_sgi2v(str(tmp_path / "examples"), relative_to=str(tmp_path / "out"))
    assert manifest.schema.equals(MANIFEST_SCHEMA)
    assert manifest.column("sample_id").to_pylist() == ["9", "15", "108", "cat"]
    assert manifest.column("image").to_pylist()[0] == "../examples/9/img.png"
    sample = parse_row(manifest.to_pylist()[0])
    assert sample.boxes_N4.tolist() == [[10, 10, 30, 20]] * 2
    assert np.array_equal(sample.trajectories[0], PATHS[0, 2:])
    assert (sample.scales, sample.seed) == (None, None)
    path = str(tmp_path / "out" / "m.parquet")
    write_manifest(manifest, path)
    assert validate(read_manifest(path), path) == []


def test_image_paths_are_relative_where_possible(tmp_path: Path) -> None:
    folder = example(tmp_path / "examples" / "9").parent
    image = str(folder / "9" / "img.png")
    expected = {str(folder): "9/img.png", str(tmp_path): "examples/9/img.png", "/": image, "s3://b/d": image}
    for relative_to, path in expected.items():
        assert from_sgi2v(str(folder), relative_to).column("image").to_pylist() == [path]


def test_every_bad_folder_is_named(tmp_path: Path) -> None:
    example(tmp_path / "good")
    (example(tmp_path / "no-image") / "img.png").unlink()
    (example(tmp_path / "no-paths") / "traj.npy").unlink()
    example(tmp_path / "flat", PATHS[0])
    example(tmp_path / "short", PATHS[:, :3])
    example(tmp_path / "xyz", np.zeros((1, 16, 3)))
    example(tmp_path / "words", np.full((1, 16, 2), "a"))
    np.save(example(tmp_path / "pickled") / "traj.npy", np.array([{}]), allow_pickle=True)
    (example(tmp_path / "cut") / "traj.npy").write_bytes(b"\x93NUMPY")
    (example(tmp_path / "empty") / "traj.npy").write_bytes(b"")
    with pytest.raises(ManifestError) as caught:
        from_sgi2v(str(tmp_path), str(tmp_path))
    named = [problem.sample_id for problem in caught.value.problems]
    assert named == ["cut", "empty", "flat", "no-image", "no-paths", "pickled", "short", "words", "xyz"]
    assert {problem.code for problem in caught.value.problems} == {"example_invalid"}


def write_header(file: Path, header: str) -> None:
    """A .npy file of this header, with the data of two numbers."""
    text = header.ljust(117) + "\n"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin-1") + bytes(16))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 16, 2)}", "not an array of numbers"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 4, 2)}", "not an array of numbers"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 16, 2)}", "not an array of numbers"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': ('a', 16, 2)}", "not an array of numbers"),
        ("{'descr': '\x1b[31m', 'fortran_order': False, 'shape': (1, 16, 2)}", "not an array of numbers"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1, 16, 2)}", "not an array of numbers"),
        ("{'descr': '<f8', 'shape': (1, 16, 2)}", "not an array of numbers"),
        ("(" * 100, "not an array of numbers"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': ()}", "expected numbers"),
    ],
)
def test_a_header_that_promises_what_is_not_there_gets_a_message(tmp_path: Path, header: str, reason: str) -> None:
    write_header(example(tmp_path / "a") / "traj.npy", header)
    with pytest.raises(ManifestError, match=reason) as caught:
        from_sgi2v(str(tmp_path), str(tmp_path))
    assert "\x1b" not in str(caught.value)


def test_an_archive_and_a_huge_array_get_a_message(tmp_path: Path) -> None:
    with (example(tmp_path / "archive") / "traj.npy").open("wb") as file:
        np.savez(file, traj=PATHS)
    (example(tmp_path / "text") / "traj.npy").write_text("10 10 30 20")
    example(tmp_path / "z-big")
    huge = np.lib.format.open_memmap(  # a file with a hole of 16 GB
        tmp_path / "z-big" / "traj.npy", mode="w+", dtype=np.float64, shape=(1, 10**9, 2)
    )
    del huge
    with pytest.raises(ManifestError) as caught:
        from_sgi2v(str(tmp_path), str(tmp_path))
    messages = [problem.message for problem in caught.value.problems]
    assert messages[0] == "traj.npy is an archive of arrays (numpy.savez): save the one array with numpy.save"
    assert messages[1].startswith("traj.npy is not an array of numbers (")
    assert messages[2] == (
        "traj.npy is [boxes, 2 + points, 2] = [1, 1000000000, 2]: give 256 boxes and 10,000 points for each, at most"
    )


def test_folder_names_that_are_not_ids_are_refused(tmp_path: Path) -> None:
    example(tmp_path / "my cat")
    with pytest.raises(ManifestError, match="cannot be a file name"):
        from_sgi2v(str(tmp_path), str(tmp_path))


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        from_sgi2v(str(tmp_path / "none"), str(tmp_path))
    with pytest.raises(ManifestError, match="no example folders"):
        from_sgi2v(str(tmp_path), str(tmp_path))
