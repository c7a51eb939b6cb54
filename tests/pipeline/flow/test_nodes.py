"""What a run says about nodes that join and leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import pipeline.run
from pipeline.flow import nodes
from pipeline.flow.nodes import Node, changes_between
from tests.pipeline.in_process import bare_flow, here, run_tiny_here, without_ray
from tests.pipeline.runs import until, write_good

ALIVE = Node("10.0.0.1 (4 CPU)", True)
GPU = Node("10.0.0.2 (1 GPU and 4 CPU)", True)
LEAVING = Node(GPU.name, True, is_draining=True)
LOST = Node("10.0.0.2 (0 CPU)", False, reason="health check failed.")
REST = "1 node left. Other nodes make its rows again, which costs none of their attempts"


@pytest.mark.parametrize(
    ("before", "after", "kinds", "line"),
    [
        ({"a": ALIVE}, {"a": ALIVE}, [], ""),
        ({"a": ALIVE}, {"a": ALIVE, "b": GPU}, ["joined"], f"node {GPU.name} has joined: 2 nodes now"),
        (
            {"a": ALIVE, "b": GPU},
            {"a": ALIVE, "b": LEAVING},
            ["draining"],
            "it finishes its rows, and gets no new ones",
        ),
        ({"a": ALIVE, "b": LEAVING}, {"a": ALIVE, "b": LEAVING}, [], ""),
        (
            {"a": ALIVE, "b": GPU},
            {"a": ALIVE, "b": LOST},
            ["lost"],
            f"node {GPU.name} is lost (health check failed): {REST}",
        ),
        ({"a": ALIVE, "b": LOST}, {"a": ALIVE, "b": LOST}, [], ""),
        ({"a": ALIVE}, {"a": ALIVE, "b": LOST}, [], ""),
    ],
)
def test_changes(before: Mapping[str, Node], after: Mapping[str, Node], kinds: list[str], line: str) -> None:
    changes = changes_between(before, after)
    assert [change.kind for change in changes] == kinds
    assert all(line in change.line for change in changes)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Node]]]:
    """Looks at the nodes of a cluster that a run believes to be on: each is seen once, the last one from then on."""
    looks = [{"a": ALIVE, "b": GPU}]
    monkeypatch.setattr(nodes, "POLL_S", 0.01)
    monkeypatch.setattr(nodes, "nodes_of_ray", lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    monkeypatch.setattr(pipeline.run, "cluster_address", lambda execution: "10.0.0.1:6379")
    with without_ray():
        yield looks


def test_a_lost_node_is_said_logged_and_in_the_status(
    cluster: list[dict[str, Node]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: Callable[[], bool] = lambda: any("node_lost" in file.read_text() for file in tmp_path.rglob("*.jsonl"))  # noqa: E731

    def flow(*arguments: Any) -> Generator[dict[str, Any], None, None]:
        for number, outcome in enumerate(bare_flow(*arguments)):
            if number == 1:
                cluster.append({"a": ALIVE, "b": LOST})
                until("the loss is in the log", said)
            yield outcome

    monkeypatch.setattr(pipeline.run, "flow", flow)
    ended = run_tiny_here(write_good(tmp_path, 3), tmp_path / "out")
    assert ended.returncode == 0
    assert f"node {GPU.name} is lost (health check failed): {REST}" in ended.stderr
    assert "  lost nodes      1" in ended.stdout
    assert "  lost nodes      1  in this run: its log names them" in here("status", tmp_path / "out").stdout
    assert json.loads(here("status", tmp_path / "out", "--json").stdout)["lost_nodes"] == 1


def test_a_cluster_that_does_not_answer_ends_no_run(
    cluster: list[dict[str, Node]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr(nodes, "nodes_of_ray", fail)
    assert run_tiny_here(write_good(tmp_path, 1), tmp_path / "out").returncode == 0
