"""Manifests from pictures whose boxes are known."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from manifests import make
from manifests.boxes import load_proposer
from manifests.boxes.proposer import Proposal
from manifests.fit import VideoSize
from manifests.io import read_manifest, write_manifest
from manifests.make import Made, make_manifest
from manifests.motion import OWN_LENGTH
from manifests.recipe import METADATA_KEY, Recipe
from manifests.sampling import Picture, make_plan
from manifests.schema import parse_row, rows_of
from manifests.validate import check
from sgi2v.errors import ConfigError
from tests.manifests.rows import row, table
from tests.manifests.squares import HEIGHT, WIDTH, Squares, boxes_of, draw_squares, write_squares
from tests.s3_stand_in import Store


def recipe_of(samples: int = 100, **sections: dict[str, Any]) -> Recipe:
    sample = {"samples": samples, "seed": 7, **sections.pop("sample", {})}
    return Recipe.parse({"sample": sample, **sections})


def made_of(
    folder: Path, recipe: Recipe, processes: int | None = 1, **options: Any
) -> tuple[Made, list[dict[str, Any]]]:
    """What was made of `folder/pictures`, and the rows."""
    output = folder / "m.parquet"
    made = make_manifest(str(folder / "pictures"), str(output), recipe, Squares(**options), processes)
    return made, pq.read_table(output).to_pylist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_squares(tmp_path / "pictures", 6)
    return tmp_path


def test_every_row_is_valid_and_says_how_it_was_made(folder: Path) -> None:
    made, rows = made_of(folder, recipe_of())
    manifest = str(folder / "m.parquet")
    findings = check(read_manifest(manifest), manifest)
    assert (findings.problems, findings.warnings) == ([], [])
    assert (made.pictures, made.used, made.asked, made.rows) == (6, 6, 100, len(rows))
    assert made.rows + made.refused.dropped.total() == 100
    assert made.rows > 95
    text = pq.read_schema(manifest).metadata[METADATA_KEY.encode()].decode()
    assert Recipe.parse(json.loads(text)) == recipe_of()
    for each in rows:
        recipe = json.loads(each["recipe"])
        number = int(Path(each["image"]).stem)
        assert each["image"] == f"pictures/{recipe['picture']}"
        assert recipe["seed"] == [7, int(each["sample_id"].removeprefix("7-"))]
        assert recipe["frame"] == [WIDTH, HEIGHT]
        objects = each["boxes"][: len(recipe.get("objects", []))]
        assert {tuple(box) for box in objects} <= set(boxes_of(number))
        assert "camera" in recipe or len(each["boxes"]) == len(objects)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(make, "ROWS_A_JOB", 64)
    (folder / "pictures" / "bad.png").write_bytes(b"nothing")
    contents = []
    for processes in (1, 2):
        made_of(folder, recipe_of(), processes)
        contents.append([(folder / name).read_bytes() for name in ("m.parquet", "skipped.parquet")])
    assert contents[0] == contents[1]
    _, rows = made_of(folder, recipe_of(sample={"seed": 8}))
    assert rows[0]["trajectories"] != pq.read_table(folder / "m.parquet").to_pylist()[0]["boxes"]
    assert (folder / "m.parquet").read_bytes() != contents[0][0]


def test_boxes_stay_inside_and_never_overlap(folder: Path) -> None:
    _, rows = made_of(folder, recipe_of(sample={"shares": {"objects": 1.0}}, motion={"objects": [3]}))
    for each in rows:
        tracks = parse_row(each).tracks(14, HEIGHT, WIDTH).boxes_NT4
        assert tracks.min() > -0.6
        assert (tracks[..., 2:] < np.array([WIDTH, HEIGHT]) + 0.6).all()
        for n in range(len(tracks)):
            for other in range(n):
                low = np.maximum(tracks[n, :, :2], tracks[other, :, :2])
                high = np.minimum(tracks[n, :, 2:], tracks[other, :, 2:])
                assert (np.clip(high - low, 0, None).prod(1) < 1).all()  # coordinates are rounded


def test_wanted_collisions_happen(folder: Path) -> None:
    motion = {"objects": [2], "motions": ["meet", "line"], "collisions": "wanted", "stay_inside": False}
    _, rows = made_of(folder, recipe_of(40, sample={"shares": {"objects": 1.0}}, motion=motion))
    two = [parse_row(each).tracks(14, HEIGHT, WIDTH).boxes_NT4 for each in rows if len(each["boxes"]) == 2]
    assert len(two) > 20
    for one, other in two:
        low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
        assert (high > low).all(1).any()


def test_the_camera_asks_for_the_whole_picture(folder: Path) -> None:
    shares = {"camera": 0.5, "both": 0.5}
    _, rows = made_of(folder, recipe_of(60, sample={"shares": shares}))
    for each in rows:
        recipe = json.loads(each["recipe"])
        objects = len(recipe.get("objects", []))
        boxes = np.array(each["boxes"][objects:]).reshape(-1, 4)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum() / (WIDTH * HEIGHT)
        assert area == pytest.approx(1) or (objects and area > 0.5)
        assert recipe["camera"]["name"] in {"static"} or len({str(path) for path in each["trajectories"]}) > 1
        zooms = each["scales"] is not None and recipe["camera"]["name"].startswith("dolly")
        assert zooms == recipe["camera"]["name"].startswith("dolly")


@pytest.mark.parametrize("fit", ["crop", "bucket", "pad"])
def test_pictures_of_any_shape_give_rows_that_the_video_holds(tmp_path: Path, fit: str) -> None:
    """Portraits and panoramas are cropped: the background, still boxes and objects must be in what is left of them."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number, (width, height) in enumerate([(300, 450), (400, 300), (800, 250)]):
        image_HWC = np.full((height, width, 3), 60 + number, np.uint8)
        for n, side in enumerate((60, 50, 60)):
            x, y = int(width * (0.1 + 0.3 * n)), int(height * (0.15 + 0.25 * n))
            image_HWC[y : y + side, x : x + side] = np.random.default_rng(n).integers(0, 256, (side, side, 3))
        Image.fromarray(image_HWC).save(place / f"{number}.png")
    shares = {"objects": 0.4, "camera": 0.3, "both": 0.3}
    recipe = recipe_of(60, sample={"shares": shares, "still": "others", "fit": fit})
    output = str(tmp_path / "m.parquet")
    made = make_manifest(str(place), output, recipe, load_proposer("salient"), 1)
    findings = check(read_manifest(output), output, video_size=VideoSize(576, 1024))
    assert (findings.problems, findings.warnings) == ([], [])
    assert made.used == 3
    assert made.rows > 50


