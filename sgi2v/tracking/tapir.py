"""TAPIR with the weights of BootsTAPIR (Google DeepMind, Apache-2.0).

Signature read at google-deepmind/tapnet@c2cbab8, `tapnet/torch/tapir_model.py` and `colabs/torch_tapir_demo.ipynb`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.tracking.learned import LearnedTracker, code_of, resized
from sgi2v.tracking.tracker import Flags
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

SIDE_PX = 256
"""Height and width of the frames that the model takes; their aspect is not kept, as in its authors' demo."""
TAPNET = "pip install 'tapnet[torch] @ git+https://github.com/google-deepmind/tapnet'"
"""How the code of TAPIR and TAPNext is installed."""


class Tapir(LearnedTracker):
    """TAPIR, offline, at 256 x 256. Its coordinates begin at the frame's corner, as ours do."""

    name = "tapir"
    licence = "Apache-2.0 (code and weights)"
    weights_url = "https://storage.googleapis.com/dm-tapnet/bootstap/bootstapir_checkpoint_v2.pt"

    def _load(self, weights: Path) -> Any:
        import torch

        model = code_of(self.name, "tapnet.torch.tapir_model", TAPNET).TAPIR(pyramid_level=1)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return model

    def _track(self, frames_THWC: Frames, queries_Q2: Floats) -> tuple[Floats, Flags]:
        import torch

        to_model_2 = SIDE_PX / np.array(frames_THWC.shape[2:0:-1], np.float64)  # xy
        video_BTHWC = as_video(frames_THWC).to(self._device)
        with torch.no_grad():
            output = self._model(video_BTHWC, as_tyx(queries_Q2 * to_model_2).to(self._device))
        tracks_QT2, hidden_QT, far_QT = (output[key][0] for key in ("tracks", "occlusion", "expected_dist"))
        visible_QT = (1 - torch.sigmoid(hidden_QT)) * (1 - torch.sigmoid(far_QT)) > 0.5
        tracks_TQ2 = tracks_QT2.double().cpu().numpy().swapaxes(0, 1) / to_model_2
        return tracks_TQ2, visible_QT.cpu().numpy().T


def as_video(frames_THWC: Frames) -> Any:
    """The frames as the models of tapnet take them: a tensor [1, T, 256, 256, 3], RGB in [-1, 1]."""
    import torch

    return torch.from_numpy(resized(frames_THWC, SIDE_PX, SIDE_PX))[None].float() / 255 * 2 - 1


def as_tyx(queries_Q2: Floats) -> Any:
    """Queries of frame 0 as the models of tapnet take them: a tensor [1, Q, 3] of (t, y, x)."""
    import torch

    return torch.from_numpy(np.column_stack([np.zeros(len(queries_Q2)), queries_Q2[:, ::-1]]))[None].float()
