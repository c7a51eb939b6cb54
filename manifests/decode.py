"""Decoding of first frames: from a file's bytes to pixels as a person sees them.

Pixels are uint8 [H, W, 3], sRGB, upright, on white. Every way in which an image can be unusable is a SampleError.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from manifests.colour import colour_profile, to_srgb
from manifests.containers import decoded_format, other_name
from manifests.layouts import MAX_PIXELS, Layout, LayoutError, read_layout
from sgi2v.errors import ErrorCode, SampleError

FORMATS = "PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF, JPEG 2000 or PPM"


@dataclass(frozen=True)
class Picture:
    """A decoded image."""

    pixels_HWC: NDArray[np.uint8]
    note: str | None
    """What is not certain about its colours; None for nothing."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels of `decode_picture`."""
    return decode_picture(data, max_pixels).pixels_HWC


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode to uint8 [H, W, 3], sRGB, upright. Transparency becomes white; of an animation, the first frame is taken.

    Raises SampleError: image_too_large, from the header and before pixels are decoded; image_undecodable, also for a
    layout that is not known to be decoded exactly; out_of_memory.
    """
    with _opened(data, max_pixels) as (image, layout):
        covered = image.tile[0].extents if image.format == "GIF" else None
        image.load()
        _turn_upright(image)
        opaque, alpha = _without_alpha(_in_8_bits(image, layout), covered)
        note: str | None = None
        profile: bytes | None = None
        try:
            profile = colour_profile(image, layout.profile, layout.coded_colour)
        except ValueError as error:
            note = f"the image's colour data is damaged and was not used ({error})"
        rgb, profile_note = to_srgb(opaque, profile, layout.bits)
        if alpha is not None:
            rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
        return Picture(np.array(rgb), note or profile_note)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[tuple[ImageFile.ImageFile, Layout]]:
    """The image with its header read, its layout and its size checked.

    Pillow's errors inside the block become SampleErrors.
    """
    if not data:
        raise _undecodable("the image file is empty: copy it again")
    kind = decoded_format(data)
    if kind is None:
        name = other_name(data)
        what = f"the file is {name}" if name else "the file is not an image in a known format"
        raise _undecodable(f"{what}: use {FORMATS}")
    try:
        layout = read_layout(kind, data)
        with Image.open(io.BytesIO(layout.data), formats=[kind]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(f"{width} x {height} px", max_pixels)
            yield image, layout
    except SampleError:
        raise
    except LayoutError as error:
        message = f"the image is {error}, {error.reason}: save it as an 8-bit PNG or JPEG"
        raise _undecodable(message) from error
    except MemoryError as error:
        raise _no_memory("decode") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(str(error), max_pixels) from error
    except (struct.error, IndexError) as error:
        raise _undecodable("the image's header cannot be decoded: it is cut off or damaged, copy it again") from error
    except Exception as error:  # Pillow's decoders raise any kind of error on damaged data
        message = f"the image cannot be decoded as {kind} ({error}): save it again as PNG or JPEG"
        raise _undecodable(message) from error


def _turn_upright(image: Image.Image) -> None:
    """Turn a decoded image in place as its EXIF or XMP orientation says.

    Pillow gives the turn of every container in this form, that of an AVIF's `irot` and `imir` too.
    """
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Pillow raises on damaged EXIF; the pixels may still be good
        return


def _in_8_bits(image: Image.Image, layout: Layout) -> Image.Image:
    """The image in 8 bits a sample. A PNG's transparent grey stays so."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        # scaled by hand: Pillow's conversion clips at 255
        deep, white = np.asarray(image), (1 << layout.bits) - 1
        in_8_bits = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
        shallow = Image.fromarray((in_8_bits[::-1] if layout.white_is_zero else in_8_bits)[deep])
        if isinstance(transparent, int):
            shallow.putalpha(Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8)))
        return shallow
    if image.format == "PNG" and image.mode in {"1", "L"} and isinstance(transparent, int):
        # the file gives the stored value, and Pillow compares it with the scaled one
        image.info["transparency"] = transparent % (1 << layout.bits) * 255 // ((1 << layout.bits) - 1)
    return image


def _without_alpha(
    image: Image.Image, covered: tuple[int, int, int, int] | None
) -> tuple[Image.Image, Image.Image | None]:
    """The image as L, RGB or CMYK, and its alpha; None if it is opaque.

    covered: the part that the first frame of a GIF covers; all else is transparent.
    """
    if covered not in {None, (0, 0, *image.size)}:
        frame = image.convert("RGBA").crop(covered)
        image = Image.new("RGBA", image.size)
        image.paste(frame, covered)
    if image.mode == "CMYK":
        return image, None
    if image.mode == "La":
        image = image.convert("LA")
    is_grey = image.mode in {"1", "L", "LA"}
    if not image.has_transparency_data:
        return image.convert("L" if is_grey else "RGB"), None
    alpha = image.convert("RGBA").getchannel("A")
    if is_grey:
        return (image.getchannel("L") if image.mode == "LA" else image.convert("L")), alpha
    return image.convert("RGBA").convert("RGB"), alpha


def _undecodable(message: str) -> SampleError:
    return SampleError(ErrorCode.IMAGE_UNDECODABLE, message)


def _no_memory(action: str) -> SampleError:
    return SampleError(ErrorCode.OUT_OF_MEMORY, f"not enough memory to {action} the image: make it smaller")


def _too_large(size: str, max_pixels: int) -> SampleError:
    message = f"the image is larger than {max_pixels:,} pixels ({size}): make it smaller"
    return SampleError(ErrorCode.IMAGE_TOO_LARGE, message)