def test_a_row_of_both_has_background(folder: Path) -> None:
    camera = {"rows": 1, "columns": 3, "moves": ["pan"], "lengths": [0.05, 0.06]}
    motion = {"objects": [1, 3], "motions": ["line"], "lengths": [0.05, 0.06]}
    _made, rows = made_of(folder, recipe_of(60, sample={"shares": {"both": 1.0}}, camera=camera, motion=motion))
    assert all(len(each["boxes"]) > len(json.loads(each["recipe"])["objects"]) for each in rows)


def test_strata_come_equally_often(folder: Path) -> None:
    recipe = recipe_of(240, sample={"shares": {"objects": 1.0}}, motion={"motions": ["line"], "objects": [1, 2]})
    plan = make_plan(recipe, [2] * 6)
    assert set(np.bincount(plan.columns["direction"])) == {30}
    assert set(np.bincount(plan.columns["objects"])[1:]) == {120}
    assert set(np.bincount(plan.columns["size"])) == {80}
    cells = Counter(zip(plan.columns["length"].tolist(), plan.columns["speed"].tolist(), strict=True))
    assert set(cells) == set(recipe.cells["motion"])
    assert max(cells.values()) - min(cells.values()) <= 1
    assert set(np.bincount(plan.picture)) == {40}
    _, rows = made_of(folder, recipe)
    for each in rows:
        asked = json.loads(each["recipe"])
        if asked["stratum"] is not None:
            low = 2 * np.pi / 8 * (asked["stratum"][0] - 0.5)
            assert low <= asked["objects"][0]["direction"] <= low + 2 * np.pi / 8
    moved = sum(json.loads(each["recipe"])["stratum"] is None for each in rows)
    assert moved < 60


def test_asked_lengths_and_speeds_are_kept(folder: Path) -> None:
    _, rows = made_of(folder, recipe_of(sample={"shares": {"objects": 1.0}, "frames": 57, "fps": 28.0}))
    diagonal = np.hypot(WIDTH, HEIGHT)
    for each in rows:
        for asked, path in zip(json.loads(each["recipe"])["objects"], each["trajectories"], strict=True):
            steps = np.linalg.norm(np.diff(np.array(path), axis=0), axis=1)
            if asked["name"] in OWN_LENGTH:
                continue
            assert steps.sum() / diagonal == pytest.approx(asked["length"], rel=0.02, abs=0.002)
            if asked["easing"] == "linear" and asked["name"] != "walk":
                moving = np.count_nonzero(steps > 0.03) / 28
                assert steps.sum() / diagonal / moving == pytest.approx(asked["speed"], rel=0.15)


