"""A full disk of the machine itself: told as what it is, by the driver and by its workers."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from pipeline.cli import exit_codes
from pipeline.cli.main import reporting
from pipeline.output.local_disk import full_disk_told
from sgi2v.errors import StorageError


def test_a_disk_that_can_take_no_temporary_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(StorageError, match=r"No usable temporary directory found in .*/proc"), full_disk_told():
        tempfile.gettempdir()


def test_what_is_missing_is_no_full_disk() -> None:
    with pytest.raises(FileNotFoundError), full_disk_told():
        Path("/proc/no-such-file").stat()


def test_a_full_disk_of_the_drivers_has_the_exit_code_of_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    @reporting
    def fill() -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"1")

    with pytest.raises(SystemExit) as ended:
        fill()
    assert ended.value.code == exit_codes.LOST == 3
    told = capsys.readouterr().err
    assert told.startswith("error: a disk of ")
    assert os.strerror(errno.ENOSPC) in told
    assert told.count("\n") == 1
