"""The pages are true: every command and snippet in them runs, and nothing that a user meets is missing from them.

A block under a line `<!-- not run: REASON -->` is not run, but its commands must exist and take its options.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from skimage import data

from pipeline.config import check_settings
from sgi2v.errors import ErrorCode
from sgi2v.metrics.following import NullReason
from tests.pipeline.in_process import here, without_ray
from tools.reference import PAGE, commands, reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = dict(commands())


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    is_run: bool


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages."""
    fence = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(page, text[: match.start(2)].count("\n") + 1, match[2], match[3], match[1] is None)
        for page in PAGES
        for text in [page.read_text()]
        for match in fence.finditer(text)
        if match[2] in languages
    ]


def lines(block: Block) -> Iterator[list[str]]:
    """The words of every command of a shell block, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


RUN_PAGES = sorted({block.page for block in blocks("sh", "python") if block.is_run})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of, shared by all: photos, the demo's manifest, and a finished run of it."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "photos").mkdir()
    for name, picture in (("cat", data.chelsea()), ("cup", data.coffee()), ("rocket", data.rocket())):
        Image.fromarray(picture).save(folder / "photos" / f"{name}.png")
    shutil.copytree(ROOT / "manifests" / "demo", folder / "manifests" / "demo")
    with without_ray():
        demo = str(folder / "manifests" / "demo" / "demo.parquet")
        made = here("run", demo, "--model", "embedded", "--preset", "scene", "--output", folder / "runs" / "demo")
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted({block.page for block in blocks("sh", "python") if block.is_run}), ids=lambda page: page.name
)
def test_every_command_and_snippet_of_a_page_runs(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    for block in blocks("sh", "python"):
        if block.page != page or not block.is_run:
            continue
        if block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), {"__name__": "page"})
            continue
        for program, *words in lines(block):
            assert program == "sgi2v-batch", f"{page}:{block.line}: {program} is not run by this test"
            words, _, target = " ".join(map(shlex.quote, words)).partition(" '>' ")
            with without_ray():
                done = here(*shlex.split(words))
            assert done.returncode == 0, f"{page}:{block.line}: {words}\n{done.stdout}{done.stderr}"
            if target:
                Path(target).write_text(done.stdout)


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: f"{block.page.name}:{block.line}")
def test_commands_of_the_pages_take_their_options(block: Block) -> None:
    for words in lines(block):
        if words[0] != "sgi2v-batch" or words[1].startswith("-"):
            continue
        path = next(" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in COMMANDS)
        given = words[len(path.split()) :]
        given = given[: given.index(">")] if ">" in given else given
        COMMANDS[path].make_context(path, given, resilient_parsing=True)


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: f"{block.page.name}:{block.line}")
def test_settings_of_the_pages_are_settings(block: Block) -> None:
    check_settings(tomllib.loads(block.text))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_help_ends_with_an_example(words: str) -> None:
    command: Any = COMMANDS[words]
    assert f"Example: {words}" in (command.epilog or command.help).replace("\n", " ")


def test_the_reference_is_what_the_program_says() -> None:
    assert PAGE.read_text() == reference(), "run `python -m tools.reference`"


def test_every_code_of_an_error_and_of_a_null_is_on_its_page() -> None:
    troubleshooting, metrics = ((ROOT / "docs" / name).read_text() for name in ("troubleshooting.md", "metrics.md"))
    assert [code for code in ErrorCode if f"`{code}`" not in troubleshooting] == []
    assert [reason for reason in NullReason if f"`{reason}`" not in metrics] == []


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "index.html").read_text()
    assert [site for site in ("fonts.g", "unpkg.com", "cdn.") if site in page] == []
