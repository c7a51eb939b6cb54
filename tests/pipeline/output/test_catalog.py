"""The catalog: sealing neither loses nor duplicates a sample, wherever it is killed and whoever reads meanwhile."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output import catalog as catalog_module
from pipeline.output.catalog import Catalog, MeanFidelity, count, counts_of, mean_fidelity, mean_of
from pipeline.output.lease import LeaseError, acquire
from pipeline.output.records import SampleRecord, Status, commit, record_key
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, METADATA, read_ids, write_tables
from sgi2v.errors import ConfigError
from tests.pipeline.output.outputs import committed, failed, manifest, video_of

EPOCH = 1


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def put(storage: Storage, *records: SampleRecord) -> None:
    for record in records:
        assert commit(storage, record, b"video" if record.file_name else None) == record


def current(storage: Storage) -> dict[str, tuple[str, int, str | None]]:
    """What a reader sees of each sample now: status, attempts and video."""
    catalog = Catalog(storage)
    rows = catalog.index.to_pylist()
    seen = {row["sample_id"]: (row["status"], row["attempts"], row["file_name"]) for row in rows}
    assert len(seen) == len(rows), "a sample has one current record"
    statuses: tuple[Status, ...] = ("committed", "failed")
    table_rows = [row for status in statuses for table in catalog.tables(status) for row in table.to_pylist()]
    assert {row["sample_id"]: (row["status"], row["attempts"], row["file_name"]) for row in table_rows} == seen
    assert len(table_rows) == len(seen)
    for sample_id, values in seen.items():
        record = catalog.get(sample_id)
        assert record is not None
        assert (record.status, record.attempts, record.file_name) == values
    assert catalog.get("nobody") is None
    return seen


class Killed(BaseException):
    """Stands for a SIGKILL: no `except Exception` catches it."""


class KillingStorage(Storage):
    """A store whose writer is killed right before its nth change, or right after it."""

    def __init__(self, url: str, change: int, after: bool) -> None:
        super().__init__(url)
        self.change, self.after, self.changes = change, after, 0

    def _counted(self) -> Iterator[None]:
        self.changes += 1
        if self.changes == self.change and not self.after:
            raise Killed
        yield
        if self.changes == self.change:
            raise Killed

    def put_new(self, key: str, data: bytes) -> bool:
        done = False
        for _ in self._counted():
            done = super().put_new(key, data)
        return done

    def put(self, key: str, data: bytes) -> None:
        for _ in self._counted():
            super().put(key, data)

    def put_file(self, key: str, file: Path) -> None:
        for _ in self._counted():
            super().put_file(key, file)

    def delete(self, key: str) -> None:
        for _ in self._counted():
            super().delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:  # one by one, so that the kill can come between any two
            self.delete(key)


def fill(storage: Storage) -> dict[str, tuple[str, int, str | None]]:
    """Write unsealed records of every kind. Returns what a reader should see of each sample."""
    put(storage, committed("a"), failed("b"), committed("c"), failed("d"), committed("d", "again", attempts=2))
    put(storage, failed("e"), failed("e", attempts=2))
    return {
        "a": ("committed", 1, video_of("a")),
        "b": ("failed", 1, None),
        "c": ("committed", 1, video_of("c")),
        "d": ("committed", 2, video_of("d", "again")),
        "e": ("failed", 2, None),
    }


def videos(storage: Storage) -> set[str]:
    return set(storage.keys("videos"))


def test_one_of_several_records_of_a_sample_is_current(storage: Storage) -> None:
    expected = fill(storage)
    assert current(storage) == expected
    catalog = Catalog(storage)
    catalog.seal(EPOCH)
    assert storage.keys("parts") == ["parts/000001-0000.parquet"]
    assert storage.keys("records") == ["records/d.json", "records/e.json"], "superseded records are not sealed"
    catalog.delete_superseded(EPOCH)
    assert storage.keys("records") == []
    assert current(storage) == expected
    assert videos(storage) == {name for _, _, name in expected.values() if name}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("change", range(1, 16))
def test_a_run_killed_during_sealing_neither_loses_nor_duplicates_a_sample(
    storage: Storage, change: int, after: bool
) -> None:
    expected = fill(storage)
    rows = manifest(*expected)

    def clean_up(store: Storage, epoch: int) -> None:
        catalog = Catalog(store)
        catalog.delete_superseded(epoch)
        catalog.seal(epoch)
        write_tables(catalog, rows, epoch)

    killing = KillingStorage(storage.url, change, after)
    # 2 superseded records are deleted, 1 part is put, 5 sealed records are deleted, 3 tables are put twice
    if change <= 14:
        with pytest.raises(Killed):
            clean_up(killing, EPOCH)
    else:
        clean_up(killing, EPOCH)
        assert killing.changes == 14, "a kill came at every change"
    assert current(storage) == expected
    clean_up(storage, EPOCH + 1)
    assert current(storage) == expected
    assert storage.keys("records") == []
    assert videos(storage) == {name for _, _, name in expected.values() if name}
    assert read_ids(storage, METADATA) == {"a", "c", "d"}
    assert read_ids(storage, FAILURES) == {"b", "e"}


@pytest.mark.parametrize("after", ["listed", "read"])
def test_a_reader_misses_nothing_while_records_are_sealed(storage: Storage, after: str) -> None:
    expected = fill(storage)
    writer = Catalog(storage)

    class SealedMeanwhile(Storage):
        """Here the unsealed records are sealed right after they were listed, or were read."""

        def keys(self, folder: str) -> list[str]:
            keys = super().keys(folder)
            if folder == "records" and after == "listed":
                writer.seal(EPOCH)
            return keys

        def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
            objects = super().get_many(keys)
            if after == "read":
                writer.seal(EPOCH)
            return objects

    index = Catalog(SealedMeanwhile(storage.url)).index
    seen = dict(zip(index["sample_id"].to_pylist(), index["attempts"].to_pylist(), strict=True))
    assert seen == {sample_id: attempts for sample_id, (_, attempts, _) in expected.items()}


def test_leftovers_of_a_kill_during_sealing_are_deleted_in_bulk_and_without_reading_parts(storage: Storage) -> None:
    expected = fill(storage)
    unsealed = {key: storage.get(key) for key in storage.keys("records")}
    Catalog(storage).seal(EPOCH)
    for key, data in unsealed.items():
        storage.put(key, data or b"")
    put(storage, committed("late"), committed("late", "later", attempts=2))
    calls: list[str] = []

    class Counted(Storage):
        def get(self, key: str) -> bytes | None:
            calls.append("part" if key.startswith("parts/") else "other")
            return super().get(key)

        def delete_many(self, keys: Iterable[str]) -> None:
            calls.append("many")
            super().delete_many(keys)

    catalog = Catalog(Counted(storage.url))
    calls.clear()
    catalog.delete_superseded(EPOCH)
    assert calls == ["many", "many"]
    assert current(storage) == {**expected, "late": ("committed", 2, video_of("late", "later"))}
    assert storage.keys("records") == [record_key("late", 2)]
    assert videos(storage) == {name for _, _, name in current(storage).values() if name}


def test_a_late_worker_cannot_duplicate_a_sealed_sample(storage: Storage) -> None:
    put(storage, committed("a"))
    catalog = Catalog(storage)
    catalog.seal(EPOCH)
    put(storage, committed("a", "late"))  # the first record is in a part, so the put succeeds
    assert current(storage) == {"a": ("committed", 1, video_of("a"))}
    catalog.refresh()
    catalog.delete_superseded(EPOCH)
    assert storage.keys("records") == []
    assert videos(storage) == {video_of("a")}


def test_a_row_that_ray_runs_twice_is_added_once(storage: Storage) -> None:
    catalog = Catalog(storage)
    assert catalog.add(committed("a"))
    assert not catalog.add(committed("a"))
    catalog.seal(EPOCH)
    assert not catalog.add(committed("a", "late"))
    assert catalog.index.num_rows == 1


def test_a_retry_replaces_a_sealed_record(storage: Storage) -> None:
    put(storage, failed("a"), failed("b"), committed("c"))
    catalog = Catalog(storage)
    catalog.seal(EPOCH)
    for record in (committed("a", attempts=2), failed("b", "timed_out", 2)):
        put(storage, record)
        assert catalog.add(record)
    expected = {
        "a": ("committed", 2, video_of("a")),
        "b": ("failed", 2, None),
        "c": ("committed", 1, video_of("c")),
    }
    for _ in range(2):
        assert current(storage) == expected
        assert counts_of(catalog.index, "error_code") == {"unknown": 2, "timed_out": 1}
        catalog.seal(EPOCH)
    assert len(storage.keys("parts")) == 3


def test_many_replaced_records_are_filtered_out_of_the_index_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"s{number:02d}" for number in range(20)]
    put(storage, *(failed(sample_id) for sample_id in ids))
    catalog = Catalog(storage)
    catalog.seal(EPOCH)
    calls: list[int] = []
    is_in = catalog_module.pc.is_in

    def counted(values: object, **options: object) -> object:
        calls.append(1)
        return is_in(values, **options)

    monkeypatch.setattr(catalog_module.pc, "is_in", counted)
    for sample_id in ids[:15]:
        assert catalog.add(committed(sample_id, attempts=2))
    for _ in range(2):
        assert (count(catalog.index, "committed"), count(catalog.index, "failed")) == (15, 5)
    for sample_id in ids[15:]:
        catalog.add(failed(sample_id, attempts=2))
    assert len(calls) == 1
    catalog.seal(EPOCH)
    assert len(calls) == 2
    assert catalog.index.num_rows == len(ids)
    assert set(catalog.index["attempts"].to_pylist()) == {2}


def test_a_run_that_lost_its_lease_neither_seals_nor_deletes_nor_writes_tables(storage: Storage) -> None:
    expected = fill(storage)
    catalog = Catalog(storage)
    acquire(storage)
    acquire(storage, take_over=True)
    before = {key: storage.get(key) for folder in ("records", "videos") for key in storage.keys(folder)}
    writes: list[Callable[[], None]] = [
        *(
            lambda: catalog.seal(EPOCH),
            lambda: catalog.delete_superseded(EPOCH),
            lambda: catalog.remove(expected, EPOCH),
        ),
        lambda: write_tables(catalog, manifest(*expected), EPOCH),
    ]
    for write in writes:
        with pytest.raises(LeaseError):
            write()
    assert storage.keys("parts") == []
    assert [storage.get(name) for name in (METADATA, FAILURES)] == [None, None]
    assert {key: storage.get(key) for folder in ("records", "videos") for key in storage.keys(folder)} == before
    assert current(storage) == expected


def test_a_refresh_finds_records_that_no_worker_reported(storage: Storage) -> None:
    put(storage, committed("a"))
    catalog = Catalog(storage)
    put(storage, committed("b"), failed("c"))
    catalog.add(committed("b"))
    catalog.refresh()
    assert catalog.index["sample_id"].to_pylist() == ["a", "b", "c"]
    assert not catalog.add(committed("b"))


def test_samples_are_removed_from_parts_and_records(storage: Storage) -> None:
    put(storage, committed("a"), committed("b"))
    Catalog(storage).seal(EPOCH)
    put(storage, committed("a", "late"), committed("c"), failed("d"), failed("d", attempts=2))
    Catalog(storage).remove(["a", "c", "d"], EPOCH)
    assert set(current(storage)) == {"b"}
    assert storage.keys("records") == []


def test_parts_are_sealed_when_they_are_full(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "PART_ROWS", 3)
    catalog = Catalog(storage)
    for number in range(8):
        record = committed(f"s{number}")
        put(storage, record)
        catalog.add(record)
        catalog.seal_if_due(EPOCH)
        assert set(current(storage)) == {f"s{earlier}" for earlier in range(number + 1)}
    assert storage.keys("parts") == ["parts/000001-0000.parquet", "parts/000001-0001.parquet"]
    assert storage.keys("records") == [record_key("s6", 1), record_key("s7", 1)]
    later = Catalog(storage)
    later.seal(EPOCH + 1)
    assert len(current(storage)) == 8


def with_values(**values: object) -> bytes:
    """The record of a sample `a` with other values."""
    return json.dumps({**committed("a").row(), **values}).encode()


DAMAGED_RECORDS = {
    "empty": (b"", "is empty"),
    "half": (with_values()[:100], "is not JSON"),
    "not UTF-8": (b"{\xff}", "is not JSON"),
    "nested without end": (b"[" * 100_000, "is not JSON"),
    "null": (b"null", "is not a JSON object"),
    "no values": (b"{}", "lacks sample_id, status, attempts, row_digest, fingerprint"),
    "text for a number": (with_values(seed="many"), "has a value of another type: "),
    "number for text": (with_values(status=7), "has a value of another type: "),
    "too large a number": (with_values(video_bytes=2**70), "has a value of another type: "),
    "number for a list": (with_values(loss_first=0.5), "has a value of another type: "),
    "no text": (with_values(message="\ud800"), "has a value of another type: "),
    "unknown status": (with_values(status="lost"), "has the status 'lost'"),
    "of another sample": (with_values(sample_id="b"), "says that it is of 'b', attempt 1"),
    "of another attempt": (with_values(attempts=2), "says that it is of 'a', attempt 2"),
    "names a file outside": (with_values(file_name="../x"), "names '../x', which is not a video of this sample"),
    "names another video": (with_values(file_name=video_of("b")), "which is not a video of this sample"),
    "a folder": (None, "is empty"),
}


@pytest.mark.parametrize("kind", DAMAGED_RECORDS)
def test_a_damaged_record_counts_for_nothing_until_it_is_taken_away(storage: Storage, kind: str) -> None:
    data, problem = DAMAGED_RECORDS[kind]
    put(storage, committed("b"))
    if data is None:
        (Path(storage.root) / "records" / "a.json").mkdir()
    else:
        storage.put("records/a.json", data)
    catalog = Catalog(storage)
    assert catalog.index["sample_id"].to_pylist() == ["b"]
    (damage,) = catalog.damaged
    assert (damage.key, damage.sample_id, damage.attempts) == ("records/a.json", "a", 1)
    assert problem in damage.problem
    catalog.refresh()
    assert len(catalog.damaged) == 1
    ids = pa.chunked_array([["a", "b", "c"]])
    assert catalog.lost_attempts(ids).to_pylist() == [1, 0, 0], "no later record has this key"
    assert catalog.remove_damaged({"a"}, EPOCH) == ["a"]
    assert storage.keys("records") == ["records/b.json"]
    assert Catalog(storage).damaged == []
    assert Catalog(storage).lost_attempts(ids).to_pylist() == [1, 0, 0]


def test_a_sample_with_another_record_is_kept_when_a_damaged_one_is_taken_away(storage: Storage) -> None:
    put(storage, failed("a"))
    storage.put(record_key("a", 2), b"{")
    catalog = Catalog(storage)
    assert catalog.remove_damaged({"other"}, EPOCH) == []
    assert len(catalog.damaged) == 1
    assert catalog.remove_damaged({"a"}, EPOCH) == []
    assert current(storage) == {"a": ("failed", 1, None)}
    assert storage.keys("parts") == []


def test_one_damaged_record_among_many_is_found(storage: Storage) -> None:
    put(storage, *(committed(f"s{number:02d}") for number in range(20)))
    for number in (0, 7, 8, 19):
        storage.put(record_key(f"s{number:02d}", 1), b"{}")
    catalog = Catalog(storage)
    assert [damage.sample_id for damage in catalog.damaged] == ["s00", "s07", "s08", "s19"]
    assert catalog.index.num_rows == 16


def part_of(*rows: dict[str, object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"no table", part_of({"sample_id": "a"}), part_of({"sample_id": 1, "status": [], "attempts": "x"})),
        *(part_of({"sample_id": name, "status": "failed", "attempts": 1}) for name in ("../a", None)),
        part_of({"sample_id": "a", "status": "lost", "attempts": 1}),
        part_of({"sample_id": "a", "status": "failed", "attempts": None}),
    ],
)
def test_a_damaged_part_is_refused_until_it_is_taken_away(storage: Storage, data: bytes) -> None:
    put(storage, committed("a"))
    key = "parts/000001-0000.parquet"
    storage.put(key, data)
    with pytest.raises(ConfigError, match=r"000001-0000\.parquet is not a part of this program, or is damaged"):
        Catalog(storage)
    catalog = Catalog(storage, without_damaged_parts=True)
    assert [(damage.key, damage.sample_id) for damage in catalog.damaged] == [(key, None)]
    assert catalog.remove_damaged({key}, EPOCH) == []
    assert set(current(storage)) == {"a"}


def test_a_row_of_a_part_that_names_another_object_is_taken_out_of_it(storage: Storage) -> None:
    catalog = Catalog(storage)
    for record in (committed("a", file_name="../x"), committed("b"), committed("c", file_name=video_of("b"))):
        catalog.add(record)
    catalog.seal(EPOCH)
    put(storage, committed("c", "again", attempts=2))
    catalog = Catalog(storage)
    assert [(damage.key, damage.sample_id) for damage in catalog.damaged] == [
        ("parts/000001-0000.parquet", "a"),
        ("parts/000001-0000.parquet", "c"),
    ]
    assert set(current(storage)) == {"b", "c"}
    assert catalog.remove_damaged({"a", "c"}, EPOCH) == ["a"]
    assert Catalog(storage).damaged == []
    assert set(current(storage)) == {"b", "c"}
    assert Catalog(storage).lost_attempts(pa.chunked_array([["a", "b", "c"]])).to_pylist() == [1, 0, 0]


def test_a_removed_sample_has_no_record_of_an_earlier_attempt(storage: Storage) -> None:
    put(storage, failed("a"), committed("b"))
    Catalog(storage).seal(EPOCH)
    put(storage, committed("a", attempts=2), failed("a", attempts=3))
    Catalog(storage).remove(["a"], EPOCH)
    assert set(current(storage)) == {"b"}
    put(storage, failed("a", attempts=2), committed("a", "late"))  # of workers that are late
    assert set(current(storage)) == {"b"}
    put(storage, failed("a", attempts=4))
    assert current(storage)["a"] == ("failed", 4, None)
    catalog = Catalog(storage)
    catalog.delete_superseded(EPOCH)
    assert storage.keys("records") == [record_key("a", 4)]
    Catalog(storage).remove([], EPOCH)
    assert len(storage.keys("parts")) == 2, "parts do not change"


def test_leftovers_of_a_killed_writer_are_no_results(storage: Storage, tmp_path: Path) -> None:
    put(storage, committed("a"))
    for folder, name in {"records": "b.json", "videos": "b.one.mp4", "parts": "000001-0000.parquet"}.items():
        (tmp_path / "out" / folder).mkdir(exist_ok=True)
        (tmp_path / "out" / folder / f".{name}.0123.partial").write_bytes(b"{")
    storage.put("records/notes.txt", b"not a record")
    storage.put("videos/b.lost.mp4", b"a video without its record")
    assert set(current(storage)) == {"a"}


def test_what_is_not_measured_counts_as_frozen_in_a_mean_of_its_own(storage: Storage) -> None:
    catalog = Catalog(storage)
    good = {"objmc_px": 2.0, "static_objmc_px": 8.0, "control_gain": 0.75, "objmc_nulls_frozen_px": 2.0}
    lost = {"static_objmc_px": 6.0, "objmc_nulls_frozen_px": 6.0, "null_reason": "too_few_visible_points"}
    static = {"objmc_px": 0.5, "static_objmc_px": 0.0, "objmc_nulls_frozen_px": 0.5, "null_reason": "static_target"}
    without = {"null_reason": "no_boxes"}
    for name, metrics in zip("abcd", (good, lost, static, without), strict=True):
        catalog.add(committed(name, metrics=metrics))
    catalog.add(failed("e"))
    assert mean_fidelity(catalog.index) == MeanFidelity(2, 1.25, 4.0, 0.75, 3, pytest.approx(8.5 / 3), 0.375)
    assert mean_fidelity(catalog.index.slice(4)) == MeanFidelity(0, None, None, None, 0, None, None)


def test_means_and_counts(storage: Storage) -> None:
    catalog = Catalog(storage)
    for record in (
        *(
            committed("a"),
            committed("b", metrics={"objmc_px": 4.0}),
            committed("c", metrics={"null_reason": "few_points"}),
        ),
        *(failed("d"), failed("e", "unknown"), failed("f", "unknown")),
    ):
        catalog.add(record)
    index = catalog.index
    assert mean_of(index, "objmc_px") == 3.0
    assert mean_of(index.slice(2), "objmc_px") is None
    assert (count(index, "committed"), count(index, "failed")) == (3, 3)
    assert list(counts_of(index.slice(3), "error_code").items()) == [("unknown", 2), ("image_missing", 1)]
