"""Encoding and decoding: frame count and order exact, colours close, bytes reproducible, truncated files refused."""

import importlib.util
import io
import subprocess
import sys

import av
import numpy as np
import pytest
import skimage.data

import sgi2v.video
from sgi2v.errors import ErrorCode, SampleError
from sgi2v.video import check_video, decode_mp4, encode_mp4, is_blank, read_with_decord, read_with_pyav

T, H, W = 14, 128, 192

needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
READERS = [pytest.param(read_with_decord, marks=needs_decord), read_with_pyav]


def photograph_frames(num_frames=T, height=H, width=W):
    """A window that slides over a photograph by 3 px a frame."""
    cat_HWC = skimage.data.chelsea()
    return np.stack([cat_HWC[40 : 40 + height, 60 + 3 * t : 60 + 3 * t + width] for t in range(num_frames)])


def noise_frames(num_frames, height, width):
    """Random pixels above a photograph: sharp colour edges and smooth colours."""
    astronaut_HWC = np.tile(skimage.data.astronaut(), (2, 3, 1))
    frames_THWC = np.stack([astronaut_HWC[2 * t :, 3 * t :][:height, :width] for t in range(num_frames)])
    random = np.random.default_rng(height * width)
    frames_THWC[:, : height // 2] = random.integers(0, 256, (num_frames, height // 2, width, 3), np.uint8)
    return frames_THWC


def remux(mp4, first_frame=0, **options):
    """Copy the packets to a new mp4 with these options, whose edit list hides the frames before first_frame."""
    sink = io.BytesIO()
    with av.open(io.BytesIO(mp4)) as source, av.open(sink, "w", format="mp4", options=options) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        for packet in source.demux(stream):
            if packet.size:
                packet.pts -= first_frame * packet.duration
                packet.dts -= first_frame * packet.duration
                packet.stream = copy
                target.mux(packet)
    return sink.getvalue()


def packet_ends(mp4):
    with av.open(io.BytesIO(mp4)) as container:
        return sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)


def run_python(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def assert_video_invalid(action, *arguments, match=None):
    with pytest.raises(SampleError, match=match) as caught:
        action(*arguments)
    assert caught.value.code == ErrorCode.VIDEO_INVALID


@pytest.fixture(scope="module")
def frames_THWC():
    return photograph_frames()


@pytest.fixture(scope="module")
def mp4(frames_THWC):
    return encode_mp4(frames_THWC, fps=7)


def test_round_trip_keeps_shape_and_picture(frames_THWC, mp4):
    decoded_THWC = decode_mp4(mp4)
    assert decoded_THWC.dtype == np.uint8
    assert decoded_THWC.shape == (T, H, W, 3)
    error = np.mean((decoded_THWC.astype(float) - frames_THWC) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error)).min() > 37


def test_round_trip_keeps_saturated_colours():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    bars_HWC = np.repeat(np.tile(colours, (64, 1, 1)), 16, axis=1)
    decoded_THWC = decode_mp4(encode_mp4(np.repeat(bars_HWC[None], 3, axis=0), fps=7))
    middles = decoded_THWC[1, 32, 8::16].astype(int)
    assert np.abs(middles - colours).max() <= 4


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_frames", [1, 2, 14, 25, 97])
def test_round_trip_keeps_number_and_order_of_frames(num_frames, reader):
    bits = np.arange(8)
    numbered_THWC = photograph_frames(num_frames=25)[np.arange(num_frames) % 25].copy()
    for t in range(num_frames):
        numbered_THWC[t, :16, :128] = np.repeat((t >> bits & 1) * 255, 16)[None, :, None]
    decoded_THWC = decode_mp4(encode_mp4(numbered_THWC, fps=7), [reader])
    numbers = (decoded_THWC[:, 8, 8:128:16].mean(axis=-1) > 127) @ (1 << bits)
    np.testing.assert_array_equal(numbers, np.arange(num_frames))


@needs_decord
@pytest.mark.parametrize(
    ("height", "width"),
    [(64, 64), (128, 192), (64, 200), (62, 64), (66, 50), (98, 130), (40, 36), (120, 1022), (576, 1008), (576, 1024)],
)
def test_all_readers_give_the_same_pixels(height, width):
    mp4 = encode_mp4(noise_frames(3, height, width), fps=7)
    np.testing.assert_array_equal(decode_mp4(mp4, [read_with_pyav]), decode_mp4(mp4, [read_with_decord]))


@pytest.mark.parametrize("width", [16, 24, 48, 72])
def test_widths_that_decord_refuses_are_decoded(width):
    frames_THWC = photograph_frames(width=width)
    decoded_THWC = decode_mp4(encode_mp4(frames_THWC, fps=7))
    assert decoded_THWC.shape == frames_THWC.shape
    assert np.abs(decoded_THWC.astype(int) - frames_THWC).mean() < 3


def test_everything_works_without_decord():
    lines = run_python(
        "import sys; sys.modules['decord'] = None\n"
        "import numpy as np\n"
        "from sgi2v.video import check_video, decode_mp4, encode_mp4\n"
        "frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)\n"
        "decoded = decode_mp4(encode_mp4(frames, fps=7))\n"
        "check_video(decoded, 5, 64, 96)\n"
        "print(*decoded.shape)"
    )
    assert lines == ["5", "64", "96", "3"]


def test_a_missing_library_is_not_reported_as_an_invalid_video(mp4, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError):
        decode_mp4(mp4)


def test_import_loads_no_video_library():
    loaded = run_python("import sys, sgi2v.video; print(*sys.modules)")
    assert not {"av", "decord", "cv2", "torch", "PIL"} & set(loaded)


def test_same_frames_give_the_same_bytes(frames_THWC, mp4):
    assert encode_mp4(frames_THWC.copy(), fps=7) == mp4


