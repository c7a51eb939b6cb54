"""Shards of a manifest, run one by one, and merged into what one run gives."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.shards import Shard, shard_of
from pipeline.output import merge
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import picture, row, table, write_good, write_rows

ROWS = 12
BAD = "s04"
"""A row without an image."""
OWN_TO_ONE_RUN = {"file_name", "host", "finished_at", *(f"seconds_{name}" for name in ("load", "commit"))}
"""Columns that differ between two runs of one manifest."""


@pytest.fixture(scope="module", autouse=True)
def bare_loop() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest `m.parquet`, its output by one run, `one`, and by three shards, `many`."""
    folder = tmp_path_factory.mktemp("shards")
    ids = [f"s{number:02d}" for number in range(ROWS)]
    for number, sample_id in enumerate(ids):
        if sample_id != BAD:
            picture(number).save(folder / f"{sample_id}.png")
    own = pa.array([{"order": number, "word": None} for number in range(ROWS)])
    write_rows(folder / "m.parquet", [row(sample_id) for sample_id in ids], about=own)
    assert run_tiny_here(folder / "m.parquet", folder / "one").returncode == 1
    for number in range(3):
        ended = run_tiny_here(folder / "m.parquet", folder / "many", "--shard", f"{number}/3")
        assert ended.returncode == int(shard_of(BAD, 3) == number), ended.stderr
    return folder


@pytest.fixture
def many(made: Path, tmp_path: Path) -> Path:
    """A copy of the three shards' results, not merged."""
    return Path(shutil.copytree(made / "many", tmp_path / "many"))


def rows_of(output: Path, name: str) -> dict[str, dict[str, object]]:
    """The rows of a table by id and box, without what differs between two runs."""
    rows = table(output, name).drop_columns([c for c in OWN_TO_ONE_RUN if c in table(output, name).column_names])
    return {f"{each['sample_id']} {each.get('box')}": each for each in rows.to_pylist()}


def test_shards_are_stable_even_and_complete() -> None:
    assert [shard_of(f"car-{number}", 3) for number in range(8)] == [1, 1, 1, 2, 2, 2, 1, 0]
    ids = pa.table({"sample_id": [f"{kind}{number}" for kind in ("a", "car-", "x.") for number in range(4000)]})
    parts = [Shard(number, 7).rows_of(ids)["sample_id"].to_pylist() for number in range(7)]
    assert Counter(chain.from_iterable(parts)) == Counter(ids["sample_id"].to_pylist())
    assert max(map(len, parts)) / min(map(len, parts)) < 1.15


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "a/b", "0/0", "1/3/5", ""])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard is"):
        Shard.parse(text)


@pytest.mark.slow
def test_merged_shards_give_what_one_run_gives(made: Path, many: Path) -> None:
    ended = here("merge", many)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 shards: 11 made, 1 failed" in ended.stdout
    assert "verified: everything is there and whole" in ended.stdout
    for name in ("metadata.parquet", "failures.parquet", "labels.parquet"):
        assert table(many, name).schema.equals(table(made / "one", name).schema)
        assert rows_of(many, name) == rows_of(made / "one", name)
    one, merged = (json.loads((each / "run.json").read_text()) for each in (made / "one", many))
    assert {key for key in one if one[key] != merged[key]} == set()
    assert here("status", many).stdout.splitlines()[0] == here("status", made / "one").stdout.splitlines()[0]
    assert run_tiny_here(made / "m.parquet", many).stdout.startswith("0 made, 0 failed, 12 done before, of 12 rows")


def test_a_merge_again_changes_nothing_and_takes_in_what_is_new(made: Path, many: Path) -> None:
    assert here("merge", many, "--no-verify").returncode == 0
    before = table(many)
    picture(4).save(made / f"{BAD}.png")
    try:
        again = run_tiny_here(made / "m.parquet", many, "--shard", f"{shard_of(BAD, 3)}/3", "--retry-failed")
        assert again.returncode == 0, again.stderr
        assert here("merge", many, "--no-verify").returncode == 0
    finally:
        (made / f"{BAD}.png").unlink()
    assert table(many, "failures.parquet").num_rows == 0
    after = {each["sample_id"]: each for each in table(many).to_pylist()}
    assert after.pop(BAD)["attempts"] == 2
    assert after == {each["sample_id"]: each for each in before.to_pylist()}


