"""The rooms: who may import whom, where Ray may be imported, and what start-up must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sgi2v", "manifests", "pipeline", "jobs", "tools")

SGI2V = ("sgi2v",)
BELOW_MANIFESTS = (
    "sgi2v.canonical",
    "sgi2v.config",
    "sgi2v.errors",
    "sgi2v.locations",
    "sgi2v.settings",
    "sgi2v.source_video",
    "sgi2v.tracking",
    "sgi2v.trajectory",
    "sgi2v.video",
    "sgi2v.wording",
)
CONFIG = (*SGI2V, "manifests", "pipeline.config")
OUTPUT = (*CONFIG, "pipeline.output")
FLOW = (*OUTPUT, "pipeline.flow")
PLAN = (*OUTPUT, "pipeline.plan")
RUN = (*FLOW, "pipeline.plan", "pipeline.run")
INSPECT = (*FLOW, "pipeline.inspect")
EXPORT = (*OUTPUT, "pipeline.export")
EVALUATE = (*FLOW, "pipeline.evaluate")
REPORT = (*INSPECT, "pipeline.report")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "sgi2v": SGI2V,
    "manifests": ("manifests", *BELOW_MANIFESTS),
    "pipeline.config": CONFIG,
    "pipeline.output": OUTPUT,
    "pipeline.flow": FLOW,
    "pipeline.plan": PLAN,
    "pipeline.inspect": INSPECT,
    "pipeline.export": EXPORT,
    "pipeline.evaluate": EVALUATE,
    "pipeline.report": REPORT,
    "pipeline.run": RUN,
    "pipeline.cli": ("sgi2v", "manifests", "pipeline", "jobs"),
    "jobs": ("jobs",),
    "tools": ("tools", "sgi2v", "manifests", "pipeline.cli"),
}
"""Room -> what of the project it may import. A file belongs to the longest room that its module name starts with."""

RAY_ROOMS = ("pipeline.flow", "jobs")
"""The only rooms that import Ray."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the project by its dotted name."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from package import name` gives `package.name`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module: str, rooms: tuple[str, ...]) -> bool:
    """Whether a module is one of the rooms or lies below one of them."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def room_of(module: str) -> str | None:
    """The room that a module belongs to; None for a package's own `__init__`, which imports nothing."""
    rooms = [room for room in MAY_IMPORT if is_in(module, (room,))]
    return max(rooms, key=len, default=None)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    files = [(module, file) for module, file in modules() if room_of(module) == room]
    wrong = [
        f"{module} imports {imported}"
        for module, file in files
        for imported in imports(file)
        if is_in(imported, PACKAGES) and not is_in(imported, MAY_IMPORT[room])
    ]
    assert files
    assert wrong == []


def test_every_module_is_in_a_room() -> None:
    homeless = [module for module, file in modules() if room_of(module) is None and list(imports(file))]
    assert homeless == []


def test_ray_is_imported_in_its_rooms_only() -> None:
    wrong = [
        module
        for module, file in modules()
        if not is_in(module, RAY_ROOMS) and any(is_in(imported, ("ray",)) for imported in imports(file))
    ]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "import sgi2v.trajectory, sgi2v.errors, sgi2v.checkpoint",
            {"torch", "ray", "diffusers", "pyarrow", "av", "cv2"},
        ),
        (
            "import manifests.schema, manifests.validate, manifests.io, manifests.make, manifests.stats",
            {"torch", "ray", "diffusers"},
        ),
        ("import sgi2v.generate", {"ray", "pyarrow", "pandas", "fsspec", "av", "decord", "cv2"}),
        ("import pipeline.cli.main", {"torch", "ray", "diffusers", "transformers", "pyarrow", "pandas", "numpy"}),
        ("import jobs.submit", {"torch", "ray", "pyarrow"}),
        pytest.param(
            "import tests.benchmarks.gpu_lease.__main__",
            {"ray", "pyarrow", "pandas", "av", "decord", "cv2", "skimage", "pytest"},
            marks=pytest.mark.whole,
        ),
    ],
)
def test_what_an_import_does_not_load(statement: str, unwanted: set[str]) -> None:
    script = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(loaded.stdout.split()) & unwanted == set()


def test_no_file_is_called_utils() -> None:
    assert not [file for _, file in modules() if file.name == "utils.py"]
