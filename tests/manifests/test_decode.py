"""Images as a person sees them: every layout decodes to its pixels or is refused in words."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.decode import decode_image
from sgi2v.errors import ErrorCode, SampleError
from tests.manifests.layout_cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_layout_decodes_to_its_pixels_or_is_refused_in_words(case: Case) -> None:
    data, expected = case.make()
    if isinstance(expected, str):
        with pytest.raises(SampleError) as caught:
            decode_image(data)
        assert caught.value.code is ErrorCode.IMAGE_UNDECODABLE
        assert expected in caught.value.message
        return
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= case.tolerance
