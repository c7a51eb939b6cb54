"""verify finds what is wrong with an output, and repair removes it for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.io import load_manifest
from pipeline.inspect import verify
from pipeline.inspect.verify import repair
from pipeline.inspect.verify import verify as check
from pipeline.output.catalog import Catalog
from pipeline.output.labels import LABELS
from pipeline.output.lease import LeaseError, acquire
from pipeline.output.records import SampleRecord
from pipeline.output.storage import ABANDONED_S, Storage
from sgi2v.errors import ConfigError
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import picture, records, row, table, write_good, write_rows

pytestmark = pytest.mark.slow

ROWS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with without_ray():
        done = run_tiny_here(write_good(folder, ROWS), folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(finished, tmp_path / "out")
    for video in (copy / "videos").iterdir():
        make_old(video)
    return copy


def video(output: Path, sample_id: str = "s00") -> Path:
    return output / str(records(output)[sample_id]["file_name"])


def make_old(video: Path) -> None:
    """Let a video be so old that no record of it can be on its way."""
    os.utime(video, (0, time.time() - ABANDONED_S - 1))


def add_orphan(output: Path, name: str = "x.01234567.mp4") -> None:
    (output / "videos" / name).write_bytes(b"x")
    make_old(output / "videos" / name)


def rewrite(output: Path, sample_id: str, **changes: object) -> None:
    file = output / "records" / f"{sample_id}.json"
    record = SampleRecord.from_json(file.read_bytes())
    file.write_bytes(replace(record, **changes).to_json())  # type: ignore[arg-type]


def truncate(output: Path, sample_id: str = "s00") -> None:
    data = video(output, sample_id).read_bytes()
    video(output, sample_id).write_bytes(data[: len(data) // 2])


def flip(output: Path) -> None:
    data = bytearray(video(output).read_bytes())
    data[len(data) // 2] ^= 255
    video(output).write_bytes(bytes(data))


def swap(output: Path) -> None:
    """Replace a video by another one, with a record that agrees with it but for the number of frames."""
    other = video(output, "s01").read_bytes()
    video(output).write_bytes(other)
    fields = {name: records(output)["s01"][name] for name in ("video_bytes", "video_sha256")}
    rewrite(output, "s00", num_frames=7, labels=None, **fields)


def change_labels(output: Path) -> None:
    """Give the labels of a record another number of frames than its video has."""
    record = records(output)["s00"]
    label = {**record["labels"][0], "asked_boxes": record["labels"][0]["asked_boxes"][1:]}
    (output / "records" / "s00.json").write_text(json.dumps({**record, "labels": [label]}))


def flip_labels(output: Path) -> None:
    data = bytearray((output / LABELS).read_bytes())
    data[len(data) // 8] ^= 255
    (output / LABELS).write_bytes(bytes(data))


def change_label_table(output: Path) -> None:
    """Give a row of the labels the digest of another video."""
    labels = table(output, LABELS)
    digests = labels["video_sha256"].to_pylist()
    place = labels.schema.get_field_index("video_sha256")
    pq.write_table(
        labels.set_column(place, labels.schema.field(place), pa.array([digests[1], *digests[1:]])), output / LABELS
    )


def share(output: Path) -> None:
    fields = {name: records(output)["s01"][name] for name in ("file_name", "video_bytes", "video_sha256")}
    video(output).unlink()
    rewrite(output, "s00", **fields)


DAMAGE: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "missing": (lambda output: video(output).unlink(), [("video_missing", "s00")]),
    "truncated": (truncate, [("video_damaged", "s00")]),
    "one byte": (flip, [("video_damaged", "s00")]),
    "wrong length": (swap, [("video_damaged", "s00"), ("table_stale", LABELS)]),
    "shared": (share, [("record_damaged", "s00"), ("table_stale", "metadata.parquet"), ("table_stale", LABELS)]),
    "labels": (
        change_labels,
        [
            *(("record_damaged", "s00"), ("video_orphan", "videos/s00.")),
            *(("table_stale", "metadata.parquet"), ("table_stale", LABELS)),
        ],
    ),
    "no labels": (lambda output: (output / LABELS).unlink(), [("table_stale", LABELS)]),
    "one byte of the labels": (flip_labels, [("table_stale", LABELS)]),
    "labels of another video": (change_label_table, [("table_stale", LABELS)]),
    "orphan": (add_orphan, [("video_orphan", "videos/x.01234567.mp4")]),
    "no table": (lambda output: (output / "metadata.parquet").unlink(), [("table_stale", "metadata.parquet")]),
    "no record": (
        lambda output: (output / "records" / "s00.json").unlink(),
        [("video_orphan", "videos/s00."), ("table_stale", "metadata.parquet"), ("table_stale", LABELS)],
    ),
}


def test_a_finished_output_is_complete(output: Path) -> None:
    done = here("verify", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 made, 0 failed, 0 left, of 3 rows: everything is there and whole\n"


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_repaired(output: Path, kind: str) -> None:
    damage, expected = DAMAGE[kind]
    damage(output)
    flaws = check(str(output)).flaws
    assert [(flaw.code, flaw.key[: len(key)]) for flaw, (_, key) in zip(flaws, expected, strict=True)] == expected
    repaired = repair(str(output), flaws)
    assert repaired == len({key for _, key in expected if key.startswith("s0")})
    assert check(str(output)).flaws == []
    assert table(output)["sample_id"].to_pylist() == sorted(records(output))
    if repaired:
        assert table(output)["image"].null_count == 0, "the manifest's columns are kept"


def test_a_repaired_sample_is_made_again_by_the_next_run(output: Path, finished: Path) -> None:
    truncate(output)
    repaired = here("verify", output, "--repair")
    assert repaired.returncode == 0, "the repair was full, and the next run makes the sample"
    assert "[video_damaged]" in repaired.stdout
    assert "the next run makes 1 sample again" in repaired.stdout
    before = records(output)
    with without_ray():
        done = run_tiny_here(finished.parent / "m.parquet", output)
    assert done.returncode == 0, done.stderr
    assert check(str(output)).flaws == []
    after = records(output)
    assert set(after) - set(before) == {"s00"}
    assert {name: after[name] for name in before} == before
    digests = [
        {name: record["frames_sha256"] for name, record in records(folder).items()} for folder in (output, finished)
    ]
    assert digests[0] == digests[1]


def change_run_file(output: Path, **changes: object) -> None:
    run = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**run, **changes}))


def put_manifest(output: Path, *ids: str) -> None:
    """Make run.json name another manifest, with these rows."""
    manifest = write_rows(output.parent / "other.parquet", [row(sample_id) for sample_id in ids])
    change_run_file(output, manifest=str(manifest), manifest_sha256=load_manifest(str(manifest)).sha256)


def test_an_unfinished_run_is_not_complete(output: Path) -> None:
    put_manifest(output, "s00", "s01", "s02", "s03")
    change_run_file(output, rows=4)
    done = here("verify", output)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "3 made, 0 failed, 1 left, of 4 rows: no flaws, but the run is not finished\n"


def test_samples_are_compared_with_the_rows_of_the_manifest(output: Path) -> None:
    put_manifest(output, "s00", "s01", "x01")  # as many rows as samples, but one of another sample
    verdict = check(str(output))
    (flaw,) = verdict.flaws
    assert (flaw.code, flaw.key, verdict.left, verdict.manifest_problem) == ("row_missing", "run.json", 1, None)
    assert flaw.message.startswith("1 sample without a row in ")
    assert flaw.message.endswith("other.parquet, expected 0: s02")
    assert repair(str(output), verdict.flaws) == 0
    change_run_file(output, other_samples=1)
    assert (check(str(output)).flaws, check(str(output)).left) == ([], 1)
    change_run_file(output, rows=4)
    message = check(str(output)).flaws[0].message
    assert message == f"expected 4 rows in {output.parent / 'other.parquet'}, got 3"


@pytest.mark.parametrize("gone", [False, True])
def test_without_the_manifest_only_counts_are_compared_and_verify_says_so(output: Path, gone: bool) -> None:
    put_manifest(output, "s00", "s01", "s02")
    manifest = output.parent / "other.parquet"
    if gone:
        manifest.unlink()
    else:
        write_rows(manifest, [row("x00")])
    done = here("verify", output)
    why = f"{manifest} {'cannot be used: manifest: no such file' if gone else 'has changed since the run was started'}"
    first, last = done.stdout.splitlines()
    assert first.startswith(f"the number of rows is checked against run.json only: {why}")
    assert (done.returncode, last) == (0, "3 made, 0 failed, 0 left, of 3 rows: everything is there and whole")
    change_run_file(output, rows=4 if gone else 2)
    verdict = check(str(output))
    assert (verdict.left, [flaw.code for flaw in verdict.flaws]) == ((1, []) if gone else (0, ["row_missing"]))
    assert not verdict.is_complete


def test_a_row_that_is_not_the_one_a_sample_was_made_from_is_a_flaw(output: Path) -> None:
    manifest = write_rows(output.parent / "other.parquet", [row("s00"), row("s01", seed=1), row("s02")])
    for sha256 in (load_manifest(str(manifest)).sha256, "of the manifest before it was edited"):
        change_run_file(output, manifest=str(manifest), manifest_sha256=sha256)
        (flaw,) = check(str(output)).flaws
        assert str(flaw) == (
            f"s01: its row in {manifest} has changed since the sample was made: run again with --redo-changed "
            "[row_changed]"
        )
    repaired = here("verify", output, "--repair")
    assert repaired.returncode == 1
    assert repaired.stdout.splitlines()[-1] == "not repaired: 1 flaw of the manifest or of images"


@pytest.fixture
def images(output: Path, finished: Path) -> Path:
    """The folder of the images that the records of `output` name."""
    folder = output.parent / "images"
    folder.mkdir()
    for sample_id in records(output):
        shutil.copy(finished.parent / f"{sample_id}.png", folder)
        rewrite(output, sample_id, image_uri=str(folder / f"{sample_id}.png"))
    return folder


def test_an_image_that_was_replaced_is_found_on_request(output: Path, images: Path) -> None:
    assert check(str(output), images=True).flaws == []
    picture(99).save(images / "s01.png")
    (images / "s02.png").unlink()
    assert check(str(output)).flaws == []
    done = here("verify", output, "--images")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        f"s01: its image {images}/s01.png has changed since the sample was made: run again with --redo-changed "
        "[image_changed]",
        f"s02: its image cannot be compared: image_missing: {images}/s02.png: no such file: check the path "
        "[image_unreadable]",
    ]


def test_images_are_found_by_the_row_where_the_record_has_no_secrets(output: Path, images: Path) -> None:
    rewrite(output, "s00", image_uri="https://***@host/s00.png")
    picture(99).save(output.parent / "s00.png")
    put_manifest(output, "s00", "s01", "s02")
    assert [flaw.code for flaw in check(str(output), images=True).flaws] == ["image_changed"]
    change_run_file(output, manifest="/gone.parquet")
    (flaw,) = check(str(output), images=True).flaws
    assert flaw.message.endswith("https://***@host/s00.png had secrets, which the record does not keep")


def test_an_output_of_an_earlier_version_says_that_images_were_not_compared(output: Path) -> None:
    for sample_id in records(output):
        rewrite(output, sample_id, image_uri=None, image_sha256=None)
    done = here("verify", output, "--images")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[0] == "3 samples without a digest of the image: not compared"


def crash(video: bytes, shape: tuple[int, int, int]) -> str | None:
    """Abort the process, as a hostile video can, if this is the video that HOSTILE names."""
    if hashlib.sha256(video).hexdigest() == os.environ["HOSTILE"]:
        os.abort()
    return None


def test_a_video_that_crashes_the_decoder_is_only_its_own_flaw(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE", str(records(output)["s01"]["video_sha256"]))
    monkeypatch.setattr(verify, "_decoding_damage", crash)
    (flaw,) = check(str(output)).flaws
    assert (flaw.code, flaw.key) == ("video_damaged", "s01")
    assert "crashes the decoder" in flaw.message


@pytest.mark.parametrize("kind", ["no record", "truncated", "shared"])
def test_repair_leaves_alone_what_is_no_longer_flawed(output: Path, finished: Path, kind: str) -> None:
    DAMAGE[kind][0](output)
    flaws = check(str(output)).flaws
    shutil.copytree(finished, output, dirs_exist_ok=True)  # for example a worker that commits after verify
    before = {path: path.read_bytes() for folder in ("videos", "records") for path in (output / folder).iterdir()}
    assert repair(str(output), flaws) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert check(str(output)).flaws == []


def test_a_sample_committed_during_verify_is_no_flaw(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, record = video(output, "s02"), output / "records" / "s02.json"
    contents = {path: path.read_bytes() for path in (file, record)}
    listed: list[str] = []

    class Committing(Storage):
        """Here a sample is committed between the listing of the one folder and that of the other."""

        def keys(self, folder: str) -> list[str]:
            if folder in {"videos", "records"}:
                listed.append(folder)
            for path, data in contents.items():
                if len(listed) < 2:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(data)
            return super().keys(folder)

    monkeypatch.setattr(verify, "Storage", Committing)
    assert check(str(output)).flaws == []
    assert len(listed) == 2


def test_videos_in_flight_and_stale_tables_are_no_flaws_during_a_run(output: Path) -> None:
    (output / "records" / "s00.json").unlink()
    with acquire(Storage(str(output))) as lease:
        assert check(str(output)).flaws == []
        truncate(output, "s01")
        done = here("verify", output)
        claim = lease.claim.describe()
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.rpartition("[")[2] for line in lines[:-2]] == ["video_damaged]"]
    assert lines[1].startswith(f"a run is writing to it ({claim}): ")
    assert check(str(output)).active_run is None
    assert {flaw.code for flaw in check(str(output)).flaws} == {"video_damaged", "video_orphan", "table_stale"}


def test_the_tables_never_name_a_video_that_repair_deletes(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (output / "records" / "s00.json").unlink()
    truncate(output, "s01")
    flaws = check(str(output)).flaws
    named: list[bool] = []

    class Watched(Storage):
        def delete(self, key: str) -> None:
            if key.startswith("videos/"):
                named.append(key in table(output)["file_name"].to_pylist())
            super().delete(key)

    monkeypatch.setattr(verify, "Storage", Watched)
    repair(str(output), flaws)
    assert named == [False, False]


@pytest.mark.parametrize("kind", ["empty", "half", "folder", "outside"])
def test_a_damaged_record_ends_no_command_and_is_taken_away_by_repair(output: Path, finished: Path, kind: str) -> None:
    manifest, file, precious = (
        finished.parent / "m.parquet",
        output / "records" / "s01.json",
        output.parent / "precious",
    )
    precious.write_text("my thesis")
    whole = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "outside":
        file.write_bytes(whole)
        rewrite(output, "s01", file_name="../precious")
    else:
        file.write_bytes(whole[: len(whole) // 2] if kind == "half" else b"")
    assert "2 made, 0 failed, 1 left" in here("status", output).stdout
    replayed = here("replay", output, "s01")
    assert replayed.returncode == 2
    assert "records/s01.json" in replayed.stderr
    assert here("sheet", manifest, output, "-o", output.parent / "sheet.png").returncode == 0
    checked = here("verify", output)
    assert checked.returncode == 1
    assert any(line.startswith("s01: records/s01.json ") for line in checked.stdout.splitlines())
    assert "[record_damaged]" in checked.stdout
    assert "the next run makes 1 sample again" in here("verify", output, "--repair").stdout
    assert not file.exists()
    assert precious.read_text() == "my thesis"
    with without_ray():
        done = run_tiny_here(manifest, output)
    assert done.returncode == 0, done.stderr
    assert check(str(output)).is_complete
    assert (output / "records" / "attempt-2" / "s01.json").is_file()


def test_a_run_makes_the_sample_of_a_damaged_record_again_and_says_so(output: Path, finished: Path) -> None:
    (output / "records" / "s01.json").write_bytes(b"{}")
    with without_ray():
        done = run_tiny_here(finished.parent / "m.parquet", output)
    assert done.returncode == 0, done.stderr
    assert "records/s01.json lacks sample_id" in done.stderr
    assert records_of_repair(output) == 0
    assert check(str(output)).is_complete


def records_of_repair(output: Path) -> int:
    """Repair what verify finds. Returns the number of samples that are to make."""
    return repair(str(output), check(str(output)).flaws)


def test_a_damaged_part_is_named_by_every_command_and_dropped_by_repair(output: Path, finished: Path) -> None:
    manifest, part = finished.parent / "m.parquet", output / "parts" / "000001-0000.parquet"
    Catalog(Storage(str(output))).seal(1)
    part.write_bytes(part.read_bytes()[:1000])
    for words in (("status", output), ("replay", output, "s01"), ("sheet", manifest, output)):
        shown = here(*words)
        assert (
            shown.returncode,
            "000001-0000.parquet is not a part of this program, or is damaged" in shown.stderr,
        ) == (
            2,
            True,
        )
    with without_ray():
        assert "parts/000001-0000.parquet" in run_tiny_here(manifest, output).stderr
    assert {flaw.code for flaw in check(str(output)).flaws} == {"part_damaged", "table_stale"}
    videos = sorted((output / "videos").iterdir())
    assert records_of_repair(output) == 0
    assert sorted((output / "videos").iterdir()) == videos, "kept for a copy of the part"
    verdict = check(str(output))
    assert (verdict.left, Counter(flaw.code for flaw in verdict.flaws)) == (3, {"video_orphan": 3})
    assert records_of_repair(output) == 0
    assert check(str(output)).flaws == []
    with without_ray():
        assert run_tiny_here(manifest, output).returncode == 0
    assert check(str(output)).is_complete


def test_a_young_video_without_a_record_is_not_judged(output: Path) -> None:
    add_orphan(output)
    os.utime(output / "videos" / "x.01234567.mp4")
    add_orphan(output, "holiday.mp4")
    done = here("verify", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 video without a record: less than an hour old, so not judged")
    make_old(output / "videos" / "x.01234567.mp4")
    assert here("verify", output, "--repair").returncode == 0
    assert not (output / "videos" / "x.01234567.mp4").exists()
    assert (output / "videos" / "holiday.mp4").exists()


def test_a_damaged_claim_is_a_flaw_and_the_next_run_replaces_it(output: Path, finished: Path) -> None:
    claim = output / "lease" / "000001.json"
    claim.write_bytes(b"{")
    os.utime(claim, (0, time.time() - 100))
    (flaw,) = check(str(output)).flaws
    assert (flaw.code, flaw.key) == ("lease_damaged", "lease/000001.json")
    assert "unknown driver" in here("status", output).stdout
    with without_ray():
        assert run_tiny_here(finished.parent / "m.parquet", output).returncode == 0
    assert check(str(output)).is_complete


def test_an_output_in_use_is_not_repaired(output: Path) -> None:
    with acquire(Storage(str(output))), pytest.raises(LeaseError, match="in use"):
        repair(str(output), [])


def test_an_output_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        check(str(tmp_path))


def test_an_output_of_a_version_without_labels_is_whole_and_can_be_continued(output: Path, finished: Path) -> None:
    for file in sorted((output / "records").iterdir()):
        record = json.loads(file.read_text())
        del record["labels"]
        file.write_text(json.dumps(record))
    for file in (output / LABELS, *(output / "tables").glob(f"*-{LABELS}")):
        file.unlink()
    assert check(str(output)).flaws == []
    assert here("status", output).returncode == 0
    (output / "records" / "s00.json").unlink()
    video = next((output / "videos").glob("s00.*"))
    video.unlink()
    with without_ray():
        done = run_tiny_here(finished.parent / "m.parquet", output)
    assert done.returncode == 0, done.stderr
    assert table(output, LABELS)["sample_id"].to_pylist() == ["s00"], "the others have no labels"
    assert check(str(output)).flaws == []
