"""The keys of an output: those that this program makes are told from all others."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.output.card_picture import PICTURE
from pipeline.output.keys import VIDEO_COLUMNS, epoch_of, is_own_key, is_video_key, names_own_videos, parse_record_key
from pipeline.output.labels import LABELS
from pipeline.output.lease import claim_key
from pipeline.output.records import baseline_key, record_key, video_key
from pipeline.output.run_file import RUN_FILE
from pipeline.output.tables import COPIES, FAILURES, METADATA

SCHEMA = pa.schema([(name, pa.string()) for name in ("sample_id", *VIDEO_COLUMNS)])
IDS = ("a", "a.json", "attempt-2", "a.01234567.mp4", "A-1_b", "1" * 128)


def test_every_key_that_is_written_is_own() -> None:
    keys = [
        *(RUN_FILE, METADATA, FAILURES, LABELS, PICTURE, claim_key(7)),
        *(f"{COPIES}/000007-{name}" for name in (METADATA, FAILURES, LABELS)),
        *(f"lease/probe-{'0' * 32}", "parts/000007-0000.parquet", "logs/000007/0000.jsonl"),
        *(record_key(sample_id, attempts) for sample_id in IDS for attempts in (1, 2, 10)),
        *(video_key(sample_id, "0123abcd") for sample_id in IDS),
        *(baseline_key(video_key(sample_id, "0123abcd")) for sample_id in IDS),
    ]
    assert [key for key in keys if not is_own_key(key)] == []


@pytest.mark.parametrize(
    "key",
    [
        *("", "notes.txt", "videos/a.mp4", "videos/a.0123ABCD.mp4", "videos/a.0123abcd.mp4.part", "videos/b/a.json"),
        *("videos/a.baseline.mp4", "videos/a.0123abcd.Baseline.mp4", "videos/a.0123abcd.baseline"),
        *("records/a", "records/attempt-x/a.json", "records/../run.json", "parts/a.parquet", "x/run.json"),
        *("records/attempt-1/a.json", "records/attempt-02/a.json"),
    ],
)
def test_other_keys_are_not(key: str) -> None:
    assert parse_record_key(key) is None
    assert not is_video_key(key)
    assert not is_own_key(key)


def test_a_record_key_says_sample_and_attempt() -> None:
    for sample_id in IDS:
        for attempts in (1, 2, 10):
            stated = parse_record_key(record_key(sample_id, attempts))
            assert stated is not None
            assert (stated.sample_id, stated.attempts) == (sample_id, attempts)


def test_epochs_are_read_from_keys() -> None:
    keys = [
        claim_key(7),
        claim_key(1234567),
        "parts/000012-0003.parquet",
        f"{COPIES}/000003-{METADATA}",
        "lease/x.json",
    ]
    assert [epoch_of(key) for key in keys] == [7, 1234567, 12, 3, 0]


def beside(name: str | None) -> str | None:
    """The name of a baseline, made as that of a video."""
    return None if name is None else baseline_key(name)


def test_a_record_may_only_name_a_video_of_its_sample() -> None:
    own = [(sample_id, video_key(sample_id, "0123abcd")) for sample_id in IDS]
    others = [
        *(("a", "videos/b.0123abcd.mp4"), ("a", "videos/a.0123abcg.mp4"), ("a", "videos/a.0123abcd.mp4\n")),
        *(("a", "../videos/a.0123abcd.mp4"), ("a", ""), ("a", "/"), ("../a", "videos/../a.0123abcd.mp4")),
        *(("a", "videos/a.b.0123abcd.mp4"), ("", "videos/.0123abcd.mp4"), ("a", "videos/A.0123abcd.mp4")),
    ]
    rows = [*own, *others, ("a", None)]
    expected = [True] * len(own) + [False] * len(others) + [True]
    for column in VIDEO_COLUMNS:
        named = [
            {
                "sample_id": sample_id,
                **dict.fromkeys(VIDEO_COLUMNS),
                column: name if column == "file_name" else beside(name),
            }
            for sample_id, name in rows
        ]
        assert names_own_videos(pa.Table.from_pylist(named, SCHEMA)).to_pylist() == expected
    swapped = {"sample_id": "a", "file_name": baseline_key(own[0][1]), "baseline_file_name": own[0][1]}
    assert names_own_videos(pa.Table.from_pylist([swapped], SCHEMA)).to_pylist() == [False]
