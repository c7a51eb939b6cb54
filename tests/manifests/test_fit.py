"""How pictures of other shapes fill a video, with boxes, paths and masks."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from manifests.fit import FITS, Fit, VideoSize, place
from manifests.plausible import Kind, row_warnings
from manifests.schema import conform, parse_row, row_digest
from sgi2v.errors import ManifestError, SampleError
from sgi2v.trajectory import BoxTracks
from sgi2v.video import resize_image
from tests.manifests.rows import row, table

WIDE = VideoSize(576, 1024)
SHAPES = {"portrait": (1600, 1200), "panorama": (600, 2400), "4:3": (1200, 1600)}
"""(height, width) of the pictures."""


def tracks_of(height: int, width: int, *boxes: list[float], moves: tuple[float, float] = (0.0, 0.0)) -> BoxTracks:
    """Boxes that all move by `moves` pixels over 14 frames of a picture of this size."""
    path = np.array([[0.0, 0.0], moves])
    return BoxTracks.from_paths(np.array(boxes), [path] * len(boxes), 14, height, width)


def disc(height: int, width: int, x: float, y: float, radius: int) -> NDArray[np.uint8]:
    """A white disc on grey."""
    image_HWC = np.full((height, width, 3), 90, np.uint8)
    return np.asarray(cv2.circle(image_HWC, (round(x), round(y)), radius, (255, 255, 255), -1, cv2.LINE_AA))


def extent(frame_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The disc's box in a frame, xyxy."""
    rows, columns = np.nonzero(frame_HWC[..., 0] > 172)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fit", FITS)
def test_a_disc_stays_round_and_in_its_box_in_every_mode_but_stretch(shape: str, fit: Fit) -> None:
    height, width = SHAPES[shape]
    x, y, radius = 0.7 * width, 0.3 * height, 60
    tracks = tracks_of(height, width, [x - radius, y - radius, x + radius, y + radius])
    placement = place(tracks, WIDE, fit)
    frame_HWC = placement.image(disc(height, width, x, y, radius))
    assert frame_HWC.shape == (placement.height, placement.width, 3)
    x0, y0, x1, y1 = seen = extent(frame_HWC)
    np.testing.assert_allclose(placement.tracks(tracks).boxes_NT4[0, 0], seen, atol=1.5)
    roundness = (x1 - x0) / (y1 - y0)
    expected = 1024 / width / (576 / height) if fit == "stretch" else 1.0
    assert roundness == pytest.approx(expected, rel=0.05)
    mask_HW = disc(height, width, x, y, radius)[..., 0] > 172
    np.testing.assert_allclose(extent(np.repeat(placement.mask(mask_HW)[..., None], 3, axis=2)), seen, atol=1.5)


def test_a_mask_keeps_its_share_of_each_pixel() -> None:
    placement = place(tracks_of(4, 4, [0.0, 0.0, 1.0, 1.0]), VideoSize(2, 4), "pad")
    mask_HW = np.zeros((4, 4), bool)
    mask_HW[0, 0] = True
    assert placement.mask(mask_HW).tolist() == [[0, 64, 0, 0], [0, 0, 0, 0]]
    assert placement.mask(None).tolist() == [[255] * 4] * 2


def test_a_picture_of_the_videos_shape_fills_it_in_every_mode() -> None:
    tracks = tracks_of(720, 1280, [100.0, 100.0, 200.0, 333.0])
    image_HWC = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    for fit in FITS:
        placement = place(tracks, WIDE, fit)
        assert (placement.height, placement.width, placement.holds_all) == (576, 1024, True)
        np.testing.assert_array_equal(placement.image(image_HWC), resize_image(image_HWC, 576, 1024))
        np.testing.assert_array_equal(placement.tracks(tracks).boxes_NT4, tracks.rescale(576, 1024).boxes_NT4)


def test_a_crop_is_in_the_middle_unless_boxes_and_paths_need_it_elsewhere() -> None:
    side = VideoSize(100, 100)
    for boxes, moves, start in (
        ([[120.0, 10.0, 160.0, 50.0]], (0.0, 0.0), 100),
        ([[20.0, 10.0, 60.0, 50.0]], (0.0, 0.0), 20),
        ([[20.0, 10.0, 60.0, 50.0]], (50.0, 0.0), 20),
        ([[150.0, 10.0, 190.0, 50.0]], (20.0, 0.0), 110),
        ([[130.0, 10.0, 190.0, 50.0]], (30.0, 0.0), 120),
        ([[250.0, 10.0, 290.0, 50.0]], (500.0, 0.0), 200),  # leaves the picture
    ):
        placement = place(tracks_of(100, 300, *boxes, moves=moves), side)
        assert placement.source_box == pytest.approx((start, 0, start + 100, 100)), boxes
        assert placement.holds_all
    assert place(tracks_of(300, 100, [0.0, 0.0, 30.0, 30.0]), side).source_box == (0, 0, 100, 100)
    assert place(BoxTracks.from_paths(np.empty((0, 4)), [], 14, 300, 100), side).source_box == (0, 100, 100, 200)


