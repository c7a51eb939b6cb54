"""Runs on an output whose samples were made from something else: another manifest, a changed row, a changed image."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.output.catalog import Catalog
from pipeline.output.storage import Storage
from tests.pipeline.conftest import S3Server
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import picture, records, row, table, write_good, write_rows

pytestmark = pytest.mark.slow

IDS = ("s00", "s01", "s02")


@pytest.fixture(autouse=True)
def _bare() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest and the output of its run."""
    folder = tmp_path_factory.mktemp("finished") / "day1"
    with without_ray():
        done = run_tiny_here(write_good(folder, len(IDS)), folder.parent / "out")
    assert done.returncode == 0, done.stderr
    return folder.parent


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished / "out", tmp_path / "out")


@pytest.fixture
def manifest(finished: Path, output: Path) -> Path:
    """The manifest and its images in a folder that the output's records name."""
    folder = shutil.copytree(finished / "day1", output.parent / "day1")
    run = json.loads((output / "run.json").read_text())
    place = dict.fromkeys(("manifest", "manifest_location"), str((folder / "m.parquet").resolve()))
    (output / "run.json").write_text(json.dumps({**run, **place}))
    for file in (output / "records").iterdir():
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "image_uri": str(folder / f"{file.stem}.png")}))
    return folder / "m.parquet"


def videos(output: Path) -> dict[str, bytes]:
    """The video of each sample in the table. There are no others."""
    names = {sample["sample_id"]: sample["file_name"] for sample in table(output).to_pylist()}
    assert sorted(names.values()) == sorted(f"videos/{file.name}" for file in (output / "videos").iterdir())
    return {sample_id: (output / name).read_bytes() for sample_id, name in names.items()}


def remade(output: Path, before: dict[str, bytes]) -> list[str]:
    return [sample_id for sample_id, video in videos(output).items() if before.get(sample_id) != video]


def other_day(manifest: Path, *ids: str) -> Path:
    """A manifest of the same name in another folder, with the same ids; the images of `ids` differ."""
    folder = shutil.copytree(manifest.parent, manifest.parent.parent / "day2")
    for sample_id in ids:
        picture(50).save(folder / f"{sample_id}.png")
    return folder / manifest.name


def test_a_record_says_which_image_it_was_made_from(finished: Path) -> None:
    for sample_id, record in records(finished / "out").items():
        image = finished / "day1" / f"{sample_id}.png"
        assert record["image_uri"] == str(image)
        assert record["image_sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert {"image_uri", "image_sha256"} <= set(table(finished / "out").column_names)


def test_a_failed_record_says_which_image_it_was(tmp_path: Path) -> None:
    (tmp_path / "s00.png").write_bytes(b"no picture")
    rows = [row("s00"), row("s01"), row("s02", image="data:image/png;base64,AAAA")]
    done = run_tiny_here(write_rows(tmp_path / "m.parquet", rows), tmp_path / "out")
    assert done.returncode == 1
    made = records(tmp_path / "out")
    assert made["s00"]["image_sha256"] == hashlib.sha256(b"no picture").hexdigest()
    assert (made["s01"]["image_uri"], made["s01"].get("image_sha256")) == (str(tmp_path / "s01.png"), None)
    assert made["s02"]["image_uri"] == "data:image/png;base64"


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_manifest_at_another_location_is_refused(output: Path, manifest: Path, words: tuple[str, ...]) -> None:
    before = videos(output)
    done = run_tiny_here(other_day(manifest), output, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"error: {output} has samples with the ids of 3 rows of this manifest (s00, s01, s02), made from another "
        f"manifest: {manifest}. Give another --output. If they are the same samples, because the manifest has moved, "
        "add --another-manifest: rows and images are then compared."
    )
    assert videos(output) == before


def test_a_manifest_at_another_location_with_other_ids_goes_on_and_says_so(output: Path, manifest: Path) -> None:
    before = videos(output)
    other = write_rows(manifest.parent / "more.parquet", [row("x", image="s00.png")])
    done = run_tiny_here(other, output)
    assert done.returncode == 0, done.stderr
    assert f"the output has samples of another manifest too: {manifest}" in done.stderr.splitlines()
    assert len(videos(output)) == len(before) + 1


def test_a_confirmed_manifest_with_the_same_images_goes_on(output: Path, manifest: Path) -> None:
    moved = other_day(manifest)
    assert run_tiny_here(moved, output, "--another-manifest").returncode == 0
    assert run_tiny_here(moved, output).returncode == 0, "from now on the output is of the moved manifest"
    assert run_tiny_here(manifest, output).returncode == 2


def test_a_confirmed_manifest_with_other_images_names_them_and_redoes_them_on_request(
    output: Path, manifest: Path
) -> None:
    other, before = other_day(manifest, "s01"), videos(output)
    done = run_tiny_here(other, output, "--another-manifest")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "reading the images of finished rows again, to compare them\n"
        "error: 1 finished row with a changed image: s01. Make changed rows again with --redo-changed, give "
        "them new sample ids, or use another --output.\n"
    )
    assert videos(output) == before
    done = run_tiny_here(other, output, "--another-manifest", "--redo-changed")
    assert done.returncode == 0, done.stderr
    assert remade(output, before) == ["s01"]


