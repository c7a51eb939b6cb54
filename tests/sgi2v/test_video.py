"""Frames to mp4 and back: exact in number and order, near in colour, the same bytes twice, never silently short."""

import io

import av
import numpy as np
import pytest
import skimage.data

import sgi2v.video
from sgi2v.errors import ErrorCode, SampleError
from sgi2v.video import check_video, decode_mp4, encode_mp4, is_blank

T, H, W = 14, 128, 192


def photograph_frames(num_frames=T, height=H, width=W):
    """A window that slides over a photograph by 3 px a frame."""
    cat_HWC = skimage.data.chelsea()
    return np.stack([cat_HWC[40 : 40 + height, 60 + 3 * t : 60 + 3 * t + width] for t in range(num_frames)])


def assert_video_invalid(action, *arguments, says=None):
    with pytest.raises(SampleError, match=says) as caught:
        action(*arguments)
    assert caught.value.code == ErrorCode.VIDEO_INVALID


@pytest.fixture(scope="module")
def frames_THWC():
    return photograph_frames()


@pytest.fixture(scope="module")
def mp4(frames_THWC):
    return encode_mp4(frames_THWC, fps=7)


def test_the_round_trip_keeps_shape_and_picture(frames_THWC, mp4):
    decoded_THWC = decode_mp4(mp4)
    assert decoded_THWC.dtype == np.uint8
    assert decoded_THWC.shape == (T, H, W, 3)
    error = np.mean((decoded_THWC.astype(float) - frames_THWC) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error)).min() > 37


def test_saturated_colours_come_back_as_themselves():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    bars_HWC = np.repeat(np.tile(colours, (64, 1, 1)), 16, axis=1)
    decoded_THWC = decode_mp4(encode_mp4(np.repeat(bars_HWC[None], 3, axis=0), fps=7))
    middles = decoded_THWC[1, 32, 8::16].astype(int)
    assert np.abs(middles - colours).max() <= 4


@pytest.mark.parametrize("num_frames", [1, 2, 14, 25, 97])
def test_every_frame_comes_back_in_its_place(num_frames):
    bits = np.arange(8)
    marked_THWC = photograph_frames(num_frames=25)[np.arange(num_frames) % 25].copy()
    for t in range(num_frames):
        marked_THWC[t, :16, :128] = np.repeat((t >> bits & 1) * 255, 16)[None, :, None]
    decoded_THWC = decode_mp4(encode_mp4(marked_THWC, fps=7))
    read = (decoded_THWC[:, 8, 8:128:16].mean(axis=-1) > 127) @ (1 << bits)
    np.testing.assert_array_equal(read, np.arange(num_frames))


def test_the_same_frames_give_the_same_bytes(frames_THWC, mp4):
    assert encode_mp4(frames_THWC.copy(), fps=7) == mp4


def test_what_lies_in_memory_does_not_change_the_bytes():
    """Pans over a photograph by steps of their own, in turns: each is encoded where others left their traces.

    The width is one at which x264's AVX-512 code varies.
    """
    random = np.random.default_rng(1)
    cat_HWC = skimage.data.chelsea()
    steps = random.integers(-4, 5, (5, 2))
    pans = [np.stack([np.roll(cat_HWC, t * step, axis=(0, 1))[50:114, 60:108] for t in range(8)]) for step in steps]
    encoded: list[set[bytes]] = [set() for _ in pans]
    dirt: list[np.ndarray] = []
    for turn in range(150):
        dirt = [*dirt[-20:], random.integers(0, 256, random.integers(1, 400_000), dtype=np.uint8)]
        encoded[turn % len(pans)].add(encode_mp4(pans[turn % len(pans)], fps=7))
    assert [len(each) for each in encoded] == [1] * len(pans)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("flags : fpu avx2 avx512f avx512bw avx512vl", {"x264-params": "asm=AVX2"}),
        ("flags : fpu avx2", {}),
        (None, {}),
    ],
)
def test_x264_goes_without_avx512_where_there_is_some(tmp_path, monkeypatch, frames_THWC, flags, options):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    opened = []
    add_stream = av.container.OutputContainer.add_stream
    monkeypatch.setattr(sgi2v.video, "CPU_FLAGS", tmp_path / "cpuinfo")
    monkeypatch.setattr(
        av.container.OutputContainer,
        "add_stream",
        lambda *args, **kwargs: opened.append(kwargs) or add_stream(*args, **kwargs),
    )
    encode_mp4(frames_THWC, fps=7)
    assert opened[0]["options"] == {"crf": "14", **options}


def test_the_file_says_what_it_is_and_starts_at_once(mp4):
    assert mp4.index(b"moov") < mp4.index(b"mdat")
    assert b"threads=1 " in mp4
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (7, T)
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)


def test_no_truncation_passes_for_a_video(mp4):
    cuts = [*range(0, len(mp4), len(mp4) // 60), *range(len(mp4) - 12, len(mp4))]
    for cut in cuts:
        assert_video_invalid(decode_mp4, mp4[:cut], says=f"mp4 of {cut} bytes")


def test_other_bytes_are_no_video():
    assert_video_invalid(decode_mp4, b"<html>not found</html>" * 100)


def test_a_delivered_video_passes_the_check(mp4):
    check_video(decode_mp4(mp4), T, H, W)


@pytest.mark.parametrize("ordered", [(T + 1, H, W), (T, H + 8, W), (T, W, H)])
def test_another_count_or_size_fails_the_check(frames_THWC, ordered):
    assert_video_invalid(check_video, frames_THWC, *ordered, says=f"14 frames of 128 x 192 px .* {ordered[0]} frames")


def test_frames_of_one_constant_colour_each_fail_the_check():
    colours = np.random.default_rng(5).integers(0, 256, (T, 1, 1, 3), np.uint8)
    blank_THWC = decode_mp4(encode_mp4(np.broadcast_to(colours, (T, H, W, 3)), fps=7))
    assert is_blank(blank_THWC)
    assert_video_invalid(check_video, blank_THWC, T, H, W, says="one constant colour")


def test_one_frame_with_a_picture_is_enough_not_to_be_blank(frames_THWC):
    black_but_one_THWC = np.zeros_like(frames_THWC)
    black_but_one_THWC[7] = frames_THWC[7]
    check_video(black_but_one_THWC, T, H, W)


@pytest.mark.parametrize("action", [lambda frames: check_video(frames, T, H, W), lambda frames: encode_mp4(frames, 7)])
def test_what_is_no_uint8_video_is_refused(action, frames_THWC):
    broken_THWC = frames_THWC.astype(np.float32)
    assert_video_invalid(action, broken_THWC, says="uint8, not float32")
    broken_THWC[3, 5, 5] = np.nan
    assert_video_invalid(action, broken_THWC, says="NaN")
    assert_video_invalid(action, frames_THWC[0], says=r"not \[128, 192, 3\]")
    assert_video_invalid(action, frames_THWC[:0], says=r"not \[0, ")
