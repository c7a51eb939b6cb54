"""Imports run one way: sgi2v <- manifests <- pipeline; jobs stands alone; and what start-up must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sgi2v", "manifests", "pipeline", "jobs")
MAY_IMPORT = {
    "sgi2v": {"sgi2v"},
    "manifests": {"manifests", "sgi2v.trajectory", "sgi2v.errors", "sgi2v.tiny.world"},
    "pipeline": {"pipeline", "manifests", "sgi2v"},
    "jobs": {"jobs"},
}
"""Package -> what of the project it may import. `pipeline/cli.py` alone imports jobs as well."""
RAY_ROOMS = {"pipeline", "jobs"}


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            yield node.module if node.module not in PACKAGES else f"{node.module}.{node.names[0].name}"


def allowed(package: str, file: Path, module: str) -> bool:
    if module.partition(".")[0] not in PACKAGES:
        return True
    rooms = set(MAY_IMPORT[package])
    if file == ROOT / "pipeline" / "cli.py":
        rooms.add("jobs")
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for module in imports(file)
        if not allowed(package, file, module)
    ]
    assert wrong == []


def test_ray_stays_in_its_rooms() -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for package in set(PACKAGES) - RAY_ROOMS
        for file in (ROOT / package).rglob("*.py")
        if any(module.partition(".")[0] == "ray" for module in imports(file))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "import sgi2v.trajectory, sgi2v.errors, sgi2v.checkpoint",
            {"torch", "ray", "diffusers", "pyarrow", "av", "cv2"},
        ),
        ("import manifests.schema, manifests.validate, manifests.io", {"torch", "ray", "diffusers"}),
        ("import sgi2v.generate", {"ray", "pyarrow", "pandas", "fsspec", "av", "decord", "cv2"}),
        ("import pipeline.cli", {"torch", "ray", "diffusers", "transformers", "pyarrow", "pandas", "numpy"}),
        ("import jobs.submit", {"torch", "ray", "pyarrow"}),
    ],
)
def test_what_an_import_does_not_load(statement: str, unwanted: set[str]) -> None:
    script = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(loaded.stdout.split()) & unwanted == set()


def test_no_file_is_called_utils() -> None:
    assert not [file for package in PACKAGES for file in (ROOT / package).rglob("utils.py")]
