"""CoTracker3, offline (Meta). Code and weights are CC-BY-NC 4.0: no commercial use. Used only where it is named.

Signature read at facebookresearch/co-tracker@82e02e8, `cotracker/predictor.py` and `hubconf.py`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sgi2v.tracking.learned import LearnedTracker, code_of
from sgi2v.tracking.tracker import Flags
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

REPOSITORY = "facebookresearch/co-tracker:82e02e8029753ad4ef13cf06be7f4fc5facdda4d"
"""The code, at one commit. `torch.hub` fetches it where the package `cotracker` is not installed."""
PIXEL_CENTRE = 0.5
"""In CoTracker the centre of the first pixel is 0."""


class CoTracker3(LearnedTracker):
    """CoTracker3 with one call for all queries, which attend to each other. It resizes the frames itself."""

    name = "cotracker3"
    licence = "CC-BY-NC 4.0 (code and weights): no commercial use"
    weights_url = "https://huggingface.co/facebook/cotracker3/resolve/main/scaled_offline.pth"

    def _load(self, weights: Path) -> Any:
        import torch

        if find_spec("cotracker") is not None:
            predictor = code_of(self.name, "cotracker.predictor", "install it again")
            return predictor.CoTrackerPredictor(checkpoint=str(weights), offline=True, v2=False, window_len=60)
        load: Any = torch.hub.load
        model = load(
            REPOSITORY, "cotracker3_offline", pretrained=False, trust_repo=True, skip_validation=True, verbose=False
        )
        model.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return model

    def _track(self, frames_THWC: Frames, queries_Q2: Floats) -> tuple[Floats, Flags]:
        import torch

        video_BTCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)[None].float()
        queries_Q3 = np.column_stack([np.zeros(len(queries_Q2)), queries_Q2 - PIXEL_CENTRE])  # t, x, y
        queries_BQ3 = torch.from_numpy(queries_Q3)[None].float()
        with torch.no_grad():
            tracks_BTQ2, visible_BTQ = self._model(video_BTCHW.to(self._device), queries=queries_BQ3.to(self._device))
        return tracks_BTQ2[0].double().cpu().numpy() + PIXEL_CENTRE, visible_BTQ[0].cpu().numpy().astype(bool)
