"""status: the state of a run from its output alone, as data and as printed lines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.cli.summary import print_status
from pipeline.inspect.status import read_status
from pipeline.output.lease import acquire
from pipeline.output.records import commit
from pipeline.output.run_file import RUN_FILE, create_run_file, update_run_file
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError
from tests.pipeline.output.outputs import committed, failed, finish, settings


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


def test_rows_left_are_of_the_last_manifest(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    finish(storage, "a", "b", "c", "d")
    create_run_file(storage, settings(), "digest", 3)
    update_run_file(storage, settings(), "digest", 3, other_samples=3)
    status = read_status(storage.url)
    assert (status.committed, status.left, status.rows, status.other_samples) == (4, 2, 3, 3)
    print_status(storage.url)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "4 made, 0 failed, 2 left, of 3 rows (and 3 samples of other rows)"


def test_the_holder_is_shown_until_it_releases_the_output(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    create_run_file(storage, settings(), "digest", 1)
    with acquire(storage) as lease:
        status = read_status(storage.url)
        assert status.holder == lease.claim
        assert status.holder_silent_s is not None
        assert 0 <= status.holder_silent_s < 60
        print_status(storage.url)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "0 made, 0 failed, 1 left, of 1 row"
        assert lines[-1].startswith(f"  running    {lease.claim.describe()}, last heartbeat ")
    assert read_status(storage.url).holder is None


def test_no_run_and_a_run_of_another_program_are_refused(storage: Storage) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        read_status(storage.url)
    storage.put(RUN_FILE, b"{}")
    with pytest.raises(ConfigError, match="is not a run of this program"):
        read_status(storage.url)
