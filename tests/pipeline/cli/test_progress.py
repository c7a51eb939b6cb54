"""Lines about work that goes on: the model, steps, finished samples, checked images."""

from __future__ import annotations

import pytest

from pipeline.cli import progress
from pipeline.cli.lines import checked
from pipeline.cli.progress import Lines, ReplayProgress
from pipeline.flow.notes import NOTE_EVERY_S, Note, Reporter
from pipeline.flow.pools import Pool, Pools
from tests.pipeline.output.outputs import committed, settings


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_each_worker_says_once_that_its_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(settings())
    lines.started(Pools(Pool(1, 1, 0.25), Pool(2, 2, 1.0), Pool(1, 1, 1.0), "no GPU"))
    capsys.readouterr()
    first, second = Note("h/1", 8.2), Note("h/2", 9.0)
    lines.noted([first])
    lines.noted([first, second])
    lines.noted([first, second, Note("joined/1", 7.0)])
    assert capsys.readouterr().err.splitlines() == [
        "model loaded on worker 1 of 2 in 8.2 s",
        "model loaded on worker 2 of 2 in 9.0 s",
        "model loaded on worker 3 of 3 in 7.0 s",
    ]


def test_steps_are_shown_while_nothing_else_is(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    lines = Lines(settings())
    lines.loaded = {"h/1", "h/2"}
    lines.todo = 3

    def shown(*notes: Note, after_s: float = progress.QUIET_S) -> list[str]:
        clock.now += after_s
        lines.noted(list(notes))
        return capsys.readouterr().err.splitlines()

    behind, ahead = Note("h/1", 8.2, "a", 3, 20), Note("h/2", 9.0, "b", 6, 20)
    assert shown(behind, ahead) == ["b: step 7 of 20"]
    assert shown(behind, Note("h/2", 9.0, "b", 7, 20), after_s=1.0) == [], "too early"
    assert shown(behind, ahead) == [], "no news"
    assert shown(Note("h/1", 8.2, "a", 9, 20)) == ["a: step 10 of 20"]
    candidate = Note("h/1", 8.2, "a", 1, 20, "candidate 2 of 4")
    assert progress.step_of(candidate) == "a, candidate 2 of 4: step 2 of 20"
    lines.finished(committed("a"))
    capsys.readouterr()
    assert shown(Note("h/1", 8.2, "c", 0, 20)) == [], "finished samples are progress enough"
    assert shown(Note("h/1", 8.2, "c", 1, 20), after_s=progress.QUIET_LATER_S) == ["c: step 2 of 20"]


def test_a_worker_does_not_report_every_step(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    sent: list[Note] = []
    reporter = Reporter(sent.append, model_seconds=8.2, steps=20)
    assert [(note.sample_id, note.model_seconds) for note in sent] == [(None, 8.2)]
    reporter.begin("a")
    for step in range(20):
        reporter.step(step)
        clock.now += NOTE_EVERY_S / 4
    assert [(note.sample_id, note.step, note.steps) for note in sent[1:]] == [
        ("a", step, 20) for step in (0, 4, 8, 12, 16)
    ]


def test_a_replay_shows_its_model_and_steps(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    show = ReplayProgress()
    show(Note("h/1", 8.2))
    for step in range(3):
        show(Note("h/1", 8.2, "a", step, 20))
        clock.now += progress.QUIET_S / 2
    assert capsys.readouterr().err.splitlines() == ["model loaded in 8.2 s", "a: step 1 of 20", "a: step 3 of 20"]


def test_checked_images_are_counted_now_and_then(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    show = checked()
    for done in range(1, 11):
        clock.now += 1.0
        show(done, 10)
    assert capsys.readouterr().err.splitlines() == ["checked 5 of 10 images", "checked 10 of 10 images"]
