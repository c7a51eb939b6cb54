"""The log: complete however a run ends, in segments, with the sample id on each worker line, without secrets."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline.output import log as log_module
from pipeline.output.log import RunLog, capture_log
from pipeline.output.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def lines(storage: Storage) -> list[dict[str, Any]]:
    """Every line, in the order of the segments."""
    segments = storage.get_many(storage.keys("logs"))
    return [json.loads(line) for key in sorted(segments) for line in segments[key].decode().splitlines()]


def test_a_run_has_one_log_in_segments(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SEGMENT_LINES", 3)
    for epoch in (1, 2):
        with RunLog(storage, epoch) as log:
            for number in range(7):
                log.write("sample_committed", sample_id=f"s{number}")
    assert storage.keys("logs") == [f"logs/00000{epoch}/000{segment}.jsonl" for epoch in (1, 2) for segment in range(3)]
    written = lines(storage)
    assert [line["sample_id"] for line in written] == [f"s{number}" for number in range(7)] * 2
    assert all({"at", "event", "host", "pid"} <= set(line) for line in written)


def test_the_last_line_is_the_error_that_ended_the_run(storage: Storage) -> None:
    log = RunLog(storage, 1)
    log.write("planned", rows=3)
    with pytest.raises(ValueError, match="bug"), log:
        raise ValueError("a bug")
    assert [line["event"] for line in lines(storage)] == ["planned", "run_failed"]
    assert lines(storage)[-1]["message"] == "ValueError: a bug"


def test_a_killed_driver_leaves_the_log_up_to_its_last_flush(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "FLUSH_S", -1.0)
    log = RunLog(storage, 1)
    for number in range(3):
        log.write("sample_committed", sample_id=f"s{number}")
        assert len(lines(storage)) == number + 1


def test_lines_of_a_worker_have_their_sample_id() -> None:
    with capture_log("generate", "s1") as outer, capture_log("generate", "s2") as inner:
        logging.getLogger("somebody").warning("%d frames look odd", 3)
        logging.getLogger("somebody").info("not worth a line")
        warnings.warn("a value overflowed", RuntimeWarning, stacklevel=1)
    fields = [(line["sample_id"], line["stage"], line["logger"], line["message"]) for line in inner]
    assert fields == [
        ("s2", "generate", "somebody", "3 frames look odd"),
        ("s2", "generate", "RuntimeWarning", "a value overflowed"),
    ]
    assert [line["sample_id"] for line in outer] == ["s1"]
    with capture_log("generate", "s3") as after:
        pass
    logging.getLogger("somebody").warning("after the sample")
    assert after == []


def test_secrets_are_not_logged(storage: Storage) -> None:
    with RunLog(storage, 1) as log:
        place = "s3://key:secret@bucket/m.parquet"
        log.write("planned", manifest=place, image="https://x.org/a.png?X-Sig=abc&y=1 ok", note='https://h/?x"y')
    (line,) = lines(storage)
    assert line["manifest"] == "s3://***@bucket/m.parquet"
    assert line["image"] == "https://x.org/a.png?*** ok"
    assert line["note"] == "https://h/?***", "a quote in a query string does not break the JSON"
