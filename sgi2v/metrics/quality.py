"""Quality of a video, measured without a reference other than its first frame.

Axes: T frames, H W pixels, C colours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from sgi2v.errors import ErrorCode, SampleError
from sgi2v.opencv import single_opencv_thread
from sgi2v.video import Frames

PSNR_CAP_DB = 100.0
"""PSNR of identical frames, and the upper limit for any others, dB."""


@dataclass(frozen=True)
class SampleQuality:
    """Quality of a video, measured without a reference other than its first frame."""

    first_frame_psnr_db: float | None
    """PSNR of frame 0 against the input image, dB, at most PSNR_CAP_DB."""
    flicker: float | None
    """Mean |f[t-1] - 2 f[t] + f[t+1]| over pixels, colours and frames, 8-bit levels. Null below three frames."""
    mean_flow_px: float | None
    """Mean length of Farneback's optical flow between consecutive frames, pixels. It hardly sees the motion of smooth
    ground, which background_motion_px does. Null below two frames."""

    def as_dict(self) -> dict[str, float | None]:
        """One flat row: the values by name."""
        return asdict(self)


def sample_quality(frames_THWC: Frames, first_frame_HWC: Frames) -> SampleQuality:
    """Measure the quality of a video.

    frames_THWC: uint8 RGB. first_frame_HWC: the input image at the size of the frames, uint8 RGB. Raises
    SampleError(video_invalid) where the sizes differ.
    """
    if frames_THWC.shape[1:] != first_frame_HWC.shape:
        message = (
            f"frames of shape {list(frames_THWC.shape[1:])} do not match "
            f"a first frame of shape {list(first_frame_HWC.shape)}"
        )
        raise SampleError(ErrorCode.VIDEO_INVALID, message)
    return SampleQuality(
        first_frame_psnr_db=_psnr_db(frames_THWC[0], first_frame_HWC),
        flicker=_flicker(frames_THWC),
        mean_flow_px=_mean_flow_px(frames_THWC),
    )


def _psnr_db(frame_HWC: Frames, reference_HWC: Frames) -> float:
    squared_error = float(np.mean((frame_HWC.astype(np.float64) - reference_HWC) ** 2))
    if squared_error == 0:
        return PSNR_CAP_DB
    return min(float(10 * np.log10(255.0**2 / squared_error)), PSNR_CAP_DB)


def _flicker(frames_THWC: Frames) -> float | None:
    if len(frames_THWC) < 3:
        return None
    return float(np.abs(np.diff(frames_THWC.astype(np.int16), n=2, axis=0)).mean())


def _mean_flow_px(frames_THWC: Frames) -> float | None:
    import cv2

    if len(frames_THWC) < 2:
        return None
    lengths = []
    with single_opencv_thread():
        grey_T = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
        for before_HW, after_HW in pairwise(grey_T):
            flow_HW2 = cv2.calcOpticalFlowFarneback(
                before_HW,
                after_HW,
                None,
                pyr_scale=0.5,
                levels=5,
                winsize=15,
                iterations=3,
                poly_n=5,
                poly_sigma=1.2,
                flags=0,
            )
            lengths.append(float(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).mean()))
    return float(np.mean(lengths))
