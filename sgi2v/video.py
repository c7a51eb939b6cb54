"""Encode frames as an H.264 mp4, decode an mp4 to frames, and check decoded frames.

An mp4 is read by a `VideoReader`: decord where it is installed, else PyAV. Both give the same pixels.

Axes: T frames, H W pixels, C the three colours, RGB.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgi2v.errors import ErrorCode, SampleError
from sgi2v.wording import counted

Frames = NDArray[np.uint8]

VideoReader: TypeAlias = Callable[[bytes, int], Frames]
"""Takes the bytes of an mp4 and its number of frames. Returns all frames, uint8 [T, H, W, 3] RGB, or raises."""

CRF = 14
"""x264's constant rate factor: 0 is lossless, 51 the worst. At 14 most of the loss is 4:2:0 chroma and rounding."""
BT709 = 1
"""H.264's number for BT.709. It is the same for primaries, transfer and matrix."""
LIMITED_RANGE = 1
"""FFmpeg's number for luma in 16..235, which players expect of yuv420p."""
CPU_INFO = Path("/proc/cpuinfo")
"""The file in which Linux lists the processor's instruction sets."""


def resize_image(
    image_HWC: Frames, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> Frames:
    """Resize an RGB image, bicubic, uint8 in and out. An image of that size already is returned as it is.

    box: the part of the image to take, xyxy in its pixels; None takes all.
    """
    from PIL import Image

    whole = (0, 0, image_HWC.shape[1], image_HWC.shape[0])
    if image_HWC.shape[:2] == (height, width) and box in {None, whole}:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC, box))


def encode_mp4(frames_THWC: Frames, fps: int) -> bytes:
    """Encode frames as an H.264 mp4 with its index at the front, so that players start before it is fully loaded.

    frames_THWC: uint8 RGB, even H and W. fps: frames per second. The video is yuv420p, BT.709. The same frames give
    the same bytes under the same FFmpeg and x264: one thread, no timestamps in the file, no code paths of x264 that
    vary. Raises SampleError(video_invalid) for an array that is not a video.
    """
    import av
    from av.video.reformatter import Colorspace, Interpolation

    _require_frames(frames_THWC)
    height, width = frames_THWC.shape[1:3]
    # FFmpeg moves the index to the front in a second pass, which needs a file with a name.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": str(CRF)} | _deterministic_x264())
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            codec = stream.codec_context
            codec.thread_count = 1
            codec.color_primaries = codec.color_trc = codec.colorspace = BT709
            codec.color_range = LIMITED_RANGE
            for frame_HWC in frames_THWC:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24").reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                )
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return path.read_bytes()


def read_with_decord(data: bytes, num_frames: int) -> Frames:
    """Read an mp4 with decord. A VideoReader.

    decord has wheels for Linux on x86-64 only. decord 0.6.0 refuses a few valid widths: 72, 48, 24 and 16 px, and
    some below 16.
    """
    import decord

    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    if len(reader) != num_frames:
        raise ValueError(f"expected {num_frames} frames, decord counts {len(reader)}")
    frames_THWC: Frames = reader.get_batch(range(num_frames)).asnumpy()
    return frames_THWC


