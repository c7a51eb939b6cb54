"""A first frame at its video's size; frames to H.264 mp4 bytes and back, and the checks that a result passes.

Axes: T frames, H W pixels, C the three colours, RGB.
"""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgi2v.errors import ErrorCode, SampleError

Frames = NDArray[np.uint8]

CRF = 14
"""x264's quality: 0 is lossless, 51 the worst; at 14 most of what is lost goes to 4:2:0 chroma and rounding."""
BT709 = 1
"""The number that H.264 gives BT.709 as primaries, transfer and matrix alike."""
LIMITED_RANGE = 1
"""FFmpeg's number for 16..235 luma, what players expect of yuv420p."""
CPU_FLAGS = Path("/proc/cpuinfo")
"""Where Linux tells what the processor can do."""


def resize_image(image_HWC: Frames, height: int, width: int) -> Frames:
    """Bicubic resize of an RGB image, uint8 in and out; the identity at its own size."""
    from PIL import Image

    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC))


def encode_mp4(frames_THWC: Frames, fps: int) -> bytes:
    """Encode frames as an H.264 mp4 that starts playing before it is wholly loaded.

    frames_THWC: uint8 RGB, even H and W. fps: frames per second. yuv420p, BT.709. One thread, no clock in the
    file, none of x264's code that varies: the same frames give the same bytes under the same FFmpeg and x264.
    Raises SampleError(video_invalid) for an array that is no video.
    """
    import av
    from av.video.reformatter import Colorspace, Interpolation

    _require_frames(frames_THWC)
    height, width = frames_THWC.shape[1:3]
    # Moving the index to the front is a second pass over a file that has a name: FFmpeg cannot do it in memory.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": str(CRF)} | _steady_x264())
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


def decode_mp4(data: bytes) -> Frames:
    """Decode every frame of an mp4 held in memory.

    Returns uint8 [T, H, W, 3] RGB. Raises SampleError(video_invalid) for bytes that are no video or are cut short:
    decord checks what it reads against the file's index, where PyAV returns the frames it happened to get.
    """
    import decord

    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        frames_THWC: Frames = reader.get_batch(range(len(reader))).asnumpy()
    except Exception as error:  # decord raises its own error, RuntimeError or AssertionError, as it happens
        message = f"the mp4 of {len(data)} bytes cannot be decoded: it is cut short or is no video"
        raise SampleError(ErrorCode.VIDEO_INVALID, message) from error
    return frames_THWC


def check_video(frames_THWC: NDArray[Any], num_frames: int, height: int, width: int) -> None:
    """Hold frames to what was ordered: their count, their size, and that there is a picture in them.

    Raises SampleError(video_invalid).
    """
    _require_frames(frames_THWC)
    ordered = (num_frames, height, width)
    if frames_THWC.shape[:3] != ordered:
        raise SampleError(ErrorCode.VIDEO_INVALID, f"{_size(frames_THWC.shape[:3])} where {_size(ordered)} are due")
    if is_blank(frames_THWC):
        raise SampleError(ErrorCode.VIDEO_INVALID, "every frame is one constant colour")


def is_blank(frames_THWC: Frames) -> bool:
    """Whether every frame is one colour all over, though perhaps not the same colour in each."""
    return bool((frames_THWC == frames_THWC[:, :1, :1]).all())


def _steady_x264() -> dict[str, str]:
    """The options under which x264 encodes the same frames to the same bytes.

    On widths that are no multiple of 128 px its AVX-512 code for the macroblock tree gives other bytes in one of ten
    encodings, so that it may use AVX2 at most. Where there is no AVX-512 nothing is said: x264 would take code that
    is named for it without asking whether the processor can run it.
    """
    return {"x264-params": "asm=AVX2"} if _has_avx512(CPU_FLAGS) else {}


@cache
def _has_avx512(flags: Path) -> bool:
    """Whether Linux tells of it; other systems have no such file, and Macs seldom such a processor."""
    try:
        return "avx512vl" in flags.read_text()
    except OSError:
        return False


def _require_frames(frames_THWC: NDArray[Any]) -> None:
    if frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or 0 in frames_THWC.shape:
        message = f"a video is [frames, height, width, 3], not {list(frames_THWC.shape)}"
        raise SampleError(ErrorCode.VIDEO_INVALID, message)
    if frames_THWC.dtype != np.uint8:
        problem = f"frames are uint8, not {frames_THWC.dtype}"
        if not np.isfinite(frames_THWC).all():
            problem = "the frames hold NaN or infinite values"
        raise SampleError(ErrorCode.VIDEO_INVALID, problem)


def _size(shape: tuple[int, ...]) -> str:
    num_frames, height, width = shape
    return f"{num_frames} frames of {height} x {width} px (height x width)"
