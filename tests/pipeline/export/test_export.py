"""Exports go on after kills, take in what is new, and refuse what does not belong together."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.export.destination import Destination, Shard
from pipeline.export.export import ExportOptions, describe, shown_problems
from pipeline.export.export import export as export_samples
from pipeline.export.splits import DEFAULT_SPLITS, parse_splits, split_of
from pipeline.export.verify import lines, repair_export, verify_export
from pipeline.output.lease import acquire
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError
from tests.pipeline.export.stand_in_output import ids, make_output

FORMATS = ("videofolder", "webdataset", "npz", "coco-video", "lance")
SAMPLES = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("made") / "out", *ids(SAMPLES))


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "out")


class KilledError(Exception):
    """In place of a SIGKILL."""


@dataclass(frozen=True)
class Done:
    """What the command line would print, and its exit code."""

    returncode: int
    stdout: str


def export(
    source: Path | str,
    target: Path | str,
    format_name: str = "webdataset",
    splits: str = DEFAULT_SPLITS,
    **changes: Any,
) -> Done:
    """Export with two samples a shard, without the command line."""
    options = ExportOptions(format_name, parse_splits(splits), **{"shard_samples": 2, **changes})
    try:
        result = export_samples(str(source), str(target), options)
    except ConfigError as error:
        return Done(2, str(error))
    except KilledError:
        return Done(3, "")
    return Done(int(bool(result.problems)), "\n".join([*shown_problems(result), *describe(result, str(target))]))


def verify(target: Path | str) -> Done:
    verdict = verify_export(str(target))
    return Done(int(bool(verdict.flaws)), "\n".join(lines(verdict)))


def files(target: Path) -> dict[str, bytes]:
    """Everything of an export but its lease."""
    found = {file.relative_to(target).as_posix(): file.read_bytes() for file in target.rglob("*") if file.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("lease/")}


def content(target: Path, format_name: str) -> Any:
    """What must be equal after a kill: every byte, or the rows of Lance, whose files have random names."""
    if format_name != "lance":
        return files(target)
    import lance

    return {split.name: lance.dataset(str(split)).to_table().to_pylist() for split in target.glob("*.lance")}


@pytest.mark.parametrize("format_name", FORMATS)
def test_after_two_kills_it_equals_the_undisturbed_one(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    assert export(output, tmp_path / "one", format_name=format_name).returncode == 0
    add = Destination.add
    for kill_at in (2, 2):
        calls = 0

        def add_or_die(self: Destination, shard: Shard, kill_at: int = kill_at) -> None:
            nonlocal calls
            calls += 1
            if calls == kill_at:  # everything of the shard is there but its entry
                raise KilledError
            add(self, shard)

        monkeypatch.setattr(Destination, "add", add_or_die)
        assert export(output, tmp_path / "two", format_name=format_name).returncode == 3
        assert not (tmp_path / "two" / "shards.json").exists()
        assert "interrupted" in verify(tmp_path / "two").stdout
    monkeypatch.setattr(Destination, "add", add)
    assert export(output, tmp_path / "two", format_name=format_name).returncode == 0
    assert content(tmp_path / "two", format_name) == content(tmp_path / "one", format_name)
    assert verify(tmp_path / "two").returncode == 0


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_second_call_adds_what_is_new_and_touches_nothing_else(tmp_path: Path, format_name: str) -> None:
    output, target = tmp_path / "out", tmp_path / "x"
    make_output(output, *ids(4))
    assert export(output, target, format_name=format_name).returncode == 0
    before = files(target)
    make_output(output, *ids(7), columns={"later": 1})
    again = export(output, target, format_name=format_name)
    assert "3 samples exported, 4 there before: 7 samples" in again.stdout
    assert "left out: later" in again.stdout
    after = files(target)
    rewritten = {"README.md", "shards.json"} | {name for name in before if name.startswith("annotations/")}
    rewritten |= {name for name in before if "latest_version" in name}
    assert {name: after[name] for name in before if name not in rewritten} == {
        name: data for name, data in before.items() if name not in rewritten
    }
    assert verify(target).returncode == 0
    exported = [sample for name in after if name.startswith("index/") for sample in json.loads(after[name])["samples"]]
    assert sorted(exported) == ids(7)


def test_a_killed_call_leaves_no_files_of_samples_that_are_gone_since(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    monkeypatch.setattr(Destination, "add", lambda self, shard: (_ for _ in ()).throw(KilledError))
    assert export(output, target, format_name="videofolder").returncode == 3
    monkeypatch.undo()
    table = pq.read_table(output / "metadata.parquet")
    pq.write_table(table.filter(pc.greater(table["sample_id"], "s00003")), output / "metadata.parquet")
    assert export(output, target, format_name="videofolder").returncode == 0
    assert len(list(target.rglob("*.mp4"))) == SAMPLES - 4
    assert verify(target).returncode == 0


def test_all_samples_of_an_image_are_on_one_side_also_later(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", *ids(30), per_image=5)
    words = {"splits": "train=0.5,validation=0.2,test=0.3", "split_seed": 1}
    assert export(output, tmp_path / "x", **words).returncode == 0
    make_output(output, *ids(60), per_image=5)
    assert export(output, tmp_path / "x", **words).returncode == 0
    images = dict(pq.read_table(output / "metadata.parquet").select(["sample_id", "image_sha256"]).to_pandas().values)
    sides: dict[str, set[str]] = {}
    for file in (tmp_path / "x" / "index").iterdir():
        entry = json.loads(file.read_bytes())
        for sample in entry["samples"]:
            sides.setdefault(images[sample], set()).add(entry["split"])
    assert {len(splits) for splits in sides.values()} == {1}
    assert set.union(*sides.values()) == {"train", "validation", "test"}


def test_the_shares_of_splits_are_those_that_are_asked_for() -> None:
    shares = parse_splits("train=8,test=2")
    assert shares == {"train": 0.8, "test": 0.2}
    found = [split_of(f"image-{number}", shares, seed=0) for number in range(5000)]
    assert 0.78 < found.count("train") / len(found) < 0.82
    assert found != [split_of(f"image-{number}", shares, seed=1) for number in range(5000)]


@pytest.mark.parametrize(
    "text", ["train", "train=0", "train=1,train=2", "Train=1", "index=1", "a/b=1", "train=nan", ""]
)
def test_splits_that_cannot_be_used_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--splits"):
        parse_splits(text)


def test_shards_are_bounded_by_size(output: Path, tmp_path: Path) -> None:
    done = export(output, tmp_path / "x", splits="a=1", shard_bytes=60_000, shard_samples=1000)
    assert done.returncode == 0
    sizes = [file.stat().st_size for file in (tmp_path / "x").rglob("*.tar")]
    assert len(sizes) > 2
    assert max(sizes) <= 60_000


def test_a_missing_and_a_damaged_video_are_listed_and_the_others_exported(output: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted((output / "videos").iterdir())
    first.unlink()
    second.write_bytes(b"other")
    done = export(output, tmp_path / "x")
    assert done.returncode == 1
    assert "s00000: its video" in done.stdout
    assert "s00001: its video" in done.stdout
    assert "2 samples could not be exported" in done.stdout
    assert f"{SAMPLES - 2} samples exported" in done.stdout
    assert verify(tmp_path / "x").returncode == 0


def test_a_video_that_the_table_names_outside_of_the_output_is_not_read(output: Path, tmp_path: Path) -> None:
    table = pq.read_table(output / "metadata.parquet")
    names = ["../../secret.mp4", *table["file_name"].to_pylist()[1:]]
    table = table.set_column(table.column_names.index("file_name"), "file_name", pa.array(names))
    pq.write_table(table, output / "metadata.parquet")
    done = export(output, tmp_path / "x")
    assert done.returncode == 1
    assert "which is not a video of this sample" in done.stdout


def test_a_sample_that_was_made_again_is_listed(output: Path, tmp_path: Path) -> None:
    export(output, tmp_path / "x")
    table = pq.read_table(output / "metadata.parquet")
    digests = ["0" * 64, *table["video_sha256"].to_pylist()[1:]]
    table = table.set_column(table.column_names.index("video_sha256"), "video_sha256", pa.array(digests))
    pq.write_table(table, output / "metadata.parquet")
    done = export(output, tmp_path / "x")
    assert done.returncode == 1
    assert "s00000: was made again since it was exported" in done.stdout


def test_an_output_whose_run_goes_on_is_exported_as_it_is(output: Path, tmp_path: Path) -> None:
    labels = pq.read_table(output / "labels.parquet")
    pq.write_table(labels.filter(pc.greater(labels["sample_id"], "s00001")), output / "labels.parquet")
    with acquire(Storage(str(output))):
        done = export(output, tmp_path / "x")
    assert done.returncode == 0
    assert "a run is writing to" in done.stdout
    assert "2 samples left out: its labels are not written yet" in done.stdout
    done = export(output, tmp_path / "x")
    assert f"2 samples exported, {SAMPLES - 2} there before" in done.stdout


def test_without_labels_only_some_formats_are_made(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", *ids(2), labels=False)
    for format_name in ("npz", "coco-video"):
        done = export(output, tmp_path / format_name, format_name=format_name)
        assert done.returncode == 2
        assert "is made of labels" in done.stdout
        assert not (tmp_path / format_name).exists()
    for format_name in ("videofolder", "webdataset", "lance"):
        done = export(output, tmp_path / format_name, format_name=format_name)
        assert done.returncode == 0
        assert "has no labels" in done.stdout


def test_what_cannot_be_exported_is_refused_before_anything_is_written(output: Path, tmp_path: Path) -> None:
    def refusal(source: Path | str, target: Path | str, **changes: Any) -> str:
        done = export(source, target, **changes)
        assert done.returncode == 2, done.stdout
        return done.stdout

    assert "neither may lie in the other" in refusal(output, output / "videos" / "x")
    assert "neither may lie in the other" in refusal(output, tmp_path)
    assert "did you mean webdataset" in refusal(output, tmp_path / "x", format_name="webdatasets")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "such as mine.txt" in refusal(output, tmp_path / "full")
    assert "there is no run at" in refusal(tmp_path / "nothing", tmp_path / "x")
    assert "--link" in refusal(output, tmp_path / "x", link=True)
    assert not (tmp_path / "x").exists()
    empty = make_output(tmp_path / "empty")
    assert "has no committed sample" in refusal(empty, tmp_path / "x")
    (empty / "metadata.parquet").unlink()
    assert "no committed sample yet" in refusal(empty, tmp_path / "x")
    assert export(output, tmp_path / "x").returncode == 0
    assert "shard_samples is 2 there and 3 here" in refusal(output, tmp_path / "x", shard_samples=3)
    assert "format is webdataset there and npz here" in refusal(output, tmp_path / "x", format_name="npz")
    other = make_output(tmp_path / "other", "u1", "u2")
    assert "is an export of another output" in refusal(other, tmp_path / "x")
    with acquire(Storage(str(tmp_path / "x"))):
        assert "another export is writing" in refusal(output, tmp_path / "x")


def test_a_card_that_a_person_wrote_stays(output: Path, tmp_path: Path) -> None:
    export(output, tmp_path / "x")
    (tmp_path / "x" / "README.md").write_text("mine")
    assert "README.md was changed by a person" in export(output, tmp_path / "x").stdout
    assert (tmp_path / "x" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("format_name", ["videofolder", "webdataset"])
def test_verify_finds_damaged_shards_and_repair_lets_them_be_made_again(
    output: Path, tmp_path: Path, format_name: str
) -> None:
    target = tmp_path / "x"
    export(output, target, format_name=format_name)
    before = files(target)
    damaged = sorted(target.rglob("*.tar" if format_name == "webdataset" else "*.mp4"))
    damaged[0].write_bytes(b"other")
    damaged[-1].unlink()
    done = verify(target)
    assert done.returncode == 1
    assert repair_export(str(target), verify_export(str(target))) == 4
    assert "has 5 bytes" in done.stdout
    assert "is not there" in done.stdout
    assert export(output, target, format_name=format_name).returncode == 0
    assert verify(target).returncode == 0
    assert files(target) == before


def test_from_and_to_any_store(output: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(output), "/export-source", recursive=True)
    assert export("memory://export-source", "memory://export-target").returncode == 0
    assert verify("memory://export-target").returncode == 0
    assert export(output, tmp_path / "x").returncode == 0
    tars = {file.name: file.read_bytes() for file in (tmp_path / "x").rglob("*.tar")}
    assert {key.rpartition("/")[2]: memory.cat(key) for key in memory.find("/export-target") if ".tar" in key} == tars


def test_rows_in_any_order_give_the_same_shards(output: Path, tmp_path: Path) -> None:
    assert export(output, tmp_path / "one").returncode == 0
    for name in ("metadata.parquet", "labels.parquet"):
        table = pq.read_table(output / name)
        halves = [table.slice(len(table) // 2), table.slice(0, len(table) // 2)]
        rows = pa.concat_tables(halves)
        pq.write_table(rows, output / name, row_group_size=len(rows) // 2 if name == "metadata.parquet" else len(rows))
    assert export(output, tmp_path / "two").returncode == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_missing_library_is_named_with_its_extra(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    done = export(output, tmp_path / "x", format_name="lance")
    assert done.returncode == 2
    assert "sgi2v-batch[export]" in done.stdout
    assert not (tmp_path / "x").exists()
