"""status: the state of a run from its output alone, as data and as printed lines."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipeline.cli.summary import status_text
from pipeline.cli.watch import print_status, watch_status
from pipeline.inspect.phase import Phase, phase_of, samples_per_second
from pipeline.inspect.status import read_status
from pipeline.output.lease import EXPIRY_S, HEARTBEAT_S, Claim, acquire
from pipeline.output.log import RunLog, log_line
from pipeline.output.records import commit
from pipeline.output.run_file import RUN_FILE, create_run_file, update_run_file
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError
from tests.pipeline.output.outputs import committed, failed, finish, settings

STARTED = ["run_started", "planned", "workers_started", "model_loaded"]


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Storage:
    return Storage(f"memory://{request.node.name}")


def test_samples_are_counted_by_status(storage: Storage) -> None:
    create_run_file(storage, settings(), "digest", 5)
    early, late = (f"2026-01-31T22:0{minute}:00.000+00:00" for minute in (4, 5))
    commit(storage, committed("a", finished_at=late), b"video")
    commit(storage, replace(failed("b"), finished_at=early), None)
    status = read_status(storage.url)
    assert (status.committed, status.failed, status.left, status.rows, status.other_samples) == (1, 1, 3, 5, 0)
    assert status.index["sample_id"].to_pylist() == ["a", "b"]
    assert (status.manifest, status.model, status.last_finished_at) == (settings().manifest, "embedded", late)
    assert (status.holder, status.holder_silent_s) == (None, None)


def test_rows_left_are_of_the_last_manifest(storage: Storage) -> None:
    finish(storage, "a", "b", "c", "d")
    create_run_file(storage, settings(), "digest", 3)
    update_run_file(storage, settings(), "digest", 3, other_samples=3)
    status = read_status(storage.url)
    assert (status.committed, status.left, status.rows, status.other_samples) == (4, 2, 3, 3)
    first = status_text(status).splitlines()[0]
    assert first == "4 made, 0 failed, 2 left, of 3 rows (and 3 samples of other rows)"


def test_the_holder_is_shown_until_it_releases_the_output(storage: Storage) -> None:
    create_run_file(storage, settings(), "digest", 1)
    with acquire(storage) as lease:
        status = read_status(storage.url)
        assert status.holder == lease.claim
        assert status.holder_silent_s is not None
        assert 0 <= status.holder_silent_s < 60
        lines = status_text(status).splitlines()
        assert lines[0] == "0 made, 0 failed, 1 left, of 1 row"
        assert lines[-1].startswith(f"  driver     {lease.claim.describe()}, last heartbeat ")
    assert read_status(storage.url).holder is None


def test_no_run_and_a_run_of_another_program_are_refused(storage: Storage) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        read_status(storage.url)
    storage.put(RUN_FILE, b"{}")
    with pytest.raises(ConfigError, match="is not a run of this program"):
        read_status(storage.url)


@pytest.mark.parametrize(
    ("events", "silent_s", "released", "phase"),
    [
        ([], 0, False, Phase.PLANNING),
        (STARTED[:1], 0, False, Phase.PLANNING),
        (STARTED[:2], 0, False, Phase.STARTING_RAY),
        (STARTED[:3], 0, False, Phase.LOADING),
        (STARTED, 0, False, Phase.RUNNING),
        ([*STARTED[:3], "sample_failed"], 0, False, Phase.RUNNING),
        ([*STARTED, "sample_committed", "worker"], 0, False, Phase.RUNNING),
        (STARTED, 3 * HEARTBEAT_S, False, Phase.SILENT),
        (STARTED, EXPIRY_S + 1, False, Phase.DEAD),
        ([*STARTED, "run_finished"], 0, True, Phase.FINISHED),
        ([*STARTED, "run_interrupted"], 3600, True, Phase.INTERRUPTED),
        ([*STARTED[:2], "run_failed"], 0, True, Phase.FAILED),
        (STARTED, 0, True, Phase.INTERRUPTED),
    ],
)
def test_the_phase_is_told_by_the_lease_and_the_log(
    events: list[str], silent_s: float, released: bool, phase: Phase
) -> None:
    renewed_at = time.time() - silent_s
    claim = Claim(1, "owner", "elsewhere", 1, "another machine", renewed_at, renewed_at, released)
    lines = [log_line(event) for event in events]
    assert phase_of(claim, lines, left=3) is phase
    assert phase.is_over == (released or silent_s > EXPIRY_S)


def test_an_output_without_a_lease_is_judged_by_its_rows() -> None:
    assert (phase_of(None, [], left=0), phase_of(None, [], left=1)) == (Phase.FINISHED, Phase.INTERRUPTED)


def test_the_rate_leaves_out_earlier_runs_and_the_first_sample_of_each_worker(storage: Storage) -> None:
    create_run_file(storage, settings(), "digest", 9)
    for sample_id, time_of_day in (("old", "20:00:00"), ("a", "22:00:30"), ("b", "22:01:00"), ("c", "22:01:20")):
        commit(storage, committed(sample_id, finished_at=f"2026-01-31T{time_of_day}.000+00:00"), b"video")
    index = read_status(storage.url).index
    events = [
        {**log_line("run_started"), "at": "2026-01-31T22:00:00.000+00:00"},
        log_line("workers_started", workers=2),
    ]
    now = datetime(2026, 1, 31, 22, 2, tzinfo=UTC).timestamp()
    assert samples_per_second(index, events, now) == pytest.approx(1 / 60)
    assert samples_per_second(index, events[:1], now) is None
    assert samples_per_second(index, [events[0], log_line("workers_started", workers=3)], now) is None


def test_a_run_is_watched_until_it_is_over(
    storage: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run_file(storage, settings(), "digest", 2)
    finish(storage, "a")
    lease = acquire(storage)
    log = RunLog(storage, lease.epoch)
    log.write_now("planned")

    def go_on(_: float) -> None:
        if lease.claim.released:
            raise AssertionError("the run is over")
        log.write_now("run_failed", message="ClusterError: no room")
        with lease:
            pass

    monkeypatch.setattr("pipeline.cli.watch.time.sleep", go_on)
    watch_status(storage.url, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "starting Ray, 1 made, 0 failed, 1 left",
        "failed, 1 made, 0 failed, 1 left",
    ]
    assert "  phase      failed (ClusterError: no room)" in status_text(read_status(storage.url)).splitlines()
    watch_status(storage.url, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["phase"] == "failed"


def test_the_log_of_an_earlier_run_says_nothing_about_the_driver(storage: Storage) -> None:
    create_run_file(storage, settings(), "digest", 2)
    with RunLog(storage, 1) as log:
        log.write("run_finished")
    with acquire(storage), acquire(storage, take_over=True):
        assert read_status(storage.url).phase is Phase.PLANNING


def test_json_has_what_is_printed(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    create_run_file(storage, settings(), "digest", 3)
    commit(storage, committed("a"), b"video")
    commit(storage, failed("b"), None)
    with acquire(storage):
        print_status(storage.url, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["phase"], printed["rows"], printed["left"]) == ("planning", 3, 1)
    assert printed["failed_by_code"] == {"image_missing": 1}
    assert printed["driver"]["silent_s"] >= 0
