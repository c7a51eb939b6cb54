"""The flow's benchmark: a side's pace is of its own turns, and a stopped side stands still."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.benchmarks.flow import Tree, pace_in_turns

TURNS = [(100.0, 110.0), (130.0, 140.0), (160.0, 170.0)]


def test_time_between_turns_does_not_count() -> None:
    steady = [101.0, 103.0, 105.0, 107.0, 109.0, 131.0, 133.0, 135.0, 137.0, 139.0, 161.0]
    assert pace_in_turns(steady, TURNS) == pytest.approx(0.5)


def test_ends_outside_the_turns_do_not_count() -> None:
    assert pace_in_turns([90.0, 101.0, 109.0, 120.0, 139.0, 200.0], TURNS) == pytest.approx(2 / 18)


def _count(file: Path) -> None:
    while True:
        with file.open("a") as lines:
            lines.write(".")
        time.sleep(0.01)


def _count_with_a_child(folder: Path) -> None:
    Tree(_count, folder / "child")
    _count(folder / "parent")


def _counted(folder: Path) -> list[int]:
    return [file.stat().st_size for file in sorted(folder.iterdir())]


@pytest.mark.timeout(120)
def test_a_stopped_tree_stands_still_until_it_goes_on(tmp_path: Path) -> None:
    tree = Tree(_count_with_a_child, tmp_path)
    try:
        while len(_counted(tmp_path)) < 2:
            time.sleep(0.05)
        tree.stop()
        stopped = _counted(tmp_path)
        time.sleep(0.5)
        assert _counted(tmp_path) == stopped
        tree.go_on()
        while not all(now > then for now, then in zip(_counted(tmp_path), stopped, strict=True)):
            time.sleep(0.05)
    finally:
        tree.end()