def test_a_manifest_that_has_grown_goes_on(output: Path, manifest: Path) -> None:
    before = videos(output)
    write_good(manifest.parent, 4)
    done = run_tiny_here(manifest, output)
    assert done.returncode == 0, done.stderr
    assert remade(output, before) == ["s03"]


def test_a_changed_row_is_named_and_made_again_on_request(output: Path, manifest: Path) -> None:
    before = videos(output)
    write_rows(manifest, [row("s00"), row("s01", seed=7), row("s02")])
    done = run_tiny_here(manifest, output)
    assert (done.returncode, videos(output)) == (2, before)
    assert done.stderr.startswith("error: 1 finished row changed in the manifest: s01. ")
    done = run_tiny_here(manifest, output, "--redo-changed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 made, 0 failed, 2 done before, of 3 rows")
    assert remade(output, before) == ["s01"]
    made = Catalog(Storage(str(output))).get("s01")
    assert made is not None
    assert (made.seed, made.attempts) == (7, 2)
    assert here("verify", output).returncode == 0
    assert run_tiny_here(manifest, output).stdout.startswith("0 made, 0 failed, 3 done before")


def test_a_changed_image_is_found_on_request_only(output: Path, manifest: Path) -> None:
    before = videos(output)
    picture(50).save(manifest.parent / "s02.png")
    (manifest.parent / "s00.png").unlink()
    assert run_tiny_here(manifest, output).returncode == 0
    done = run_tiny_here(manifest, output, "--check-images")
    assert done.returncode == 2
    assert "1 finished row with a changed image: s02. " in done.stderr
    done = run_tiny_here(manifest, output, "--redo-changed")
    assert done.returncode == 0, done.stderr
    assert "1 image of finished samples could not be read and compared; the first is of s00: " in done.stderr
    assert remade(output, before) == ["s02"]


def test_a_changed_row_that_fails_does_not_keep_its_former_video(output: Path, manifest: Path) -> None:
    write_rows(manifest, [row("s00"), row("s01", image="gone.png"), row("s02")])
    done = run_tiny_here(manifest, output, "--redo-changed")
    assert done.returncode == 1
    assert done.stdout.startswith("0 made, 1 failed, 2 done before, of 3 rows")
    assert sorted(videos(output)) == ["s00", "s02"]
    assert table(output, "failures.parquet")["sample_id"].to_pylist() == ["s01"]
    write_rows(manifest, [row("s00"), row("s01"), row("s02")])
    done = run_tiny_here(manifest, output)
    assert done.returncode == 2
    assert done.stderr == (
        "error: 1 failed row changed in the manifest: s01. Run failed rows again with --retry-failed.\n"
    )
    assert run_tiny_here(manifest, output, "--retry-failed").returncode == 0
    assert sorted(videos(output)) == list(IDS)


def test_a_sealed_sample_is_made_again(output: Path, manifest: Path) -> None:
    catalog = Catalog(Storage(str(output)))
    catalog.seal(1)
    before = videos(output)
    picture(50).save(manifest.parent / "s02.png")
    done = run_tiny_here(manifest, output, "--redo-changed")
    assert done.returncode == 0, done.stderr
    assert remade(output, before) == ["s02"]
    assert here("verify", output).returncode == 0