def test_samples_go_to_pictures_that_have_enough_boxes() -> None:
    plan = make_plan(recipe_of(1000), [0, 1, 2, 0, 3])
    needs = np.array([plan.stratum(n).objects for n in range(len(plan))])
    apart = np.array([0, 1, 2, 0, 3])[plan.picture]
    assert (apart >= needs).all()
    assert {plan.stratum(n).motion for n in np.flatnonzero(plan.picture == 0)} == {None}
    alone = make_plan(recipe_of(1000), [1, 1])
    assert set(alone.left_out) == {"swap", "meet", "part", "overtake"}
    assert len(alone) == 1000


def test_per_image_limits_each_picture(folder: Path) -> None:
    plan = make_plan(recipe_of(sample={"samples": None, "per_image": 5}), [2] * 6)
    assert np.bincount(plan.picture).tolist() == [5] * 6
    assert len(make_plan(recipe_of(10, sample={"per_image": 5}), [2] * 6)) == 10
    assert len(make_plan(recipe_of(1000, sample={"per_image": 5}), [2] * 6)) == 30
    assert np.bincount(make_plan(recipe_of(sample={"per_image": 9}), [0, 0, 1]).picture).max() == 9
    assert len(make_plan(recipe_of(sample={"samples": None}), [2] * 6)) == 6


def test_what_cannot_be_used_is_listed_and_the_rest_is_made(folder: Path) -> None:
    pictures = folder / "pictures"
    (pictures / "0 broken.png").write_bytes(b"nothing")
    (pictures / "sub").mkdir()
    draw_squares(0).save(pictures / "sub" / "again.png")
    Image.new("RGB", (30, 30)).save(pictures / "small.png")
    Image.new("RGB", (30, 1)).save(pictures / "thin.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(pictures / "empty.png")
    (pictures / ".hidden.png").write_bytes(b"nothing")
    (pictures / "notes.txt").write_bytes(b"nothing")
    shares = {"objects": 1.0}
    made, rows = made_of(folder, recipe_of(sample={"shares": shares}), unused="gone.png")
    skipped = pq.read_table(folder / "skipped.parquet").to_pylist()
    assert [(each["key"], each["code"]) for each in skipped] == [
        (None, "annotation_unused"),
        ("0 broken.png", "image_undecodable"),
        ("empty.png", "no_box"),
        ("small.png", "picture_size"),
        ("sub/again.png", "duplicate"),
        ("thin.png", "unknown"),
    ]
    assert skipped[-2]["message"] == "it is the same file as 00.png"
    assert skipped[-1]["message"].endswith("ZeroDivisionError: a fault of the proposer")
    assert made.skipped.total() == 6
    assert (made.pictures, made.used) == (11, 6)
    assert len(rows) > 90


def test_pictures_without_boxes_are_used_for_the_camera(folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "pictures" / "empty.png")
    _, rows = made_of(folder, recipe_of())
    empty = [json.loads(each["recipe"]) for each in rows if each["image"].endswith("empty.png")]
    assert empty
    assert all("objects" not in each for each in empty)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "pictures has no pictures: it is empty"),
        (["a.txt"], "pictures has no pictures: no picture's ending among its 1 file"),
        (
            ["a.png"],
            "pictures: none of its 1 picture can be used for these motions; what was left out, by reason (see ",
        ),
        (None, "there is no such folder or file"),
    ],
)
def test_a_place_without_pictures_is_refused(tmp_path: Path, names: list[str] | None, message: str) -> None:
    if names is not None:
        (tmp_path / "pictures").mkdir()
        for name in names:
            (tmp_path / "pictures" / name).write_bytes(b"nothing")
    with pytest.raises(ConfigError) as caught:
        made_of(tmp_path, recipe_of())
    assert message in str(caught.value)
    assert not (tmp_path / "m.parquet").exists()
    assert (tmp_path / "skipped.parquet").exists() == (names == ["a.png"])
    assert not list(tmp_path.glob(".manifest*"))


def test_constraints_that_cannot_be_met_are_counted(folder: Path) -> None:
    motion = {"lengths": [2.0, 3.0], "speeds": [2.0, 3.0], "motions": ["line"]}
    with pytest.raises(ConfigError, match=r"no sample meets the constraints \(stay_inside 20\)"):
        made_of(folder, recipe_of(20, sample={"shares": {"objects": 1.0}}, motion=motion))
    made, rows = made_of(folder, recipe_of(20, sample={"shares": {"line": 0.5, "pan": 0.5}}, motion=motion))
    assert made.refused.dropped == {"stay_inside": 10}
    assert len(rows) == 10


