"""A driver or worker is stopped right before one call, and woken when newer ones have done their whole work.

Nothing that the newer ones made is lost or doubled. `SGI2V_CHAOS=whole` wakes each of them 100 times.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.schema import row_digest
from pipeline.inspect.verify import Flaw, repair
from pipeline.output import lease as lease_module
from pipeline.output.catalog import Catalog
from pipeline.output.keys import parse_record_key
from pipeline.output.lease import LeaseError, acquire, check_epoch, check_owner, read_claim
from pipeline.output.records import SampleRecord, commit, record_key, video_key
from pipeline.output.run_file import create_run_file
from pipeline.output.storage import ABANDONED_S, Storage
from pipeline.output.tables import METADATA, is_replaced_by_older, write_tables
from pipeline.plan import make_plan
from sgi2v.errors import ConfigError
from tests.chaos.outcome import Outcome, scaled
from tests.pipeline.output.outputs import manifest, settings
from tests.pipeline.runs import row

pytestmark = pytest.mark.slow

ROUNDS = scaled(1, 100)
ResultT = TypeVar("ResultT")


class Stopped(Storage):
    """The store of a process that is stopped right before a call on the first key with a beginning."""

    def __init__(self, url: str, method: str, beginning: str, meanwhile: Callable[[], object]) -> None:
        super().__init__(url)
        self.method, self.beginning, self.meanwhile = method, beginning, meanwhile
        self.is_woken = False
        self._lock = threading.Lock()

    def _stop(self, method: str, key: str) -> None:
        with self._lock:
            if not self.is_woken and method == self.method and key.startswith(self.beginning):
                self.is_woken = True
                self.meanwhile()

    def put_new(self, key: str, data: bytes) -> bool:
        self._stop("put_new", key)
        return super().put_new(key, data)

    def put_file(self, key: str, file: Path) -> None:
        self._stop("put_file", key)
        super().put_file(key, file)

    def delete(self, key: str) -> None:
        self._stop("delete", key)
        super().delete(key)


@dataclass
class Clock:
    """The time of all processes."""

    ahead_s: float = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, now = Clock(), time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock.ahead_s)
    return clock


@pytest.fixture(autouse=True)
def _claims_expire_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped driver sends no heartbeats, so its claim is void by the time that another one starts."""
    monkeypatch.setattr(lease_module, "is_alive", lambda claim: False)


