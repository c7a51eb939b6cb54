"""`import sgi2v`: which names it offers, what they are, and what using them loads."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import sgi2v

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers")


def run(script: str) -> list[str]:
    """Words that a script prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.parametrize("name", sgi2v.__all__)
def test_every_public_name_is_the_object_of_its_module(name: str) -> None:
    value = getattr(sgi2v, name)
    assert value is vars(sys.modules[value.__module__])[name]
    assert value.__module__.startswith("sgi2v.")


def test_the_names_are_listed_and_others_are_refused() -> None:
    assert {*sgi2v.__all__, "__version__", "__doc__"} <= set(dir(sgi2v))
    with pytest.raises(AttributeError, match="module 'sgi2v' has no attribute 'generat'"):
        sgi2v.generat  # noqa: B018


def test_the_version_is_that_of_the_installed_package() -> None:
    assert sgi2v.__version__ == version("sgi2v-batch")


@pytest.mark.parametrize(
    "statement",
    [
        "import sgi2v",
        "from sgi2v import BoxTracks",
        "from sgi2v import GuidanceConfig, ModelConfig, SamplerConfig",
        "from sgi2v import ConfigError, ModelError, SampleError, SGI2VError",
        "import sgi2v.trajectory",
        "import sgi2v; dir(sgi2v); sgi2v.__version__",
    ],
)
def test_light_names_load_no_torch(statement: str) -> None:
    loaded = run(f"import sys; {statement}; print(*sys.modules)")
    assert "sgi2v" in loaded
    assert not {name for name in loaded if name.startswith(HEAVY)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "statements",
    [
        "from sgi2v import generate",
        "import sgi2v.generate; generate = sgi2v.generate",
        "from sgi2v.generate import Generation; from sgi2v import generate",
        "from sgi2v import generate; import sgi2v.generate; generate = sgi2v.generate",
    ],
)
def test_generate_is_the_function_whatever_is_imported_first(statements: str) -> None:
    assert run(f"{statements}; print(type(generate).__name__, generate.__module__)") == ["function", "sgi2v.generate"]


def test_the_submodule_generate_is_importable_by_name() -> None:
    module = import_module("sgi2v.generate")
    assert module.generate is sgi2v.generate
    assert sys.modules["sgi2v.generate"] is module


def test_type_checkers_see_the_types() -> None:
    assert (Path(sgi2v.__file__).parent / "py.typed").exists()


def test_the_package_is_pickled_by_name() -> None:
    """Ray pickles the modules that a user's function uses, and knows plain modules only."""
    assert pickle.loads(pickle.dumps(sgi2v)) is sgi2v  # noqa: S301