def test_still_boxes_masks_and_fit_are_columns_where_they_are_asked_for(folder: Path) -> None:
    _, plain = made_of(folder, recipe_of(10))
    assert not {"still", "masks", "fit"} & set(plain[0])
    _, rows = made_of(folder, recipe_of(sample={"still": "others", "masks": True, "fit": "pad"}))
    held = 0
    for each in rows:
        assert each["fit"] == "pad"
        assert len(each["still"]) == len(each["masks"]) == len(each["boxes"])
        objects = len(json.loads(each["recipe"]).get("objects", []))
        for n, (box, path, still, mask) in enumerate(
            zip(each["boxes"], each["trajectories"], each["still"], each["masks"], strict=True)
        ):
            assert (mask is not None) == (n < objects)
            if still:
                held += 1
                assert path[0] == path[-1]
                assert tuple(box) in boxes_of(int(Path(each["image"]).stem))
            if mask is not None:
                (folder / "mask.png").write_bytes(mask)
                ys, xs = np.nonzero(np.asarray(Image.open(folder / "mask.png")))
                assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box
    assert held > 10


def test_real_tracks_are_replayed(folder: Path) -> None:
    path = [[0.0, 0.0], [10.0, 0.0], [10.0, 30.0]]
    still = row(sample_id="still", trajectories=[[[5.0, 5.0], [5.0, 5.0]]])
    write_manifest(table(row(trajectories=[path]), still), str(folder / "tracks.parquet"))
    motion = {
        "tracks": str(folder / "tracks.parquet"),
        "easings": ["linear"],
        "lengths": [0.1, 0.1],
        "speeds": [0.06, 0.06],
    }
    _, rows = made_of(folder, recipe_of(20, sample={"shares": {"replay": 1.0}}, motion=motion))
    for each in rows:
        for points in each["trajectories"]:
            steps = np.diff(np.array(points), axis=0)
            turned = np.arctan2(*steps[-3][::-1]) - np.arctan2(*steps[0][::-1])
            assert abs(np.angle(np.exp(1j * turned))) == pytest.approx(np.pi / 2, abs=0.03)
    write_manifest(table(still), str(folder / "tracks.parquet"))
    with pytest.raises(ConfigError, match="has no path that moves"):
        made_of(folder, recipe_of(20, sample={"shares": {"replay": 1.0}}, motion=motion))


def test_a_glob_and_one_file_are_places(folder: Path) -> None:
    output = str(folder / "out" / "m.parquet")
    glob = make_manifest(str(folder / "pictures" / "*[12].png"), output, recipe_of(4), Squares())
    assert glob.pictures == 2
    assert {each["image"] for each in pq.read_table(output).to_pylist()} <= {"../pictures/01.png", "../pictures/02.png"}
    assert make_manifest(str(folder / "pictures" / "01.png"), output, recipe_of(4), Squares()).pictures == 1
    with pytest.raises(ConfigError, match="the glob matches no file"):
        make_manifest(str(folder / "pictures" / "*.jpg"), output, recipe_of(4), Squares())
    with pytest.raises(ConfigError, match=r"must end with \.parquet"):
        make_manifest(str(folder / "pictures"), str(folder / "m.csv"), recipe_of(4), Squares())


def test_pictures_and_manifest_may_lie_in_a_store(folder: Path, store: Store) -> None:
    import s3fs

    files = s3fs.S3FileSystem()
    for number in range(3):
        files.put_file(str(folder / "pictures" / f"0{number}.png"), f"bucket/in/a b/{number}.png")
    files.pipe_file("bucket/in/bad.png", b"nothing")
    made = make_manifest("s3://bucket/in", "s3://bucket/out/m.parquet", recipe_of(12), Squares(), 1)
    assert (made.pictures, made.used) == (4, 3)
    rows = read_manifest("s3://bucket/out/m.parquet")
    assert set(rows.column("image").to_pylist()) == {f"s3://bucket/in/a b/{number}.png" for number in range(3)}
    assert check(rows, "s3://bucket/out/m.parquet").problems == []
    assert json.loads(rows.column("recipe")[0].as_py())["picture"].startswith("a b/")
    assert files.exists("bucket/out/skipped.parquet")


def test_boxes_that_overlap_are_not_in_one_sample() -> None:
    boxes = [Proposal((0.0, 0, 20, 20)), Proposal((10.0, 10, 30, 30)), Proposal((20.0, 0, 40, 20))]
    picture = Picture("a", "a", 100, 100, boxes, boxes, [None] * 3, (100.0, 100.0))
    assert picture.apart == 2
    assert replace(picture, shown_2=(100.0, 25.0)).apart == 2
    assert replace(picture, shown_2=(35.0, 100.0)).apart == 1  # the first and the third are too far apart for the video


def test_rows_are_those_of_a_manifest(folder: Path) -> None:
    made_of(folder, recipe_of(20))
    for each in rows_of(read_manifest(str(folder / "m.parquet"))):
        assert parse_row(each).sample_id.startswith("7-")