@dataclass
class Scene:
    """An output, and the samples of its manifest."""

    url: str
    ids: list[str]
    victim: str
    """The sample that is damaged, made again, or late."""

    @property
    def storage(self) -> Storage:
        return Storage(self.url)

    def record(self, sample_id: str, attempts: int = 1) -> tuple[SampleRecord, bytes]:
        """A record, and its video."""
        key = video_key(sample_id, uuid.uuid4().hex[:8])
        record = SampleRecord(sample_id, "committed", attempts, row_digest(row(sample_id)), "print", file_name=key)
        video = f"the video {key}".encode()
        return replace(record, video_bytes=len(video), video_sha256=hashlib.sha256(video).hexdigest()), video

    def make(self, *ids: str, epoch: int = 1) -> None:
        """Commit the first attempt at samples."""
        for sample_id in ids:
            commit(self.storage, *self.record(sample_id), lambda: check_epoch(self.storage, epoch))

    def run(self, seal: bool = False, rows: pa.Table | None = None) -> None:
        """A whole run, as `pipeline.run` does it."""
        table = manifest(*self.ids) if rows is None else rows
        with acquire(self.storage) as held:
            plan = make_plan(table, self.storage, retry_failed=False, limit=None, manifest_unchanged=True)
            plan.catalog.delete_superseded(held.epoch)
            for todo in plan.todo.to_pylist():
                record = commit(
                    self.storage,
                    *self.record(todo["sample_id"], todo["_attempts"] + 1),
                    lambda: check_epoch(self.storage, held.epoch),
                )
                plan.catalog.add(record)
            if seal:
                plan.catalog.seal(held.epoch)
            plan.catalog.refresh()
            plan.catalog.delete_superseded(held.epoch)
            write_tables(plan.catalog, table, held.epoch)

    def damage_and_repair(self) -> None:
        """Damage the victim's video, and take the victim away."""
        record = Catalog(self.storage).get(self.victim)
        assert record is not None
        assert record.file_name is not None
        self.storage.put(record.file_name, b"damaged")
        assert repair(self.url, [Flaw("video_damaged", self.victim, "")]) == 1
        assert self.storage.get(record.file_name) is None

    def table(self) -> pa.Table:
        read = self.storage.read(METADATA, lambda stream: pq.ParquetFile(stream).read(use_threads=False))
        return manifest() if read is None else read

    def outcome(self) -> tuple[dict[str, str | None], Counter[str]]:
        """The video of every finished sample, and what is lost, doubled and without a record."""
        rows = Catalog(self.storage).index.to_pylist()
        named = {row["sample_id"]: row["file_name"] for row in rows}
        videos = self.storage.get_many(self.storage.keys("videos"))
        whole = [name for name in named.values() if videos.get(name) == f"the video {name}".encode()]
        in_table = Counter(self.table()["sample_id"].to_pylist())
        return named, Counter(
            lost=len(set(self.ids) - named.keys()) + len(named) - len(whole),
            doubled=len(rows) - len(named) + sum(number > 1 for number in in_table.values()),
            orphans=len(videos.keys() - set(named.values())),
        )


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[Scene]:
    """ROUNDS new outputs, one in ten on disk and the others in memory, of several sizes and with several victims."""
    config = settings()
    roots = (f"memory://{uuid.uuid4().hex}", str(tmp_path))

    def scene(turn: int) -> Scene:
        ids = [f"s{number}" for number in range(2 + turn % 3)]
        scene = Scene(f"{roots[turn % 10 == 9]}/out-{turn}", ids, ids[turn % len(ids)])
        create_run_file(scene.storage, config, "digest", len(ids))
        return scene

    return map(scene, range(ROUNDS))


Judge = Callable[[Outcome], None]


def judge_all(kind: str, scenes: Iterator[Scene], play: Callable[[Scene], None], judged: Judge) -> None:
    """Play every scene, count what is lost and doubled as the woken process leaves it, and again behind a next run."""
    start, rows, total = time.monotonic(), 0, Counter[str]()
    for scene in scenes:
        play(scene)
        before, counts = scene.outcome()
        total.update(lost=counts["lost"], doubled=counts["doubled"])
        scene.run()
        after, counts = scene.outcome()
        assert after == before, "the next run has nothing to make"
        assert sorted(scene.table()["sample_id"].to_pylist()) == sorted(scene.ids)
        total.update(counts)
        rows += len(scene.ids)
    seconds = time.monotonic() - start
    judged(Outcome(kind, rows, ROUNDS, total["lost"], total["doubled"], 0, 0, total["orphans"], seconds))


def woken_to_lose_its_lease(storage: Stopped, call: Callable[[], object]) -> None:
    """Let a driver go on with the call that it was stopped at, and find out that another one has the output."""
    with pytest.raises(LeaseError, match="taken over by another run"):
        call()
    assert storage.is_woken


def test_a_driver_that_deletes_what_it_sealed_deletes_no_newer_record(scenes: Iterator[Scene], judged: Judge) -> None:
    def play(scene: Scene) -> None:
        def newer() -> None:
            scene.damage_and_repair()
            scene.run()

        storage = Stopped(scene.url, "delete", "records/", newer)
        held = acquire(storage)
        scene.make(*scene.ids)
        Catalog(storage).seal(held.epoch)
        assert storage.is_woken
        record = Catalog(scene.storage).get(scene.victim)
        assert record is not None
        assert record.attempts == 2

    judge_all("stopped before it deletes sealed records", scenes, play, judged)


@pytest.mark.parametrize("seals", [False, True])
def test_a_part_that_comes_late_does_not_undo_a_repair(scenes: Iterator[Scene], judged: Judge, seals: bool) -> None:
    def play(scene: Scene) -> None:
        def newer() -> None:
            scene.damage_and_repair()
            scene.run(seals)

        storage = Stopped(scene.url, "put_new", "parts/", newer)
        held = acquire(storage)
        scene.make(*scene.ids)
        catalog = Catalog(storage)
        woken_to_lose_its_lease(storage, lambda: catalog.seal(held.epoch))
        assert f"parts/{held.epoch:06d}-0000.parquet" in scene.storage.keys("parts"), "the late part is there"

    judge_all("stopped before it puts a part", scenes, play, judged)


