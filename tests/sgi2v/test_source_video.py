"""Videos that people have: every kind is read exactly or refused with a reason."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from sgi2v.source_video import SourceVideo, SourceVideoError, open_video
from tests.manifests.footage import Disc, constant_rate, line, render, variable_rate, write_video

TIMES = constant_rate(0.7, 30)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """A disc that moves to the right, in 90 x 160 px."""
    full = render([Disc(line(200, 180, 150, 0))], TIMES)
    return np.stack([cv2.resize(frame, (160, 90), interpolation=cv2.INTER_AREA) for frame in full])


def read(path: Path) -> tuple[SourceVideo, np.ndarray]:
    video = open_video(str(path))
    return video, np.stack(list(video.frames(range(len(video.times_T)))))


def difference(frames: np.ndarray, others: np.ndarray) -> float:
    """Mean difference of the levels."""
    assert frames.shape == others.shape
    return float(np.abs(frames.astype(int) - others).mean())


def code_of(path: Path) -> tuple[str, str]:
    with pytest.raises(SourceVideoError) as caught:
        open_video(str(path))
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("plain.mp4", "libx264", "yuv420p"),
        ("ten-bit.mp4", "libx264", "yuv420p10le"),
        ("ten-bit.mov", "prores_ks", "yuv422p10le"),
        ("vp8.webm", "libvpx", "yuv420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("old.avi", "mpeg4", "yuv420p"),
        ("matroska.mkv", "libx264", "yuv420p"),
        ("broadcast.ts", "libx264", "yuv420p"),
    ],
)
def test_every_kind_has_its_frames_and_times(
    tmp_path: Path, frames: np.ndarray, name: str, codec: str, pixels: str
) -> None:
    video, decoded = read(write_video(tmp_path / name, frames, TIMES, codec, pixels))
    assert (video.height, video.width, video.quarter_turns) == (90, 160, 0)
    assert video.bits == (10 if name.startswith("ten-bit") else 8)
    np.testing.assert_allclose(video.times_T, TIMES, atol=0.001)
    assert difference(frames, decoded) < 8


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_flags_are_obeyed(tmp_path: Path, frames: np.ndarray, turns: int) -> None:
    lying = np.rot90(frames, -turns, axes=(1, 2))
    video, decoded = read(write_video(tmp_path / "phone.mp4", lying, TIMES, turn=90 * turns))
    assert (video.height, video.width, video.quarter_turns) == (90, 160, turns)
    assert difference(frames, decoded) < 5


def test_odd_sizes_and_pixels_that_are_not_square(tmp_path: Path, frames: np.ndarray) -> None:
    odd = frames[:, :89, :157]
    assert difference(odd, read(write_video(tmp_path / "odd.mp4", odd, TIMES, pixels="yuv444p"))[1]) < 5

    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)

    video, decoded = read(write_video(tmp_path / "wide.mp4", frames, TIMES, change=wide))
    assert (video.height, video.width) == (90, 240)
    assert decoded.shape == (len(frames), 90, 240, 3)


def test_times_of_a_variable_frame_rate(tmp_path: Path, frames: np.ndarray) -> None:
    times = variable_rate(2)[: len(frames)]
    video = open_video(str(write_video(tmp_path / "phone.mp4", frames, times)))
    np.testing.assert_allclose(video.times_T, times, atol=0.001)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_single_frames_are_the_same_as_in_a_whole_reading(
    tmp_path: Path, frames: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_frames(stream: Any) -> None:
        stream.codec_context.gop_size = 5

    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = write_video(tmp_path / name, frames, TIMES, codec, change=key_frames)
    whole = read(path)[1]
    chosen = [3, 4, 9, 17]
    for number in (chosen, chosen[1:], chosen[-1:]):
        np.testing.assert_array_equal(np.stack(list(open_video(str(path)).frames(number))), whole[number])
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    np.testing.assert_array_equal(np.stack(list(open_video(str(path)).frames(chosen))), whole[chosen])


def test_one_frame(tmp_path: Path, frames: np.ndarray) -> None:
    video, decoded = read(write_video(tmp_path / "still.mp4", frames[:1], [0.0]))
    assert video.times_T.tolist() == [0.0]
    assert difference(frames[:1], decoded) < 5


def test_truncated_files_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    long = np.concatenate([frames, frames[::-1]] * 2)
    times = [t / 30 for t in range(len(long))]
    whole = {
        "index-at-the-end.mp4": write_video(tmp_path / "end.mp4", long, times),
        "index-first.mp4": write_video(tmp_path / "first.mp4", long, times, options={"movflags": "+faststart"}),
        "cut.mkv": write_video(tmp_path / "whole.mkv", long, times),
    }
    found = {}
    for name, path in whole.items():
        data = path.read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
        found[name] = code_of(tmp_path / name)
    assert found["index-at-the-end.mp4"][0] == "video_undecodable"
    assert "truncated or not a video" in found["index-at-the-end.mp4"][1]
    assert found["index-first.mp4"][0] == "video_truncated"
    assert found["index-first.mp4"][1].endswith(": copy it again")
    assert f"of {len(long)} found" in found["index-first.mp4"][1]
    assert found["cut.mkv"][0] == "video_truncated"


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("a video of a cat")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    codes = {name: code_of(tmp_path / f"{name}.mp4")[0] for name in ("empty", "text", "sound")}
    assert codes == {"empty": "video_empty", "text": "video_undecodable", "sound": "video_no_pictures"}
    with pytest.raises(FileNotFoundError):
        open_video(str(tmp_path / "none.mp4"))


def test_pictures_that_would_come_out_wrong_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    def hdr(stream: Any) -> None:
        stream.codec_context.color_trc = 16

    def interlaced(stream: Any) -> None:
        stream.codec_context.options = {"x264-params": "tff=1"}

    path = write_video(tmp_path / "hdr.mp4", frames, TIMES, pixels="yuv420p10le", change=hdr)
    assert code_of(path)[0] == "video_hdr"
    path = write_video(tmp_path / "tv.mp4", frames[:, :64], TIMES, change=interlaced)
    assert code_of(path)[0] == "video_interlaced"
