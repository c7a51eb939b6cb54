"""TAPNext with the weights of BootsTAPNext (Google DeepMind, Apache-2.0).

Signature read at google-deepmind/tapnet@c2cbab8, `tapnet/tapnext/tapnext_torch.py`, `tapnext_torch_utils.py` and
`colabs/torch_tapnext_demo.ipynb`. TAPNext++ has a model class and weights of its own, which this adapter does not load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.tracking.learned import LearnedTracker, code_of
from sgi2v.tracking.tapir import SIDE_PX, TAPNET, as_tyx, as_video
from sgi2v.tracking.tracker import Flags
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

ADVICE = f"{TAPNET}; pip install 'recurrentgemma[torch] @ git+https://github.com/google-deepmind/recurrentgemma'"


class TapNext(LearnedTracker):
    """TAPNext at 256 x 256, one frame after the other, as in its authors' demo.

    It takes and gives (y, x) from the frame's corner. Its positions never leave the frame.
    """

    name = "tapnext"
    licence = "Apache-2.0 (code and weights)"
    weights_url = "https://storage.googleapis.com/dm-tapnet/tapnext/bootstapnext_ckpt.npz"

    def _load(self, weights: Path) -> Any:
        model = code_of(self.name, "tapnet.tapnext.tapnext_torch", ADVICE).TAPNext(image_size=(SIDE_PX, SIDE_PX))
        restore = code_of(self.name, "tapnet.tapnext.tapnext_torch_utils", ADVICE).restore_model_from_jax_checkpoint
        return restore(model, str(weights))

    def _track(self, frames_THWC: Frames, queries_Q2: Floats) -> tuple[Floats, Flags]:
        import torch

        to_model_2 = SIDE_PX / np.array(frames_THWC.shape[2:0:-1], np.float64)  # xy
        video_BTHWC, queries_BQ3 = as_video(frames_THWC), as_tyx(queries_Q2 * to_model_2).to(self._device)
        points, visible, state = [], [], None
        with torch.no_grad():
            for t in range(len(frames_THWC)):
                frame = video_BTHWC[:, t : t + 1].to(self._device)
                given = {"query_points": queries_BQ3} if state is None else {"state": state}
                yx_B1Q2, _, logits_B1Q1, state = self._model(video=frame, **given)
                points.append(yx_B1Q2[0, 0].double().cpu().numpy()[:, ::-1] / to_model_2)
                visible.append((logits_B1Q1[0, 0, :, 0] > 0).cpu().numpy())
        return np.stack(points), np.stack(visible)