def test_a_part_that_comes_late_does_not_bring_a_removed_sample_back(scenes: Iterator[Scene]) -> None:
    for scene in scenes:
        storage = Stopped(scene.url, "put_new", "parts/", scene.damage_and_repair)
        held = acquire(storage)
        scene.make(*scene.ids)
        catalog = Catalog(storage)
        woken_to_lose_its_lease(storage, lambda catalog=catalog, held=held: catalog.seal(held.epoch))
        assert Catalog(scene.storage).get(scene.victim) is None
        scene.run()
        assert scene.outcome()[1].total() == 0


def test_a_repair_that_comes_late_removes_no_newer_record(scenes: Iterator[Scene], judged: Judge) -> None:
    def play(scene: Scene) -> None:
        def newer() -> None:
            scene.damage_and_repair()
            scene.run(seal=True)

        scene.make(*scene.ids)
        storage = Stopped(scene.url, "put_new", "parts/", newer)
        held = acquire(storage)
        catalog = Catalog(storage)
        woken_to_lose_its_lease(storage, lambda: catalog.remove([scene.victim], held.epoch))

    judge_all("a repair is stopped before it removes", scenes, play, judged)


@pytest.mark.parametrize("meanwhile", ["repair", "late repair", "run", "run that seals"])
def test_a_worker_whose_record_is_on_its_way_keeps_its_video(
    scenes: Iterator[Scene], judged: Judge, clock: Clock, meanwhile: str
) -> None:
    def play(scene: Scene) -> None:
        others = [sample_id for sample_id in scene.ids if sample_id != scene.victim]
        record, video = scene.record(scene.victim)
        assert record.file_name is not None
        clock.ahead_s = 0.0

        def newer() -> None:
            if meanwhile == "late repair":
                clock.ahead_s = 2 * ABANDONED_S
            if meanwhile.startswith("run"):
                scene.run(seal=meanwhile == "run that seals")
            else:
                repair(scene.url, [Flaw("video_orphan", record.file_name or "", "")])
                is_kept = scene.storage.get(record.file_name or "") is not None
                assert is_kept == (meanwhile == "repair"), "only an old video without a record is deleted"

        held = acquire(scene.storage)
        scene.make(*others, epoch=held.epoch)
        storage = Stopped(scene.url, "put_new", "records/", newer)
        commit(storage, record, video, lambda: check_epoch(scene.storage, held.epoch))
        assert storage.is_woken

    judge_all(f"a worker is stopped before it puts a record; meanwhile a {meanwhile}", scenes, play, judged)


@pytest.mark.parametrize("beginning", [METADATA, "tables/"])
def test_a_table_that_comes_late_is_found_and_replaced(scenes: Iterator[Scene], judged: Judge, beginning: str) -> None:
    def own(ids: list[str], value: str) -> pa.Table:
        return manifest(*ids, columns={"own": pa.array([f"{value} of {sample_id}" for sample_id in ids])})

    def play(scene: Scene) -> None:
        first, second = scene.ids[:1], scene.ids[1:]
        storage = Stopped(scene.url, "put_file", beginning, lambda: scene.run(rows=own(second, "newer")))
        held = acquire(storage)
        scene.make(*first)
        catalog = Catalog(storage)
        woken_to_lose_its_lease(storage, lambda: write_tables(catalog, own(first, "older"), held.epoch))
        assert scene.table()["sample_id"].to_pylist() == first, "the late table is there"
        assert is_replaced_by_older(scene.storage, METADATA)
        scene.run(rows=own(first, "older"))
        assert not is_replaced_by_older(scene.storage, METADATA)
        values = dict(zip(scene.table()["sample_id"].to_pylist(), scene.table()["own"].to_pylist(), strict=True))
        assert values == {
            sample_id: f"{'older' if sample_id in first else 'newer'} of {sample_id}" for sample_id in scene.ids
        }

    judge_all(f"stopped before it puts {beginning}", scenes, play, judged)


