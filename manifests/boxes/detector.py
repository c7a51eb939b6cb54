"""An object detection model of transformers. Boxes are xyxy, pixels of the source image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.boxes.annotations import Annotation
from sgi2v.errors import ConfigError


class Detector:
    """A model that is loaded when it is first used."""

    def __init__(self, model: str, revision: str | None, device: str) -> None:
        self.source, self.revision, self.device = model, revision, device
        self._loaded: tuple[Any, Any] | None = None

    def load(self) -> tuple[Any, Any]:
        """The image processor and the model. Raises ConfigError where they cannot be loaded or need another package."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        try:
            processor = AutoImageProcessor.from_pretrained(self.source, revision=self.revision)
            # safetensors only: weights in pickles can run code
            model = AutoModelForObjectDetection.from_pretrained(
                self.source, revision=self.revision, use_safetensors=True
            )
            return processor, model.to(torch.device(self.device)).eval()
        except ImportError as error:
            raise ConfigError(f"boxes.model {self.source} needs a package that is missing: {error}") from error
        except (OSError, ValueError, RuntimeError) as error:
            advice = "give the id or folder of an object detection model of transformers that has safetensors weights"
            raise ConfigError(f"boxes.model {self.source} cannot be loaded ({error}): {advice}") from error

    def detect(self, image_HWC: NDArray[np.uint8], min_score: float) -> list[Annotation]:
        """The boxes of one picture with this score or more."""
        import torch

        processor, model = self.load()
        height, width, _ = image_HWC.shape
        with torch.inference_mode():
            inputs = processor(images=image_HWC, input_data_format="channels_last", return_tensors="pt").to(self.device)
            outputs = model(**inputs)
        found = processor.post_process_object_detection(outputs, threshold=min_score, target_sizes=[(height, width)])[0]
        names = model.config.id2label
        return [
            Annotation(f"object {n}", box, None, str(names.get(label, label)), score)
            for n, (box, label, score) in enumerate(
                zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
            )
        ]
