"""Images as a person sees them: every layout decodes to its pixels or is refused in words."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from manifests.decode import decode_image
from sgi2v.errors import ErrorCode, SampleError
from tests.manifests.layout_cases import CASES, Case
from tests.manifests.pictures import encoded


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_size_is_refused_as_such_before_all_else() -> None:
    for header in (b"P2 12000 12000 255\n", b"P6 12000 12000 1000\n"):
        with pytest.raises(SampleError) as caught:
            decode_image(header + b"1 " * 100)
        assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
    picture = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    for progressive in (False, True):
        data = bytearray(encoded(picture, "JPEG", progressive=progressive))
        at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 12_000, 12_000)
        with pytest.raises(SampleError) as caught:
            decode_image(bytes(data))
        assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