class Careless(Storage):
    """A store that ignores the condition of a put: it replaces the object."""

    def put_new(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


class Racing(Stopped):
    """A store that looks for the object first and then puts: it is stopped between the two."""

    def put_new(self, key: str, data: bytes) -> bool:
        if self.get(key) is not None:
            return False
        self._stop("put_new", key)
        self.put(key, data)
        return True


def test_two_drivers_on_a_store_that_ignores_conditions_are_both_refused(scenes: Iterator[Scene]) -> None:
    for scene in scenes:
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"cannot hold an output.*ignores the condition.*If-None-Match"):
                acquire(Careless(scene.url))
        assert [key for folder in ("lease", "parts", "records") for key in scene.storage.keys(folder)] == []


def test_of_two_drivers_that_claim_one_epoch_one_goes_on(scenes: Iterator[Scene], judged: Judge) -> None:
    def play(scene: Scene) -> None:
        def newer() -> None:
            first = acquire(scene.storage)
            scene.make(*scene.ids[:1], epoch=first.epoch)
            Catalog(scene.storage).seal(first.epoch)
            claims.append(first.claim)

        claims: list[lease_module.Claim] = []
        second = acquire(Racing(scene.url, "put_new", "lease/0", newer))
        assert second.epoch == claims[0].epoch
        check_owner(scene.storage, second.claim)
        with pytest.raises(LeaseError, match="taken over by another run"):  # as its next heartbeat does
            check_owner(scene.storage, claims[0])
        assert read_claim(scene.storage) == second.claim
        scene.run(seal=True)

    judge_all("two drivers with one epoch", scenes, play, judged)


def test_a_driver_whose_claim_is_replaced_before_it_reads_it_back_stops(scenes: Iterator[Scene]) -> None:
    for scene in scenes:

        class Replaced(Storage):
            """Here another driver's claim replaces each one that was put."""

            def put_new(self, key: str, data: bytes) -> bool:
                is_new = super().put_new(key, data)
                if key.startswith("lease/0"):
                    self.put(key, data.replace(b'"owner": "', b'"owner": "another'))
                return is_new

        with pytest.raises(LeaseError, match="taken over by another run"):
            acquire(Replaced(scene.url))


FOREIGN = (
    *("../precious", "videos/../../precious", "{root}/precious", "videos/s0.0123456.mp4", "videos/s0.01234567.mp4x"),
    *("run.json", "records/s1.json", "metadata.parquet", "videos/s1.01234567.mp4", "videos/s0.0123456G.mp4", "", "/"),
    *("file://{root}/precious", "videos/./s0.01234567.mp4", "videos/s0.01234567.mp4/../../run.json", "videos"),
)


def test_only_videos_of_the_sample_are_touched(scenes: Iterator[Scene], judged: Judge) -> None:
    turn = 0

    def play(scene: Scene) -> None:
        nonlocal turn
        scene.victim, root = "s0", scene.url.removeprefix("memory://").rpartition("/")[0]
        name = FOREIGN[turn % len(FOREIGN)].format(root=root)
        held = acquire(scene.storage)
        scene.make(*scene.ids[1:])
        outside = Storage(scene.url.rpartition("/")[0])
        outside.put("precious", b"precious")
        if turn % 2:
            commit(scene.storage, *scene.record("s0", 2))  # so that the record is superseded, and swept by a run
        record = replace(scene.record("s0")[0], file_name=name)
        if turn % 3:
            scene.storage.put(record_key("s0", 1), record.to_json())
        else:
            catalog = Catalog(scene.storage)
            catalog.add(record)
            catalog.seal(held.epoch)
        before = {key: scene.storage.get(key) for key in scene.storage.keys("") if not parse_record_key(key)}
        scene.run()
        (damage,) = Catalog(scene.storage).damaged
        assert damage.sample_id == "s0"
        repair(scene.url, [Flaw("record_damaged", "s0", "")])
        assert Catalog(scene.storage).damaged == []
        assert outside.get("precious") == b"precious"
        kept = {key: scene.storage.get(key) for key in before if key.startswith(("videos/", "run.json"))}
        assert kept == {key: before[key] for key in kept}
        turn += 1

    judge_all("a record names another object", scenes, play, judged)