@pytest.mark.slow
def test_bytes_do_not_depend_on_memory_contents():
    """Encode five pans over a photograph in turns, among arrays of random bytes that are allocated and freed.

    The width is one at which x264's AVX-512 code varies.
    """
    random = np.random.default_rng(1)
    cat_HWC = skimage.data.chelsea()
    steps = random.integers(-4, 5, (5, 2))
    pans = [np.stack([np.roll(cat_HWC, t * step, axis=(0, 1))[50:114, 60:108] for t in range(8)]) for step in steps]
    encodings: list[set[bytes]] = [set() for _ in pans]
    random_arrays: list[np.ndarray] = []
    for turn in range(150):
        random_array = random.integers(0, 256, random.integers(1, 400_000), dtype=np.uint8)
        random_arrays = [*random_arrays[-20:], random_array]
        encodings[turn % len(pans)].add(encode_mp4(pans[turn % len(pans)], fps=7))
    assert [len(encodings_of_pan) for encodings_of_pan in encodings] == [1] * len(pans)


@pytest.mark.parametrize(
    ("cpu_info", "options"),
    [
        ("flags : fpu avx2 avx512f avx512bw avx512vl", {"x264-params": "asm=AVX2"}),
        ("flags : fpu avx2", {}),
        (None, {}),
    ],
)
def test_x264_is_limited_to_avx2_on_processors_with_avx512(tmp_path, monkeypatch, frames_THWC, cpu_info, options):
    if cpu_info is not None:
        (tmp_path / "cpuinfo").write_text(cpu_info)
    calls = []
    add_stream = av.container.OutputContainer.add_stream
    monkeypatch.setattr(sgi2v.video, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(
        av.container.OutputContainer,
        "add_stream",
        lambda *args, **kwargs: calls.append(kwargs) or add_stream(*args, **kwargs),
    )
    encode_mp4(frames_THWC, fps=7)
    assert calls[0]["options"] == {"crf": "14", **options}


def test_file_has_its_index_first_and_declares_its_format(mp4):
    assert mp4.index(b"moov") < mp4.index(b"mdat")
    assert b"threads=1 " in mp4
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (7, T)
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize("reader", READERS)
def test_truncated_files_are_refused(mp4, reader):
    *ends, last = packet_ends(mp4)
    assert last == len(mp4)
    cuts = {*range(0, len(mp4), len(mp4) // 60), *range(len(mp4) - 12, len(mp4))}
    for cut in sorted(cuts.union(*({end - 1, end, end + 1} for end in ends))):
        assert_video_invalid(decode_mp4, mp4[:cut], [reader], match=f"mp4 of {cut} bytes")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 100, bytes(1000)])
@pytest.mark.parametrize("reader", READERS)
def test_bytes_that_are_not_a_video_are_refused(data, reader):
    assert_video_invalid(decode_mp4, data, [reader], match="it is truncated or not a video")


@pytest.mark.parametrize("reader", READERS)
def test_file_that_declares_no_number_of_frames_is_decoded(mp4, reader):
    fragmented = remux(mp4, movflags="frag_keyframe+empty_moov")
    with av.open(io.BytesIO(fragmented)) as container:
        assert container.streams.video[0].frames == 0
    np.testing.assert_array_equal(decode_mp4(fragmented, [reader]), decode_mp4(mp4))


def test_frames_that_the_edit_list_hides_are_left_out(mp4):
    later = remux(mp4, first_frame=3, avoid_negative_ts="disabled")
    np.testing.assert_array_equal(decode_mp4(later), decode_mp4(mp4)[3:])


def test_a_delivered_video_passes_the_check(mp4):
    check_video(decode_mp4(mp4), T, H, W)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ((1, H, W), r"expected 1 frame of 128 x 192 px \(height x width\), got 14 frames of 128 x 192 px"),
        ((T + 1, H, W), "expected 15 frames of 128 x 192 px .*, got 14 frames of 128 x 192 px"),
        ((T, H + 8, W), "expected 14 frames of 136 x 192 px .*, got 14 frames of 128 x 192 px"),
        ((T, W, H), "expected 14 frames of 192 x 128 px .*, got 14 frames of 128 x 192 px"),
    ],
)
def test_another_number_or_size_fails_the_check(frames_THWC, expected, message):
    assert_video_invalid(check_video, frames_THWC, *expected, match=message)


def test_frames_of_one_constant_colour_each_fail_the_check():
    colours = np.random.default_rng(5).integers(0, 256, (T, 1, 1, 3), np.uint8)
    blank_THWC = decode_mp4(encode_mp4(np.broadcast_to(colours, (T, H, W, 3)), fps=7))
    assert is_blank(blank_THWC)
    assert_video_invalid(check_video, blank_THWC, T, H, W, match="one constant colour")


def test_one_frame_with_a_picture_passes_the_check(frames_THWC):
    mostly_black_THWC = np.zeros_like(frames_THWC)
    mostly_black_THWC[7] = frames_THWC[7]
    check_video(mostly_black_THWC, T, H, W)


@pytest.mark.parametrize("action", [lambda frames: check_video(frames, T, H, W), lambda frames: encode_mp4(frames, 7)])
def test_arrays_that_are_not_a_uint8_video_are_refused(action, frames_THWC):
    float_THWC = frames_THWC.astype(np.float32)
    assert_video_invalid(action, float_THWC, match="uint8, got float32")
    float_THWC[3, 5, 5] = np.nan
    assert_video_invalid(action, float_THWC, match="NaN")
    assert_video_invalid(action, frames_THWC[0], match=r"got \[128, 192, 3\]")
    assert_video_invalid(action, frames_THWC[:0], match=r"got \[0, ")