@pytest.mark.slow
def test_a_sample_that_was_repaired_away_comes_back(many: Path) -> None:
    assert here("merge", many, "--no-verify").returncode == 0
    lost = table(many)["file_name"][3].as_py()
    (many / lost).unlink()
    assert here("verify", many, "--repair").returncode == 0
    assert here("merge", many, "--no-verify").returncode == 0
    assert lost in table(many)["file_name"].to_pylist()


def test_a_merge_that_was_killed_goes_on(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []

    def copy_few(storage: Storage, other: Storage, key: str) -> bool:
        copied.append(key)
        if len(copied) == 7:
            raise StorageError("the store is gone")
        return copy(storage, other, key)

    copy = Storage.copy_from
    monkeypatch.setattr(merge, "PARALLEL_COPIES", 1)
    monkeypatch.setattr(Storage, "copy_from", copy_few)
    assert here("merge", many, "--no-verify").returncode == 3
    assert not (many / "metadata.parquet").exists()
    assert here("merge", many, "--no-verify").returncode == 0
    assert table(many).num_rows == ROWS - 1


@pytest.mark.slow
def test_shards_are_deleted_once_all_is_verified(many: Path, tmp_path: Path) -> None:
    assert here("merge", many, "--delete-shards", "--no-verify").returncode == 2
    broken = Path(shutil.copytree(many, tmp_path / "broken"))
    video = next((broken / "shards" / "1" / "videos").iterdir())
    video.write_bytes(bytes(video.stat().st_size))
    assert here("merge", broken, "--delete-shards").returncode == 1
    assert (broken / "shards" / "1" / "run.json").exists()
    ended = here("merge", many, "--delete-shards")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {path.name for path in (many / "shards" / "0").iterdir() if any(path.rglob("*.*"))} == {"lease", "logs"}
    assert here("verify", many).returncode == 0


def test_what_keeps_shards_from_being_merged_is_named(made: Path, many: Path) -> None:
    shutil.rmtree(many / "shards" / "0")
    run = json.loads((many / "shards" / "1" / "run.json").read_text())
    run["deciding"]["seed"] = 5
    (many / "shards" / "1" / "run.json").write_text(json.dumps(run))
    record = next((many / "shards" / "2" / "records").glob("*.json"))
    record.write_text("{}")
    ended = here("merge", many)
    assert ended.returncode == 2
    assert "the shard 0/3 is missing: run it with --shard 0/3" in ended.stderr
    assert "seed: 5 before, 817 now" in ended.stderr
    assert "1 damaged record" in ended.stderr
    assert "1 row left: run it again with --shard 2/3" in ended.stderr
    assert not (many / "run.json").exists()
    assert "has no shards" in here("merge", made / "one").stderr
    assert "whole manifest, and not of a shard" in here("merge", many, made / "one").stderr


def test_a_shard_that_still_runs_is_not_merged(many: Path) -> None:
    claim = next((many / "shards" / "1" / "lease").glob("*.json"))
    held = {**json.loads(claim.read_text()), "released": False, "renewed_at": time.time(), "machine": "another"}
    claim.write_text(json.dumps(held))
    ended = here("merge", many)
    assert ended.returncode == 2
    assert "shards/1 still runs" in ended.stderr


def test_an_output_belongs_to_one_shard(made: Path, many: Path) -> None:
    (many / "shards" / "0").rename(many / "shards" / "9")
    (many / "shards" / "1").rename(many / "shards" / "0")
    ended = run_tiny_here(made / "m.parquet", many, "--shard", "0/3")
    assert ended.returncode == 2
    assert "has the results of the shard 1/3 of a manifest: run with --shard 1/3" in ended.stderr


@pytest.mark.whole
def test_shards_of_a_bucket_are_copied_by_the_store_itself(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_good(tmp_path, 2)
    for number in range(3):  # one of them has no rows
        ended = run_tiny_here(manifest, f"{bucket}/out", "--shard", f"{number}/3")
        assert ended.returncode == 0, ended.stderr

    def no_bytes(storage: Storage, key: str) -> bytes | None:
        assert not key.startswith("videos/"), "the bytes of a video have come through this process"
        return get(storage, key)

    get = Storage.get
    monkeypatch.setattr(Storage, "get", no_bytes)
    ended = here("merge", f"{bucket}/out", "--delete-shards")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 shards: 2 made, 0 failed" in ended.stdout
    left = [key for key in Storage(bucket).keys("out/shards") if "/logs/" not in key and "/lease/" not in key]
    assert left == []
