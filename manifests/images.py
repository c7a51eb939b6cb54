"""First frames: from a manifest's `image` to pixels.

Images are uint8 [H, W, 3], RGB, upright. Every way in which an image can be unusable is a SampleError.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from manifests.access import Access
from manifests.urls import read_image_bytes, resolve_uri
from sgi2v.errors import ErrorCode, SampleError

MAX_PIXELS = 64_000_000
"""Largest image that is decoded, pixels."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
"""Pillow's formats that are opened. EPS is not among them: reading it starts another program."""


def load_image(image: str, manifest_uri: str, access: Access | None = None) -> NDArray[np.uint8]:
    """A row's image as uint8 [H, W, 3].

    Raises what `resolve_uri`, `read_image_bytes` and `decode_image` raise.
    """
    return decode_image(read_image_bytes(resolve_uri(image, manifest_uri, access), access=access))


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode to uint8 [H, W, 3], RGB, upright. Transparency becomes white; of an animation, the first frame is taken.

    Raises SampleError: image_too_large, from the header and before pixels are decoded; image_undecodable;
    out_of_memory.
    """
    with _opened(data, max_pixels) as image:
        image.load()
        _turn_upright(image)
        return np.array(_to_rgb(image))


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read and its size checked. Pillow's errors inside the block become SampleErrors."""
    if not data:
        raise SampleError(ErrorCode.IMAGE_UNDECODABLE, "the image file is empty: copy it again")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(f"{width} x {height} px", max_pixels)
            yield image
    except SampleError:
        raise
    except MemoryError as error:
        message = "not enough memory to decode the image: make it smaller"
        raise SampleError(ErrorCode.OUT_OF_MEMORY, message) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        message = "the file is not an image in a known format: use PNG, JPEG, WebP, TIFF, BMP or GIF"
        raise SampleError(ErrorCode.IMAGE_UNDECODABLE, message) from error
    except Exception as error:  # Pillow's decoders raise any kind of error on damaged data
        message = f"the image cannot be decoded ({error}): save it again as PNG or JPEG"
        raise SampleError(ErrorCode.IMAGE_UNDECODABLE, message) from error


def _turn_upright(image: Image.Image) -> None:
    """Turn a decoded image in place as its EXIF or XMP orientation says."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Pillow raises on damaged EXIF; the pixels may still be good
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    """The pixels in RGB, with white behind transparent ones."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its grey values do not fit 16 bits")
        # scaled by hand: Pillow's conversion clips at 255
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _too_large(size: str, max_pixels: int) -> SampleError:
    message = f"the image is larger than {max_pixels:,} pixels ({size}): make it smaller"
    return SampleError(ErrorCode.IMAGE_TOO_LARGE, message)
