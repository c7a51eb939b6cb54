"""Read videos of any kind: every container and codec of FFmpeg, variable frame rates, rotated, ten-bit, of any size.

`sgi2v.video` reads the mp4 files that this program writes. This module reads what people have, and refuses what it
cannot read faithfully. Frames are read by decord where it is installed and known to be exact, else by PyAV.

Axes: T frames, H W pixels, C the three colours, RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.errors import SGI2VError, UnusableError
from sgi2v.trajectory import Floats
from sgi2v.video import Frames, resize_image
from sgi2v.wording import counted

DECORD_CODECS = frozenset({"h264", "hevc", "vp9"})
"""Codecs (FFmpeg's names) of which decord 0.6.0 finds every frame exactly."""
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics (ITU-T H.273) that need tone mapping before 8 bits can show them."""
SAME_TIME_S = 0.002
"""Difference of two times of the same frame, at most: decord rounds to milliseconds."""
MISSING_END_S = 0.5
"""Seconds that the last packet may end before the duration that the file declares."""


class SourceVideoError(UnusableError):
    """A video that cannot be used. Its message says what to do."""


@dataclass(frozen=True)
class SourceVideo:
    """A video file whose packets were counted and found whole. `open_video` makes it."""

    path: str
    times_T: Floats
    """Seconds at which each frame is shown, from the first frame on. Frame rates may vary."""
    height: int
    """Of the frames as they are displayed: turned, with square pixels."""
    width: int
    quarter_turns: int
    """Counter-clockwise turns that the file asks a player for, 0 to 3; `frames` applies them."""
    bits: int
    """Of a colour sample in the file; frames have 8."""
    _codec: str
    _pixel_aspect: Fraction
    _pts_T: Sequence[int] = field(repr=False)

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        """The frames of these indices, which ascend: uint8 [H, W, 3] RGB, as they are displayed.

        Raises SourceVideoError(video_damaged) where a frame is missing or damaged.
        """
        done = 0
        if self._decord is not None:
            with suppress(Exception):  # decord gives up on files that FFmpeg reads
                for index in indices:
                    frame_HWC: Frames = self._decord[index].asnumpy()
                    done += 1
                    yield frame_HWC
        if done < len(indices):
            yield from self._frames_with_pyav(indices[done:])

    @cached_property
    def _decord(self) -> Any:
        """decord's reader; None where PyAV has to read: decord is missing, or does not find the same frames."""
        if self._codec not in DECORD_CODECS or self.quarter_turns or self._pixel_aspect != 1 or self.bits > 8:
            return None
        try:
            import decord

            decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's lines about damaged frames, without a file name
            reader = decord.VideoReader(self.path, num_threads=1)
            times_T = reader.get_frame_timestamp(range(len(reader)))[:, 0]
            is_same = len(times_T) == len(self.times_T) and np.allclose(
                times_T - times_T[0], self.times_T, rtol=0, atol=SAME_TIME_S
            )
        except Exception:  # not installed, or its own errors about this file
            return None
        return reader if is_same else None

    def _frames_with_pyav(self, indices: Sequence[int]) -> Iterator[Frames]:
        from av.video.reformatter import Interpolation

        wanted = iter(indices)
        index = next(wanted)
        try:
            for picture in self._pictures_from(self._pts_T[index]):
                if picture.pts != self._pts_T[index]:
                    continue
                if picture.is_corrupt:
                    break
                yield self._displayed(
                    picture.reformat(format="rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
                )
                following = next(wanted, None)
                if following is None:
                    return
                index = following
        except (OSError, ValueError) as error:  # PyAV's errors derive from these
            raise self._damaged(index, f" ({getattr(error, 'strerror', None) or error})") from error
        raise self._damaged(index)

    def _pictures_from(self, pts: int) -> Iterator[Any]:
        """PyAV's frames from a key frame at or before `pts` on; all frames where the file cannot be searched."""
        import av

        for searches in (True, False):
            with av.open(self.path) as container:
                stream = container.streams.best("video")
                stream.codec_context.thread_count = 1
                if searches:
                    with suppress(OSError, ValueError):
                        container.seek(pts, stream=stream)
                pictures = container.decode(stream)
                first = next(pictures, None)
                if searches and (first is None or first.pts is None or first.pts > pts):
                    continue
                if first is not None:
                    yield first
                yield from pictures
                return

    def _displayed(self, coded_HWC: Frames) -> Frames:
        height, width = coded_HWC.shape[:2]
        square_HWC = resize_image(coded_HWC, height, square_width(width, self._pixel_aspect))
        return np.ascontiguousarray(np.rot90(square_HWC, self.quarter_turns))

    def _damaged(self, index: int, reason: str = "") -> SourceVideoError:
        message = f"the frame at {self.times_T[index]:.2f} s is missing or damaged{reason}: encode the video again"
        return SourceVideoError("video_damaged", message)


def open_video(path: str) -> SourceVideo:
    """Check a local video file: every packet is read, and the first frame is decoded.

    Raises SourceVideoError: video_empty (no bytes), video_undecodable, video_no_pictures (sound only), video_truncated,
    video_no_times, video_hdr, video_interlaced, video_rotation (not by quarter turns). Raises OSError for a file that
    cannot be read.
    """
    import av

    if Path(path).stat().st_size == 0:
        raise SourceVideoError("video_empty", "the file has no bytes: copy it again")
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise SourceVideoError("video_no_pictures", "the file has sound and no moving pictures: leave it out")
            times = _packet_times(container, stream)
            time_base, aspect = stream.time_base, stream.sample_aspect_ratio or Fraction(1)
            codec = stream.codec_context.name
        with av.open(path) as container:
            first = next(container.decode(container.streams.best("video")), None)
    except SGI2VError:
        raise
    except (OSError, ValueError) as error:  # PyAV's errors derive from these
        reason = getattr(error, "strerror", None) or error  # without the path
        message = f"it is truncated or not a video ({reason}): check the file with a player"
        raise SourceVideoError("video_undecodable", message) from error
    if first is None:
        raise SourceVideoError("video_undecodable", "no frame of it can be decoded: check the file with a player")
    _require_faithful(first)
    turns = first.rotation // 90 % 4
    height, width = first.height, square_width(first.width, aspect)
    return SourceVideo(
        path=path,
        times_T=np.array([float((pts - times[0]) * time_base) for pts in times]),
        height=width if turns % 2 else height,
        width=height if turns % 2 else width,
        quarter_turns=turns,
        bits=max(component.bits for component in first.format.components),
        _codec=codec,
        _pixel_aspect=aspect,
        _pts_T=times,
    )


def square_width(width: int, pixel_aspect: Fraction) -> int:
    """The width that pixels of this aspect (width / height) have when they are square."""
    return max(round(width * pixel_aspect), 1)


def _packet_times(container: Any, stream: Any) -> list[int]:
    """The times of the frames that the video shows, in its time base, sorted, from its packets.

    Raises SourceVideoError where packets are missing.
    """
    times: list[int | None] = []
    packets, is_whole, end = 0, True, Fraction(0)
    for packet in container.demux():
        if not packet.size:
            continue
        if packet.pts is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream is not stream:
            continue
        packets += 1
        is_whole = is_whole and not packet.is_corrupt
        if not packet.is_discard:  # such frames are decoded, then hidden by the edit list
            times.append(packet.pts)
    start = Fraction(container.start_time or 0, 1_000_000)
    missing_s = Fraction(container.duration or 0, 1_000_000) - (end - start)
    if not is_whole or packets < stream.frames or missing_s > MISSING_END_S:
        declared = f" of {stream.frames}" if stream.frames else ""
        missing = f"{counted(packets, 'frame')}{declared} found, up to {float(end):.1f} s"
        raise SourceVideoError("video_truncated", f"the file is truncated ({missing}): copy it again")
    known = sorted({pts for pts in times if pts is not None})  # a hidden frame (VP8) has the time of a shown one
    if None in times or not known:
        message = "its frames have no times of their own: put it into an mp4 (ffmpeg -i IN OUT.mp4)"
        raise SourceVideoError("video_no_times", message)
    return known


def _require_faithful(first: Any) -> None:
    """Raise SourceVideoError if 8-bit progressive upright frames cannot be made from frames like this one."""
    if int(first.color_trc) in HDR_TRANSFERS:
        message = (
            f"its colours are HDR ({HDR_TRANSFERS[int(first.color_trc)]}) and would come out pale: convert it to SDR"
        )
        raise SourceVideoError("video_hdr", message)
    if first.interlaced_frame:
        message = "it is interlaced, so moving things have combed edges: deinterlace it (ffmpeg -vf yadif)"
        raise SourceVideoError("video_interlaced", message)
    if first.rotation % 90:
        message = f"it is to be turned by {first.rotation} degrees, not by quarter turns: encode it upright"
        raise SourceVideoError("video_rotation", message)
