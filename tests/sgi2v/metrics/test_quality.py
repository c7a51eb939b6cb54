"""Sample quality of videos whose PSNR, flicker and flow are known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import skimage.data

from sgi2v.errors import ErrorCode, SampleError
from sgi2v.metrics.quality import PSNR_CAP_DB, sample_quality

T, H, W = 14, 128, 192
PHOTOGRAPH_HWC = cv2.resize(skimage.data.chelsea(), (W, H), interpolation=cv2.INTER_AREA)
STILL_THWC = np.repeat(PHOTOGRAPH_HWC[None], T, axis=0)
ABOUT_ZERO = pytest.approx(0, abs=0.01)


def test_a_frozen_video_has_perfect_quality():
    quality = sample_quality(STILL_THWC, PHOTOGRAPH_HWC)
    assert quality.as_dict() == {"first_frame_psnr_db": PSNR_CAP_DB, "flicker": 0.0, "mean_flow_px": ABOUT_ZERO}


def test_psnr_compares_the_first_frame_only():
    frames_THWC = STILL_THWC.copy()
    frames_THWC[1:] = 0
    off_by_two_HWC = np.where(PHOTOGRAPH_HWC > 128, PHOTOGRAPH_HWC - 2, PHOTOGRAPH_HWC + 2).astype(np.uint8)
    quality = sample_quality(frames_THWC, off_by_two_HWC)
    assert quality.first_frame_psnr_db == pytest.approx(10 * np.log10(255**2 / 4))


def test_a_steady_fade_has_no_flicker():
    levels_T = np.arange(10, 10 + 5 * T, 5, dtype=np.uint8)
    fade_THWC = np.broadcast_to(levels_T[:, None, None, None], (T, 16, 16, 3))
    assert sample_quality(fade_THWC, fade_THWC[0]).flicker == 0


def test_flicker_is_the_mean_second_difference():
    levels_T = np.where(np.arange(T) % 2, 90, 100).astype(np.uint8)
    blinking_THWC = np.broadcast_to(levels_T[:, None, None, None], (T, 16, 16, 3))
    assert sample_quality(blinking_THWC, blinking_THWC[0]).flicker == 20


def test_mean_flow_is_in_pixels_per_frame():
    gravel_HW = skimage.data.gravel()
    frames_THWC = np.stack([np.dstack([gravel_HW[100:228, 100 - 3 * t : 292 - 3 * t]] * 3) for t in range(5)])
    assert sample_quality(frames_THWC, frames_THWC[0]).mean_flow_px == pytest.approx(3, abs=0.3)


def test_flicker_and_flow_are_null_for_too_few_frames():
    one_frame = sample_quality(STILL_THWC[:1], PHOTOGRAPH_HWC)
    assert (one_frame.flicker, one_frame.mean_flow_px) == (None, None)
    assert sample_quality(STILL_THWC[:2], PHOTOGRAPH_HWC) == replace(one_frame, mean_flow_px=ABOUT_ZERO)


def test_a_first_frame_of_another_size_is_refused():
    with pytest.raises(
        SampleError, match=r"\[128, 192, 3\] do not match a first frame of shape \[64, 192, 3\]"
    ) as caught:
        sample_quality(STILL_THWC, PHOTOGRAPH_HWC[:64])
    assert caught.value.code == ErrorCode.VIDEO_INVALID
