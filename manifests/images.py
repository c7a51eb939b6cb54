"""First frames: from a manifest's `image` to pixels.

Images are uint8 [H, W, 3], RGB, upright. Every way in which an image can be unusable is a SampleError.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from manifests.access import Access
from manifests.decode import decode_image
from manifests.urls import read_image_bytes, resolve_uri


def load_image(image: str, manifest_uri: str, access: Access | None = None) -> NDArray[np.uint8]:
    """A row's image as uint8 [H, W, 3].

    Raises what `resolve_uri`, `read_image_bytes` and `decode_image` raise.
    """
    return decode_image(read_image_bytes(resolve_uri(image, manifest_uri, access), access=access))
