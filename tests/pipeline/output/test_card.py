"""The dataset card: Hugging Face `datasets`, offline, loads every row of an output, whatever its ids are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from PIL import Image

from pipeline.output.candidates import BaselineMetrics
from pipeline.output.card import CARD, METRICS, PREVIEW, is_own_card, write_card
from pipeline.output.card_picture import PICTURE
from pipeline.output.catalog import Catalog
from pipeline.output.lease import acquire
from pipeline.output.records import commit
from pipeline.output.run_file import create_run_file
from pipeline.output.storage import Storage
from pipeline.output.tables import write_tables
from sgi2v.metrics.background import Background
from sgi2v.metrics.objmc import Fidelity
from sgi2v.metrics.quality import SampleQuality
from tests.pipeline.output.outputs import committed, failed, manifest, settings

PLAIN = ("car-7", "s1", "ball")
IDS: Mapping[str, Sequence[str]] = {
    "plain": PLAIN,
    "split words": ("train-01", "test-01", "car-7", "val2017-3", "dev", "a.eval"),
    "one split word": ("car-7", "ball", "my.train"),
    "dots": ("car.json.b", "a.b", "x.parquet", "y.csv", "z"),
    "names of pictures": ("a.png", "b.png", "c.png"),
    "names of tables": ("a.parquet", "b.parquet"),
    "names of records": ("a.json", "b.JSON"),
    "names of archives": ("a.zip.tar", "b.zip.tar"),
    "names of videos": ("a.mp4", "b.mov"),
    "all at once": ("test.png", "dev.png", "c.png"),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


def make(url: str, ids: Sequence[str], failures: Sequence[str] = (), **columns: pa.Array) -> Storage:
    """An output with these samples, as a run leaves it; a video's content is its sample's id."""
    storage = Storage(url)
    rows = manifest(*ids, *failures, columns=columns)
    create_run_file(storage, replace(settings(), manifest="/set/shots.parquet"), "digest", rows.num_rows)
    for sample_id in ids:
        commit(storage, committed(sample_id), sample_id.encode())
    for sample_id in failures:
        commit(storage, failed(sample_id), None)
    update(storage, rows)
    return storage


def update(storage: Storage, rows: pa.Table) -> bool:
    """Write the tables and the card."""
    with acquire(storage) as lease:
        catalog = Catalog(storage)
        write_tables(catalog, rows, lease.epoch)
        return write_card(catalog, lease.epoch)


def text_of(storage: Storage) -> str:
    return (storage.get(CARD) or b"").decode()


def load(cache: Path, *path: str, **how: Any) -> Any:
    """The only split of a dataset, with videos not decoded."""
    import datasets

    datasets.disable_progress_bars()
    splits = datasets.load_dataset(*path, cache_dir=str(cache), **how)
    assert list(splits) == ["train"]
    assert isinstance(splits["train"].features["video"], datasets.Video)
    return splits["train"].cast_column("video", datasets.Video(decode=False))


def videos(rows: Any) -> dict[str, str]:
    """What is in the video of each row, by sample id."""
    import fsspec

    found = {}
    for row in rows:
        with fsspec.open(row["video"]["path"], "rb") as file:
            found[row["sample_id"]] = file.read().decode()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", IDS)
def test_every_row_is_loaded_with_its_video_whatever_the_ids_are(kind: str, tmp_path: Path) -> None:
    ids = IDS[kind]
    captions = pa.array([f"of {sample_id}" for sample_id in ids])
    storage = make(str(tmp_path / "out"), ids, caption=captions)
    for number, how in enumerate(({"path": storage.url}, {"path": "videofolder", "data_dir": storage.url})):
        rows = load(tmp_path / str(number), **how)
        assert videos(rows) == {sample_id: sample_id for sample_id in ids}, how
        assert {row["sample_id"]: row["caption"] for row in rows} == dict(zip(ids, captions.to_pylist(), strict=True))
        assert set(rows.column_names) >= {"objmc_px", "seed", "image_sha256", "loss_first"}


@pytest.mark.slow
def test_a_failed_sample_with_a_split_word_loses_no_row(tmp_path: Path) -> None:
    storage = make(str(tmp_path / "out"), PLAIN, failures=["test-7"])
    for number, how in enumerate(({"path": storage.url}, {"path": "videofolder", "data_dir": storage.url})):
        assert sorted(videos(load(tmp_path / str(number), **how))) == sorted(PLAIN)


@pytest.mark.slow
def test_an_object_store_is_loaded_as_the_card_says(bucket: str, tmp_path: Path) -> None:
    ids = ("train-01", "b.png", "car-7")
    storage = make(f"{bucket}/out", ids)
    code = text_of(storage).partition("```python\n")[2].partition("```")[0]
    call = code[code.index("load_dataset(  #") :]
    rows = eval(call, {"load_dataset": lambda *path, split, **how: load(tmp_path, *path, **how)})
    assert videos(rows) == {sample_id: sample_id for sample_id in ids}


def test_plain_ids_need_no_further_files(tmp_path: Path) -> None:
    make(str(tmp_path), PLAIN)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(CARD, PICTURE, "failures.parquet", "labels.parquet", "lease", "metadata.parquet", "records", "run.json"),
        *("tables", "videos"),
    ]
    make(str(tmp_path / "odd"), ["test.png"])
    assert {"train", PREVIEW} <= {path.name for path in (tmp_path / "odd").iterdir()}


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    versions = []
    for name, ids in (("a", PLAIN), ("b", [*PLAIN, "another"])):
        _, front, _ = text_of(make(str(tmp_path / name), ids)).split("---\n", 2)
        content = yaml.safe_load(front)
        versions.append(content["configs"][0].pop("version"))
    assert re.fullmatch(r"0\.\d+\.\d+", versions[0])
    assert versions[0] != versions[1]  # or `datasets` would go on with what it has loaded before
    assert content == {
        "license": "other",
        "pretty_name": "Videos of shots.parquet",
        "task_categories": ["image-to-video"],
        "tags": ["video", "synthetic", "trajectory-control", "sg-i2v"],
        "size_categories": ["n<1K"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": ["metadata.parquet", "videos/*.mp4"]}],
            }
        ],
    }


def test_the_card_says_what_the_output_holds(tmp_path: Path) -> None:
    note = pa.array(["a", "b"])
    storage = make(str(tmp_path), ["s1"], failures=["s2"], **{"my | `note`": note})
    commit(storage, committed("s0", metrics={"null_reason": "no_texture"}), b"s0")
    update(storage, manifest("s1", "s2", columns={"my | `note`": note}))
    text = text_of(storage)
    for line in (
        "| rows of the manifest | 2 |",
        "| made | 2 |",
        "| failed with `image_missing` | 1 |",
        "| left | 0 |",
        "Not measured: 1 sample (no_texture 1).",
        "| `objmc_px` | pixels | lower | mean distance between the measured and the asked centre of a box |",
        "| `my \\| 'note'` | `string` |",
        "- Model: `embedded`, revision ",
        '  "seed": 817',
    ):
        assert f"\n{line}" in text
    assert "/set/" not in text, "the folders of a machine are not published"


def snippets(text: str, language: str) -> list[str]:
    """The code of a card in one language, with its own folder in place of FOLDER."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_tables_are_loaded_as_the_card_says(tmp_path: Path) -> None:
    storage = make(str(tmp_path), PLAIN)
    text = text_of(storage).replace("FOLDER", str(tmp_path))
    _, pandas_code, labels_code = snippets(text, "python")
    names: dict[str, Any] = {}
    exec(pandas_code, names)
    assert len(names["table"]) == len(PLAIN)
    assert len(names["good"]) == 0, "no background is measured"
    exec(labels_code, names)
    assert (names["measured"], names["scale_x"]) == ([None] * 3, 2.0)
    (query,) = snippets(text, "sql")
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(query).fetchall()
    assert sorted(row[:2] for row in rows) == [(sample_id, box) for sample_id in sorted(PLAIN) for box in (0, 1)]
    assert rows[0][-1] == 0.75


