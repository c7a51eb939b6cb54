"""Every option is declared once, reaches what it names, and comes back the same from the command line of a job."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.cli.options import LocalRunOptions, RunOptions, SampleOptions, command_line, option, settings_of, takes
from pipeline.cli.run import request_of

PLAIN = LocalRunOptions(model="embedded")
GIVEN: dict[str, dict[str, Any]] = {
    "model": {"model": str(Path(__file__).parents[3] / "tests" / "golden" / "checkpoint")},
    "dtype": {"dtype": "bfloat16"},
    "preset": {"preset": "fast"},
    "height": {"height": 128},
    "width": {"width": 192},
    "fit": {"fit": "pad"},
    "memory": {"memory": "low"},
    "root": {"root": ["/data"], "untrusted": True},
    "output": {"output": "elsewhere"},
    "workers": {"workers": "1:3"},
    "gpus_per_worker": {"gpus_per_worker": 0.5},
    "accelerator_type": {"accelerator_type": "A100"},
    "shard": {"shard": "1/3"},
    "notify": {"notify": "https://hooks.example.com/1"},
    "keep": {"candidates": 2, "keep": "control_gain > 0.6"},
    "stop_early": {"candidates": 2, "keep": "control_gain > 0.6", "stop_early": True},
    "baseline": {"baseline": "unguided"},
    "sample_timeout": {"sample_timeout": 60.0},
    "address": {"address": "10.0.0.1:6379"},
}
"""Values of options whose type does not suggest one."""
REFUSED = {"revision": "main"}
"""Options that the embedded model refuses, which shows that they reach it."""


def values_of(name: str, hint: str) -> dict[str, Any]:
    """A value other than the default for an option."""
    if name in GIVEN:
        return GIVEN[name]
    return {name: True if "bool" in hint else 3}


def unreached(options_class: type[LocalRunOptions]) -> list[str]:
    """The options of a class that change nothing in what `run` is asked to do."""
    plain = options_class(model="embedded")
    silent = []
    for field in fields(options_class):
        if field.name in REFUSED or field.name == "config":
            continue
        if request_of("m.parquet", replace(plain, **values_of(field.name, str(field.type)))) == request_of(
            "m.parquet", plain
        ):
            silent.append(field.name)
    return silent


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_every_option_of_run_changes_what_is_run() -> None:
    assert unreached(LocalRunOptions) == []


def test_an_option_that_reaches_nothing_is_found() -> None:
    @dataclass(frozen=True)
    class WithExperiment(LocalRunOptions):
        experiment: Annotated[int | None, option("An option that nobody reads.")] = None

    assert unreached(WithExperiment) == ["experiment"]


def test_the_revision_reaches_the_model() -> None:
    from sgi2v.errors import ModelError

    with pytest.raises(ModelError, match="revision"):
        request_of("m.parquet", replace(PLAIN, **REFUSED))


def test_a_settings_file_is_read_and_options_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[run]\nworkers = 3\ncompile = true\nuntrusted = true\nroots = ['/data']\n[sampler]\nsteps = 7\n")
    with_file = replace(PLAIN, config=str(file))
    settled = request_of("m.parquet", with_file).config
    assert (settled.execution.workers, settled.sampler.steps) == (3, 7)
    assert settled.execution.compile
    settled = request_of("m.parquet", replace(with_file, workers=2, compile=False, untrusted=False)).config
    assert settled.execution.workers == 2
    assert not settled.execution.compile
    assert settled.execution.access.roots is None, "--no-untrusted drops the file's roots"


@pytest.mark.parametrize("field", fields(RunOptions), ids=[field.name for field in fields(RunOptions)])
def test_a_job_gets_the_options_that_were_given(field: Any) -> None:
    given = RunOptions(**(REFUSED if field.name in REFUSED else values_of(field.name, str(field.type))))
    if field.name == "config":
        given = RunOptions(config="settings.toml")
    received: list[RunOptions] = []
    echo = typer.Typer()

    @echo.command()
    @takes(RunOptions)
    def run(manifest: str, options: RunOptions) -> None:
        received.append(options)

    words = command_line("m.parquet", given)
    assert words[:3] == ["sgi2v-batch", "run", "m.parquet"]
    result = CliRunner().invoke(echo, words[2:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert received == [given]


def test_a_job_gets_what_was_switched_off() -> None:
    assert command_line("m.parquet", RunOptions(compile=False, untrusted=False)) == [
        *("sgi2v-batch", "run", "m.parquet"),
        *("--no-compile", "--no-untrusted"),
    ]


def booleans() -> list[tuple[str, Any]]:
    """Every boolean option of every command."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    groups = {**commands, **{f"manifest {name}": each for name, each in commands["manifest"].commands.items()}}
    return [
        (f"{name} {parameter.opts[0]}", parameter)
        for name, command in groups.items()
        for parameter in command.params
        if getattr(parameter, "is_flag", False) and parameter.name != "help"
    ]


@pytest.mark.parametrize(("name", "parameter"), booleans(), ids=[name for name, _ in booleans()])
def test_every_boolean_can_be_switched_off(name: str, parameter: Any) -> None:
    assert parameter.secondary_opts == [parameter.opts[0].replace("--", "--no-")], name


def test_options_that_are_zero_or_false_are_given() -> None:
    given = settings_of(RunOptions(seed=0, untrusted=False, root=[], workers=None))
    assert given == {"run": {"seed": 0, "untrusted": False}}


def test_bench_takes_the_options_of_a_sample() -> None:
    command = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    assert {field.name for field in fields(SampleOptions)} <= {parameter.name for parameter in command.params}


def test_an_error_about_an_option_names_the_option(tmp_path: Path) -> None:
    from sgi2v.errors import ConfigError

    with pytest.raises(ConfigError, match=r"^--workers must be 1 or more, not 0$"):
        request_of("m.parquet", replace(PLAIN, workers=0))
    file = tmp_path / "settings.toml"
    file.write_text("[run]\nworkers = 0\n")
    with pytest.raises(ConfigError, match=r"^run\.workers must be 1 or more, not 0$"):
        request_of("m.parquet", replace(PLAIN, config=str(file)))
