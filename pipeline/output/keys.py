"""The keys of an output: which ones this program makes, and for which sample. See docs/output-format.md, Files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from manifests.schema import SAMPLE_ID_PATTERN

_SAMPLE_ID = SAMPLE_ID_PATTERN.removeprefix(r"\A").removesuffix(r"\z")
_VIDEO_ENDINGS = {"file_name": r"\.[0-9a-f]{8}\.mp4", "baseline_file_name": r"\.[0-9a-f]{8}\.baseline\.mp4"}
"""How the keys of a sample's videos end, by the column of its record that names them."""
VIDEO_COLUMNS = tuple(_VIDEO_ENDINGS)
"""Columns of a record that name a video of the output."""
_RECORD = re.compile(rf"records/(?:attempt-([2-9]|[1-9][0-9]+)/)?({_SAMPLE_ID})\.json")
_VIDEO = re.compile(rf"videos/({_SAMPLE_ID})({'|'.join(_VIDEO_ENDINGS.values())})")
_EPOCH = re.compile(r"(?:lease|parts|tables)/([0-9]{6,})[.-].+")
_OTHERS = re.compile(
    r"run\.json|README\.md|preview\.mp4|metadata\.parquet|failures\.parquet|labels\.parquet|distributions\.png"
    r"|lease/[0-9]{6,}\.json|lease/probe-[0-9a-f]{32}"
    r"|parts/[0-9]{6,}-[0-9]{4,}\.parquet|tables/[0-9]{6,}-[a-z]+\.parquet|logs/[0-9]{6,}/[0-9]{4,}\.jsonl"
)


@dataclass(frozen=True)
class RecordKey:
    """What the key of an unsealed record says."""

    sample_id: str
    attempts: int


def parse_record_key(key: str) -> RecordKey | None:
    """The sample and attempt of a record's key; None for a key that this program does not make."""
    match = _RECORD.fullmatch(key)
    if match is None:
        return None
    attempts, sample_id = match.groups()
    return RecordKey(sample_id, int(attempts or 1))


def is_own_key(key: str) -> bool:
    """Whether this program makes objects with this key."""
    patterns = (_RECORD, _VIDEO, _OTHERS)
    return any(pattern.fullmatch(key) is not None for pattern in patterns)


def is_video_key(key: str) -> bool:
    """Whether this program makes videos with this key."""
    return _VIDEO.fullmatch(key) is not None


def epoch_of(key: str) -> int:
    """The epoch of a claim, part or copy of a table; 0 for another key."""
    match = _EPOCH.fullmatch(key)
    return 0 if match is None else int(match[1])


def names_own_videos(records: pa.Table) -> pa.ChunkedArray:
    """For each record, whether each of its VIDEO_COLUMNS is null, missing or a key that this program makes for it.

    Nothing may read or delete an object that a record names otherwise: it can be a file outside of the output.
    """
    is_id = pc.match_substring_regex(records["sample_id"], SAMPLE_ID_PATTERN)
    expected = pc.binary_join_element_wise("videos/", records["sample_id"], "")
    are_own = []
    for column, ending in _VIDEO_ENDINGS.items():
        if column not in records.column_names:
            continue
        names = records[column]
        attempt = pc.struct_field(pc.extract_regex(names, rf"\A(?P<key>.*)(?P<ending>{ending})\z"), "key")
        is_own = pc.and_(pc.equal(attempt, expected), is_id)
        are_own.append(pc.or_(pc.is_null(names), pc.fill_null(is_own, False)))
    return reduce(pc.and_, are_own)


def video_names(records: pa.Table) -> list[str]:
    """The keys of all videos that these records name."""
    return [name for column in VIDEO_COLUMNS for name in records[column].to_pylist() if name is not None]