def test_a_crop_that_cannot_hold_all_holds_the_boxes_of_frame_0_then_what_is_in_their_middle() -> None:
    side = VideoSize(100, 100)
    moves_far = place(tracks_of(100, 300, [20.0, 10.0, 60.0, 50.0], moves=(200.0, 0.0)), side)
    assert (moves_far.source_box[0], moves_far.holds_all) == (20, False)
    ends_outside = place(tracks_of(100, 300, [10.0, 10.0, 50.0, 50.0], moves=(75.0, 0.0)), side)
    assert (ends_outside.source_box[0], ends_outside.holds_all) == (10, False)
    far_apart = tracks_of(100, 300, [0.0, 10.0, 40.0, 50.0], [220.0, 10.0, 260.0, 50.0])
    both = place(far_apart, side)
    assert (both.source_box[0], both.holds_all) == (80, False)
    errors = [(n, str(error)) for n, error in both.lost_boxes(far_apart)]
    assert [n for n, _ in errors] == [0, 1]
    assert errors[0][1].startswith(
        "box_outside: box 0 [0.0, 10.0, 40.0, 50.0] lies outside the part of the picture that fit = crop keeps "
        "([80, 0, 180, 100]): use fit = pad"
    )
    assert list(place(far_apart, side, "pad").lost_boxes(far_apart)) == []


def test_no_rounding_takes_the_window_out_of_the_picture() -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(2, 200, (300, 2)).tolist():
        x, y = rng.uniform(0, [width - 1, height - 1])
        tracks = tracks_of(height, width, [x, y, x + 1, y + 1])
        for fit in ("crop", "bucket", "pad"):
            placement = place(tracks, VideoSize(72, 136, multiple=8), fit)
            frame_HWC = placement.image(np.full((height, width, 3), 9, np.uint8))
            assert frame_HWC.shape == (placement.height, placement.width, 3)
            assert placement.mask(np.ones((height, width), bool)).shape == frame_HWC.shape[:2]
            assert list(placement.lost_boxes(tracks)) == []


def test_pad_says_which_pixels_are_the_picture() -> None:
    tracks = tracks_of(1600, 1200, [0.0, 0.0, 1200.0, 1600.0])
    placement = place(tracks, WIDE, "pad")
    assert placement.picture_box == (296, 0, 728, 576)
    frame_HWC = placement.image(np.full((1600, 1200, 3), 200, np.uint8))
    shown = frame_HWC[:, 296:728]
    assert (shown == 200).all()
    assert frame_HWC.sum() == shown.sum()
    assert placement.tracks(tracks).boxes_NT4[0, 0].tolist() == [296, 0, 728, 576]


def test_buckets_are_sizes_that_the_model_can_make_with_no_more_pixels() -> None:
    buckets = WIDE.buckets
    assert {(576, 1024), (1024, 576), (768, 768), (640, 832)} <= buckets
    for height, width in buckets:
        assert height % 64 == width % 64 == 0
        assert 0.85 * 576 * 1024 <= height * width <= 576 * 1024
        assert max(height, width) <= 3 * min(height, width)
    assert VideoSize(64, 64).buckets == {(64, 64)}
    assert VideoSize(64, 512).buckets >= {(64, 512)}, "the run's own size, however long it is"


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [((720, 1280), (576, 1024)), ((1600, 1200), (832, 640)), ((900, 900), (768, 768)), ((600, 2400), (448, 1280))],
)
def test_a_bucket_is_the_size_that_is_nearest_to_the_pictures_shape(
    picture: tuple[int, int], bucket: tuple[int, int]
) -> None:
    placement = place(tracks_of(*picture, [5.0, 5.0, 50.0, 50.0]), WIDE, "bucket")
    assert (placement.height, placement.width) == bucket
    x0, y0, x1, y1 = placement.source_box
    assert (x1 - x0) / (y1 - y0) == pytest.approx(bucket[1] / bucket[0])


def test_a_row_has_its_own_fit_and_unknown_ones_are_refused() -> None:
    fits = pa.array(["pad", None])
    conformed = conform(table(row(), row(sample_id="b")).append_column("fit", fits), "m")
    assert conformed["fit"].to_pylist() == ["pad", None]
    assert parse_row(row(fit="pad")).fit == "pad"
    assert row_digest(row(fit=None)) == row_digest(row()) != row_digest(row(fit="pad"))
    with pytest.raises(ManifestError, match=r"row 1 \(b\): fit: 'corp' is not a fit \(did you mean crop\?\): use"):
        conform(table(row(), row(sample_id="b")).append_column("fit", pa.array(["crop", "corp"])), "m")


def test_a_row_whose_boxes_the_crop_cannot_hold_is_told() -> None:
    boxes, path = [[0.0, 10.0, 40.0, 50.0], [220.0, 10.0, 260.0, 50.0]], [[0.0, 0.0], [1.0, 1.0]]
    values = row(boxes=boxes, trajectories=[path, path])
    size = VideoSize(64, 64)
    for fit, kinds in (
        ("crop", [Kind.CROPPED]),
        ("pad", []),
        ("stretch", [Kind.STRETCHED]),
        ("bucket", [Kind.CROPPED]),
    ):
        warnings = list(row_warnings(parse_row({**values, "fit": fit}), (100, 300), size))
        assert [warning.kind for warning in warnings] == kinds, fit
    assert list(row_warnings(parse_row(values), (100, 300))) == [], "the video's size is not known"


def test_a_mask_of_which_the_crop_shows_nothing_is_refused() -> None:
    tall = tracks_of(300, 100, [10.0, 0.0, 90.0, 300.0])  # a crop shows its middle
    mask_HW = np.zeros((300, 100), np.bool_)
    mask_HW[:50, 20:40] = True
    with pytest.raises(
        SampleError, match=r"nothing of mask 0 is in the part .* fit = crop keeps \(\[0, 100, 100, 200\]"
    ):
        list(place(tall, VideoSize(100, 100)).box_masks([mask_HW], tall))
    (padded_HW,) = place(tall, VideoSize(100, 100), "pad").box_masks([mask_HW], tall)
    assert padded_HW.any()
