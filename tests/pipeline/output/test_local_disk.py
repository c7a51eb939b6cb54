"""A full disk of this machine is a StorageError, in the driver and in its workers."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from pipeline.cli import exit_codes
from pipeline.cli.main import exit_code_of
from pipeline.output.local_disk import full_disk_as_storage_error
from sgi2v.errors import StorageError


def test_no_usable_temporary_folder_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with (
        pytest.raises(StorageError, match=r"No usable temporary directory found in .*/proc"),
        full_disk_as_storage_error(),
    ):
        tempfile.gettempdir()


def test_a_missing_file_is_not_a_full_disk() -> None:
    with pytest.raises(FileNotFoundError), full_disk_as_storage_error():
        Path("/proc/no-such-file").stat()


def test_a_full_disk_of_the_driver_has_the_exit_code_of_a_failed_store(capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"1")

    assert exit_code_of(fill) == exit_codes.LOST == 3
    message = capsys.readouterr().err
    assert message.startswith("error: a disk of ")
    assert os.strerror(errno.ENOSPC) in message
    assert message.count("\n") == 1
