"""Reads a Dockerfile, and says what is wrong with ours."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jobs.wheel import PACKAGES
from tests.jobs.cluster_files import PROJECT, RAY, VERSION

INSTRUCTIONS = frozenset({"ARG", "CMD", "COPY", "ENV", "FROM", "LABEL", "RUN", "USER", "WORKDIR"})


@dataclass
class Stage:
    """One `FROM` and what follows it."""

    image: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]

    def arguments(self) -> dict[str, str]:
        return dict(value.partition("=")[::2] for value in self.values("ARG"))


def stages_of(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage, and the stages. Raises ValueError for a line that is no instruction."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    before, stages = Stage(""), list[Stage]()
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        name, _, value = line.strip().partition(" ")
        if not name:
            continue
        if name not in INSTRUCTIONS or not value:
            raise ValueError(f"{line!r} is no instruction")
        if name == "FROM":
            stages.append(Stage(value))
        else:
            (stages[-1] if stages else before).steps.append((name, value.strip()))
    return before.arguments(), stages


def dockerfile_problems(text: str, root: Path) -> Iterator[str]:
    """root: the folder that the image is built from."""
    try:
        arguments, stages = stages_of(text)
        build, final = stages
    except ValueError as error:
        yield str(error)
        return
    if not fits(arguments.get("PYTHON", ""), PROJECT["requires-python"]):
        yield f"Python {arguments.get('PYTHON')} is not within {PROJECT['requires-python']}"
    if build.image.partition(" ")[0] != final.image or not final.image.startswith("python:${PYTHON}-slim"):
        yield "the stages are not of one Python"
    inside = final.arguments()
    if inside.get("VERSION") != VERSION:
        yield f"VERSION is not pyproject.toml's, {VERSION}"
    if inside.get("RAY") != RAY:
        yield f"RAY is not that of constraints.txt, {RAY}"
    if not fits(RAY, next(each for each in PROJECT["dependencies"] if each.startswith("ray[")).partition("]")[2]):
        yield "the Ray of constraints.txt is not pyproject.toml's"
    checks = " ".join(final.values("RUN"))
    for what in ("sgi2v-batch --version", "${VERSION}", "ray.__version__", "${RAY}", "torch.version.cuda"):
        if what not in checks:
            yield f"the build does not check {what}"
    if final.values("USER")[-1:] in ([], ["root"], ["0"]):
        yield "the image runs as root"
    yield from install_problems(build, root)
    environment = dict(word.partition("=")[::2] for value in final.values("ENV") for word in shlex.split(value))
    for name in ("HF_HOME", "SGI2V_CACHE", "TORCHINDUCTOR_CACHE_DIR"):
        if not environment.get(name, "").startswith("/cache/"):
            yield f"{name} is not in /cache"
    if not environment.get("PATH", "").startswith("/opt/sgi2v/bin:"):
        yield "the package is not on the PATH"
    if not any("--from=build" in value and value.endswith("/opt/sgi2v /opt/sgi2v") for value in final.values("COPY")):
        yield "the package is not copied from the first stage"
    for program in ("bash", "procps", "gcc"):
        if not re.search(rf"\b{program}\b", checks):
            yield f"{program} is missing"


def install_problems(build: Stage, root: Path) -> Iterator[str]:
    """Packages that are not pinned, a PyTorch without CUDA, parts of the package that are not there."""
    commands = [part.strip() for value in build.values("RUN") for part in value.split("&&")]
    installs = [command for command in commands if command.startswith("pip install")]
    if not installs or not all("--constraint constraints.txt" in command for command in installs):
        yield "an install is not pinned by constraints.txt"
    if not re.fullmatch(r"https://download\.pytorch\.org/whl/cu\d+", build.arguments().get("TORCH_INDEX", "")):
        yield "PyTorch comes from no index with CUDA"
    if not any("$TORCH_INDEX" in command and command.endswith(" torch") for command in installs):
        yield "PyTorch is not taken from TORCH_INDEX"
    if not any("wheels/*.whl" in command for command in installs):
        yield "the wheel of the checkout is not installed"
    if not any(command.startswith("pip wheel --no-deps") for command in commands) or "pip check" not in commands:
        yield "the wheel of the checkout is not built, or not checked"
    copied = {word for value in build.values("COPY") for word in value.split()[:-1]}
    needed = {*PACKAGES, "sgi2v_batch.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    if copied != needed:
        yield f"copied is {sorted(copied ^ needed)} too much or too little"
    yield from (f"{name} is not there" for name in sorted(copied) if not (root / name).exists())


def fits(version: str, specifier: str) -> bool:
    """Whether a version is within a range of pyproject.toml."""
    from packaging.specifiers import SpecifierSet

    return bool(re.fullmatch(r"\d+(\.\d+)+", version)) and SpecifierSet(specifier).contains(version)
