"""AllTracker (Harley and others). Its code is MIT; its weights state no licence of their own.

Signature read at aharley/alltracker@c1ed462, `nets/alltracker.py`, `demo.py` and `test_dense_on_sparse.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.tracking.learned import LearnedTracker, code_of, resized
from sgi2v.tracking.tracker import Flags
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

LONG_SIDE_PX = 1024
"""Longer side of the frames that the model takes, as in its authors' demo. Both sides are multiples of MULTIPLE_PX."""
MULTIPLE_PX = 8
WINDOW = 16
"""Frames that the published weights see at once."""
ITERATIONS = 4
"""Refinements of the flow, as in its authors' demo."""
MIN_VISIBLE = 0.6
"""Least visibility times confidence of a visible point. Its authors leave the threshold open; this is CoTracker's."""
PIXEL_CENTRE = 0.5
"""In AllTracker the centre of the first pixel is 0."""


class AllTracker(LearnedTracker):
    """AllTracker: the flow of every pixel from frame 0 to each frame, read at the queries by linear interpolation."""

    name = "alltracker"
    licence = "MIT (code); none is stated with the weights"
    weights_url = "https://huggingface.co/aharley/alltracker/resolve/main/alltracker.pth"
    num_gpus = 1.0

    def _load(self, weights: Path) -> Any:
        import torch

        advice = "it is no package: put a checkout of github.com/aharley/alltracker on PYTHONPATH"
        model = code_of(self.name, "nets.alltracker", advice).Net(WINDOW)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"], strict=True)
        return model

    def _track(self, frames_THWC: Frames, queries_Q2: Floats) -> tuple[Floats, Flags]:
        import torch

        own_2 = np.array(frames_THWC.shape[2:0:-1], np.float64)  # width, height
        size_2 = np.maximum((own_2 * LONG_SIDE_PX / own_2.max()).astype(int) // MULTIPLE_PX * MULTIPLE_PX, MULTIPLE_PX)
        video_TCHW = torch.from_numpy(resized(frames_THWC, int(size_2[1]), int(size_2[0]))).permute(0, 3, 1, 2)
        if len(video_TCHW) == 2:  # of two frames the model gives the flow without the axis of time
            video_TCHW = torch.cat([video_TCHW, video_TCHW[1:]])
        with torch.no_grad():
            flow_BTCHW, seen_BTCHW, *_ = self._model.forward_sliding(
                video_TCHW[None].float().to(self._device), iters=ITERATIONS, sw=None, is_training=False
            )
        at_Q2 = queries_Q2 * size_2 / own_2 - PIXEL_CENTRE
        num_frames = len(frames_THWC)
        flow_TQ2 = _read(flow_BTCHW[0, :num_frames].double().cpu().numpy(), at_Q2)
        seen_TQ2 = _read(seen_BTCHW[0, :num_frames].double().cpu().numpy(), at_Q2)
        return queries_Q2 + flow_TQ2 * own_2 / size_2, seen_TQ2.prod(axis=-1) > MIN_VISIBLE


def _read(maps_TCHW: Floats, at_Q2: Floats) -> Floats:
    """The values [T, Q, C] of maps at points, xy with pixel centres at integers, by linear interpolation."""
    height, width = maps_TCHW.shape[2:]
    at_Q2 = np.clip(at_Q2, 0, [width - 1, height - 1])
    low_Q2 = np.minimum(np.floor(at_Q2).astype(int), [max(width - 2, 0), max(height - 2, 0)])
    x_Q, y_Q = (at_Q2 - low_Q2).T
    x0, y0 = low_Q2.T
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    top = maps_TCHW[:, :, y0, x0] * (1 - x_Q) + maps_TCHW[:, :, y0, x1] * x_Q
    bottom = maps_TCHW[:, :, y1, x0] * (1 - x_Q) + maps_TCHW[:, :, y1, x1] * x_Q
    return np.asarray((top * (1 - y_Q) + bottom * y_Q).transpose(0, 2, 1))