def test_a_run_that_ends_before_its_workers_start_removes_nothing(
    output: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = videos(output)
    write_rows(manifest, [row("s00"), row("s01", seed=7), row("s02")])

    def no_cluster(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.ray_session", no_cluster)
        assert run_tiny_here(manifest, output, "--redo-changed").returncode == 130
    assert videos(output) == before
    done = run_tiny_here(manifest, output)
    assert done.returncode == 2, "the changed row is still refused"
    assert "1 finished row changed in the manifest: s01. " in done.stderr


def test_run_status_and_verify_agree_on_a_limit(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, 3), tmp_path / "out"
    limited = run_tiny_here(manifest, output, "--limit", "1")
    assert limited.returncode == 0
    assert limited.stdout.startswith("1 made, 0 failed, 0 done before, of 1 row, ")
    of = "1 made, 0 failed, 0 left, of 1 row (--limit; the manifest has 3)"
    assert here("status", output).stdout.splitlines()[0] == of
    checked = here("verify", output)
    assert (checked.returncode, checked.stdout) == (0, f"{of}: everything is there and whole\n")
    assert run_tiny_here(manifest, output).returncode == 0
    assert here("status", output).stdout.splitlines()[0] == "3 made, 0 failed, 0 left, of 3 rows"
    assert run_tiny_here(manifest, output, "--limit", "2").returncode == 0
    of = "3 made, 0 failed, 0 left, of 2 rows (--limit; the manifest has 3)"
    assert here("status", output).stdout.splitlines()[0] == f"{of} (and 1 sample of other rows)"
    assert here("verify", output).returncode == 0


def test_a_card_that_a_person_has_changed_stays_and_the_run_says_so(output: Path, manifest: Path) -> None:
    card = output / "README.md"
    card.write_text(card.read_text().replace("license: other", "license: mit"))
    edited = card.read_text()
    done = run_tiny_here(manifest, output)
    assert (done.returncode, card.read_text()) == (0, edited)
    assert done.stderr.splitlines()[0] == (
        f"{card} is not as this program wrote it, and stays: keep `configs` in it, or move it away to get a new one"
    )


def test_a_folder_that_a_link_now_leads_to_is_another_location(tmp_path: Path) -> None:
    latest, output = tmp_path / "latest", tmp_path / "out"
    manifest = write_good(tmp_path / "day1", 1)
    latest.symlink_to("day1")
    assert run_tiny_here(latest / manifest.name, output).returncode == 0
    assert run_tiny_here(manifest, output).returncode == 0, "the same file by another name"
    other = other_day(manifest, "s00")
    latest.unlink()
    latest.symlink_to("day2")
    refused = run_tiny_here(latest / manifest.name, output)
    assert (refused.returncode, "made from another manifest" in refused.stderr) == (2, True)
    assert run_tiny_here(other, output, "--another-manifest").returncode == 2
    before = videos(output)
    assert run_tiny_here(other, output, "--another-manifest", "--redo-changed").returncode == 0
    assert remade(output, before) == ["s00"]


def test_a_run_that_ends_after_it_has_removed_changed_samples_is_continued(
    output: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = videos(output)
    write_rows(manifest, [row("s00", seed=7), row("s01", seed=7), row("s02")])

    def interrupted(*_: object) -> Iterator[dict[str, object]]:
        raise KeyboardInterrupt
        yield {}

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.flow", interrupted)
        assert run_tiny_here(manifest, output, "--redo-changed").returncode == 130
    assert sorted(videos(output)) == ["s02"]
    assert here("status", output).stdout.startswith("1 made, 0 failed, 2 left, of 3 rows\n")
    assert run_tiny_here(manifest, output).returncode == 0
    assert remade(output, before) == ["s00", "s01"]
    assert here("verify", output).returncode == 0


@pytest.mark.whole
def test_a_replaced_image_of_an_object_store_is_found_and_its_sample_made_again(
    bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    store, manifest, output = s3_server.filesystem(), write_good(tmp_path, 2), f"{bucket}/out"
    for file in tmp_path.iterdir():
        store.put_file(str(file), f"{bucket}/in/{file.name}")
    location = f"{bucket}/in/{manifest.name}"
    assert run_tiny_here(location, output).returncode == 0
    before = sorted(store.find(f"{bucket}/out/videos"))
    picture(50).save(tmp_path / "s01.png")
    store.put_file(str(tmp_path / "s01.png"), f"{bucket}/in/s01.png")
    checked = here("verify", output, "--images")
    assert (checked.returncode, checked.stdout.count("[image_changed]")) == (1, 1)
    assert checked.stdout.startswith(f"s01: its image {bucket}/in/s01.png has changed since the sample was made: ")
    assert run_tiny_here(location, output, "--redo-changed").returncode == 0
    after = sorted(store.find(f"{bucket}/out/videos"))
    assert (len(after), after[0], after[1] == before[1]) == (2, before[0], False)
    assert here("verify", output, "--images").returncode == 0