def read_with_pyav(data: bytes, num_frames: int) -> Frames:
    """Read an mp4 with PyAV. A VideoReader."""
    import av
    from av.video.reformatter import Interpolation

    with av.open(io.BytesIO(data), format="mp4") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames_THWC = np.empty((num_frames, stream.height, stream.width, 3), np.uint8)
        for frame_HWC, picture in zip(frames_THWC, container.decode(stream), strict=True):
            # FFmpeg's flags as decord sets them: the pixels are the same. With ACCURATE_RND they are 1 to 3 levels off.
            frame_HWC[:] = picture.reformat(format="rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
    return frames_THWC


READERS: tuple[VideoReader, ...] = (read_with_decord, read_with_pyav)
"""The readers, in the order in which `decode_mp4` tries them."""


def decode_mp4(data: bytes, readers: Sequence[VideoReader] = READERS) -> Frames:
    """Decode every frame of an mp4 held in memory.

    Returns uint8 [T, H, W, 3] RGB from the first reader that is installed and can read the file. Raises
    SampleError(video_invalid) for bytes that are truncated or not an mp4 video.
    """
    try:
        # Count first. Where a file is cut between two frames both readers return fewer frames without an error, and
        # decord 0.6.0 crashes the process on some damaged files that the count refuses.
        num_frames = _count_frames(data)
        *preferred, last = readers
        for reader in preferred:
            with suppress(Exception):  # it is not installed, or refuses this file
                return reader(data, num_frames)
        return last(data, num_frames)
    except ImportError:  # an installation without PyAV is not a fault of the video
        raise
    except Exception as error:  # the libraries raise errors of their own, IndexError, RuntimeError and others
        message = f"cannot decode the mp4 of {len(data)} bytes: it is truncated or not a video"
        raise SampleError(ErrorCode.VIDEO_INVALID, message) from error


def check_video(frames_THWC: NDArray[Any], num_frames: int, height: int, width: int) -> None:
    """Raise SampleError(video_invalid) unless frames have this number and size, and at least one shows a picture."""
    _require_frames(frames_THWC)
    expected = (num_frames, height, width)
    if frames_THWC.shape[:3] != expected:
        message = f"expected {_describe(expected)}, got {_describe(frames_THWC.shape[:3])}"
        raise SampleError(ErrorCode.VIDEO_INVALID, message)
    if is_blank(frames_THWC):
        raise SampleError(ErrorCode.VIDEO_INVALID, "every frame is one constant colour")


def is_blank(frames_THWC: Frames) -> bool:
    """Whether each frame is one constant colour. The colour may differ between frames."""
    return bool((frames_THWC == frames_THWC[:, :1, :1]).all())


def _count_frames(data: bytes) -> int:
    """The number of frames that an mp4 shows, counted by its packets without decoding them.

    Raises ValueError where a packet is missing or truncated, PyAV's errors for bytes that are not an mp4.
    """
    import av

    with av.open(io.BytesIO(data), format="mp4") as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        whole = [packet for packet in packets if not packet.is_corrupt]
        declared = stream.frames or len(packets)  # 0: the file does not say
    if not whole or len(whole) != declared:
        raise ValueError(f"expected {declared} packets, got {len(whole)} whole ones")
    return sum(not packet.is_discard for packet in whole)  # discarded: decoded, then hidden by the edit list


def _deterministic_x264() -> dict[str, str]:
    """The options with which x264 encodes the same frames to the same bytes.

    x264's AVX-512 code for the macroblock tree gives other bytes in one of ten encodings at widths that are no
    multiple of 128 px, so x264 may use AVX2 at most. On a processor without AVX-512 the option must be left out:
    x264 would run AVX2 code there without checking that the processor has it.
    """
    return {"x264-params": "asm=AVX2"} if _has_avx512(CPU_INFO) else {}


@cache
def _has_avx512(cpu_info: Path) -> bool:
    """Whether Linux lists AVX-512. Other systems lack the file; their processors seldom have AVX-512."""
    try:
        return "avx512vl" in cpu_info.read_text()
    except OSError:
        return False


def _require_frames(frames_THWC: NDArray[Any]) -> None:
    if frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or 0 in frames_THWC.shape:
        message = f"a video is an array of [frames, height, width, 3], got {list(frames_THWC.shape)}"
        raise SampleError(ErrorCode.VIDEO_INVALID, message)
    if frames_THWC.dtype != np.uint8:
        problem = f"frames are uint8, got {frames_THWC.dtype}"
        if not np.isfinite(frames_THWC).all():
            problem = "the frames contain NaN or infinite values"
        raise SampleError(ErrorCode.VIDEO_INVALID, problem)


def _describe(shape: tuple[int, ...]) -> str:
    num_frames, height, width = shape
    return f"{counted(num_frames, 'frame')} of {height} x {width} px (height x width)"