def test_the_card_counts_the_licences_of_the_images(tmp_path: Path) -> None:
    licence = pa.array(["CC BY 4.0", "CC0 | `x`", "CC BY 4.0", None, "of a failed sample"])
    storage = make(str(tmp_path), ["a", "b", "c", "d"], failures=["e"], licence=licence)
    text = text_of(storage)
    assert "| 2 images | CC BY 4.0 |\n| 1 image | CC0 \\| 'x' |\n| 1 image | not stated |\n" in text
    assert "of a failed sample" not in text
    assert "| the tracker `lucas-kanade`, which made the measured labels | Apache-2.0 (OpenCV) |" in text
    assert "| the model | Apache-2.0, as sgi2v-batch |" in text
    assert "| the images | not known: " in text_of(make(str(tmp_path / "without"), ["a"]))


def test_the_picture_shows_what_is_measured(tmp_path: Path) -> None:
    storage = make(str(tmp_path), ["s1", "s2"])
    with Image.open(tmp_path / PICTURE) as picture:
        assert picture.size == (1200, 640)
        colours = {colour for _, colour in picture.convert("RGB").getcolors() or []}
    assert {(255, 255, 255), (58, 124, 190)} <= colours
    assert f"({PICTURE})" in text_of(storage)
    before = (tmp_path / PICTURE).stat().st_mtime_ns
    update(storage, manifest("s1", "s2"))
    assert (tmp_path / PICTURE).stat().st_mtime_ns == before, "it is put only where it changes"
    unmeasured = make(str(tmp_path / "none"), [], failures=["s3"])
    assert (unmeasured.get(PICTURE), PICTURE in text_of(unmeasured)) == (None, False)


def test_the_card_follows_the_output(tmp_path: Path) -> None:
    storage = make(str(tmp_path), ["s1"])
    before = text_of(storage)
    commit(storage, committed("s2"), b"s2")
    assert update(storage, manifest("s1", "s2"))
    assert ("| made | 1 |" in before, "| made | 2 |" in text_of(storage)) == (True, True)


EDITS: tuple[Callable[[str], str], ...] = (
    lambda text: "# My videos\n",
    lambda text: text.replace("license: other", "license: mit"),
)


@pytest.mark.parametrize("edit", EDITS)
def test_a_card_that_a_person_wrote_or_changed_stays(tmp_path: Path, edit: Callable[[str], str]) -> None:
    storage = make(str(tmp_path), ["s1"])
    assert is_own_card(storage.get(CARD) or b"")
    edited = edit(text_of(storage)).encode()
    storage.put(CARD, edited)
    assert not update(storage, manifest("s1"))
    assert storage.get(CARD) == edited
    storage.delete(CARD)
    assert update(storage, manifest("s1"))


def test_every_metric_has_a_unit_and_a_direction() -> None:
    measured = {field.name for each in (Fidelity, Background, SampleQuality, BaselineMetrics) for field in fields(each)}
    no_numbers = {"null_reason", "background_null_reason", "baseline_null_reason", "still_drift_px_per_box"}
    assert set(METRICS) == measured - no_numbers
    assert {better for _, better, _ in METRICS.values()} == {"lower", "higher", ""}
