"""Rows that look wrong: `validate`, `show`, `--dry-run` and `run` warn of them, and `--strict` refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import picture, row, write_good, write_rows

FAR = "warning: 1 row (far): a path that leaves the picture by more than its size"
STRETCHED = "warning: 1 row (wide x2.00): a picture that is stretched"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """One good row, one whose path goes far outside, one whose picture is twice as wide as the video."""
    for name in ("plain", "far"):
        picture().save(tmp_path / f"{name}.png")
    picture().resize((128, 64)).save(tmp_path / "wide.png")
    return write_rows(
        tmp_path / "m.parquet", [row("plain"), row("far", trajectories=[[[24.0, 24.0], [900.0, 24.0]]]), row("wide")]
    )


def test_validate_warns_and_strict_refuses(manifest: Path) -> None:
    done = here("manifest", "validate", manifest)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["3 rows, no problems"])
    assert done.stdout.startswith(FAR)
    assert here("manifest", "validate", manifest, "--strict").returncode == 2
    good = write_good(manifest.parent / "good", 1)
    assert here("manifest", "validate", good, "--strict").returncode == 0


def test_show_warns_of_the_row_that_it_draws(manifest: Path) -> None:
    picture_file = manifest.parent / "shown.png"
    assert FAR in here("manifest", "show", manifest, "far", "-o", picture_file).stdout
    assert "warning" not in here("manifest", "show", manifest, "plain", "-o", picture_file).stdout


def test_show_says_that_a_server_does_not_answer(tmp_path: Path) -> None:
    manifest = write_rows(tmp_path / "m.parquet", [row("a", image="http://127.0.0.1:9/a.png")])
    done = here("manifest", "show", manifest)
    assert done.returncode == 3
    assert done.stderr.startswith("error: the image of a cannot be read now (http://127.0.0.1:9/a.png: the server")


@pytest.mark.slow
def test_a_dry_run_warns_and_strict_refuses(manifest: Path) -> None:
    # the costs of these settings are in the package
    plan = (
        "run",
        manifest,
        "--output",
        manifest.parent / "out",
        "--model",
        "embedded",
        "--dry-run",
        "--fit",
        "stretch",
    )
    done = here(*plan)
    assert done.returncode == 0, done.stderr
    assert FAR in done.stdout
    assert STRETCHED in done.stdout
    assert here(*plan, "--strict").returncode == 2
    assert here(*plan, "--strict", "--limit", "1").returncode == 0


@pytest.mark.slow
def test_a_run_warns_in_its_plan_and_strict_ends_it_before_it_makes_anything(manifest: Path) -> None:
    output = manifest.parent / "out"
    with without_ray():
        refused = run_tiny_here(manifest, output, "--strict", "--fit", "stretch")
        assert refused.returncode == 2
        assert "--strict refuses" in refused.stderr
        assert FAR in refused.stderr
        assert STRETCHED in refused.stderr
        assert not output.exists()
        done = run_tiny_here(manifest, output, "--fit", "stretch")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("3 rows: 0 done before, 3 to do")
    assert lines[1].startswith(FAR)
    assert lines[2].startswith(STRETCHED)
