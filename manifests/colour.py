"""Colours of a decoded image: from its own colour space to sRGB, by LittleCMS.

xy are CIE chromaticities. D50 is the white of every ICC profile.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from manifests.layouts import CodedColour, LayoutError

Floats = NDArray[np.float64]
XY = tuple[float, float]

_AS_SRGB = "colours were taken as sRGB"
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_D65: XY = (0.3127, 0.3290)
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

_MOST_STEP = 4
"""Levels of 255 between neighbouring 8-bit values from which a 16-bit image would lose its dark tones."""


class Gamut(NamedTuple):
    """The white and the primaries of a colour space."""

    white: XY
    red: XY
    green: XY
    blue: XY


_SRGB = Gamut(_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_ADOBE_RGB = Gamut(_D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_CODED_GAMUTS = {
    **dict.fromkeys((1, 2), _SRGB),
    4: Gamut((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: Gamut(_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: Gamut(_D65, (0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    9: Gamut(_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Gamut((0.314, 0.351), (0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    12: Gamut(_D65, (0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
}
"""By the numbers of ITU-T H.273. 2 means unspecified."""
_CODED_CURVES: dict[int, tuple[float, ...]] = {4: (2.2,), 5: (2.8,), 8: (1.0,), 13: _SRGB_CURVE}
# Still pictures with the curves of video (1, 6, 14, 15) are shown with sRGB's by every viewer; 2 means unspecified.
_CODED_CURVES |= dict.fromkeys((1, 2, 6, 14, 15), _SRGB_CURVE)


def colour_profile(image: Image.Image, profile: bytes | None, coded: CodedColour | None) -> bytes | None:
    """The ICC profile that an image's colours are in; None for sRGB. Raises ValueError for one that makes no sense.

    profile: one that Pillow does not report. coded: wins in a PNG; in an AVIF, an ICC profile wins. Then come a PNG's
    `sRGB` chunk and its `gAMA` and `cHRM`, and a camera's mark of Adobe RGB in a JPEG.
    """
    embedded = image.info.get("icc_profile") or profile
    if coded is not None and not (embedded and image.format == "AVIF"):
        return _coded_profile(coded, image.format)
    if embedded:
        return bytes(embedded)
    if "icc_profile" in image.info:
        raise ValueError("its profile cannot be unpacked")
    if image.format == "PNG":
        is_srgb = "srgb" in image.info
        return None if is_srgb else _png_profile(image.info.get("gamma"), image.info.get("chromaticity"))
    return rgb_profile(_ADOBE_RGB, (2.2,)) if image.format == "JPEG" and _is_marked_adobe_rgb(image) else None


def _is_marked_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB (interoperability index R03): cameras write no profile then."""
    try:
        return image.getexif().get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex) == "R03"
    except MemoryError:
        raise
    except Exception:  # Pillow raises any kind of error on damaged EXIF
        return False


def _coded_profile(coded: CodedColour, kind: str | None) -> bytes | None:
    if coded.primaries in {1, 2} and coded.transfer in {1, 2, 6, 13, 14, 15}:
        return None
    gamut, curve = _CODED_GAMUTS.get(coded.primaries), _CODED_CURVES.get(coded.transfer)
    if gamut is None or curve is None:
        raise LayoutError(f"a {kind} in colours of number {coded.primaries}, {coded.transfer} (ITU-T H.273)")
    return rgb_profile(gamut, curve)


def _png_profile(gamma: float | None, chromaticity: Sequence[float] | None) -> bytes | None:
    if gamma is None and chromaticity is None:
        return None
    if gamma is not None and gamma <= 0:
        raise ValueError("its gamma is 0")
    gamut = _SRGB
    if chromaticity is not None:
        pairs = [(float(chromaticity[n]), float(chromaticity[n + 1])) for n in range(0, 8, 2)]
        gamut = Gamut(*pairs)
    has_srgb_gamut = bool(np.abs(np.subtract(gamut, _SRGB)).max() < 0.002)
    # writers of sRGB say 1/2.2, the nearest that this chunk can say
    if gamma is None or (has_srgb_gamut and abs(gamma * 2.2 - 1) < 0.02):
        return None if has_srgb_gamut else rgb_profile(gamut, _SRGB_CURVE)
    return rgb_profile(_SRGB if has_srgb_gamut else gamut, (1 / gamma,))


def rgb_profile(gamut: Gamut, curve: tuple[float, ...]) -> bytes:
    """An ICC display profile. curve: from stored values to light: a power, or the five numbers of sRGB's form.

    Raises ValueError for primaries that span no colours.
    """
    whites = _xyz(gamut.white)
    columns = np.array([_xyz(xy) for xy in gamut[1:]]).T
    if not np.isfinite(columns).all() or abs(np.linalg.det(columns)) < 1e-6:
        raise ValueError("its primaries span no colours")
    to_xyz = columns * np.linalg.solve(columns, whites)
    cone_gains = np.diag((_BRADFORD @ _D50_XYZ) / (_BRADFORD @ whites))
    to_d50 = np.linalg.inv(_BRADFORD) @ cone_gains @ _BRADFORD @ to_xyz
    kind = 0 if len(curve) == 1 else 3
    curve_tag = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, curve))
    text = b"colours of an image\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz_tag(_D50_XYZ),
        **{name: _xyz_tag(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), to_d50.T, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve_tag),
    }
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I4xI4s4s4s", start + len(content), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _xyz_tag(_D50_XYZ)[8:] + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + content


def _xyz(xy: XY) -> Floats:
    x, y = xy
    if not y > 0:
        raise ValueError("its primaries span no colours")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _xyz_tag(values: Floats) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values.tolist()))


def _fixed(value: float) -> bytes:
    """A number with 16 bits behind the point, as ICC profiles write it."""
    if not abs(value) < 32768:
        raise ValueError("its numbers are too large")
    return struct.pack(">i", round(value * 65536))


def to_srgb(image: Image.Image, profile: bytes | None, bits: int) -> tuple[Image.Image, str | None]:
    """An L, RGB or CMYK image in RGB, its colours in sRGB, and a note where that is not certain.

    profile: an ICC profile; None for sRGB. Colours of a profile that is sRGB in effect stay as they are, to the bit.
    bits: per sample in the file. Raises LayoutError for a deep image that 8 bits cannot hold.
    """
    if profile is None:
        note = "the image is CMYK and has no colour profile: its colours are approximate"
        return image.convert("RGB"), note if image.mode == "CMYK" else None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if space != {"L": "GRAY"}.get(image.mode, image.mode):
            return image.convert("RGB"), f"the colour profile is for {space}, not for {image.mode}, and was not used"
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # LittleCMS's shortcut for grey curves is off by several levels in dark tones
            flags if image.mode != "L" else flags | ImageCms.Flags.NOOPTIMIZE,
        )
        if image.mode == "CMYK":
            return transform.apply(image), None
        probe = _probe(image.mode)
        plain = np.asarray(probe.convert("RGB")).astype(int)
        converted = np.asarray(transform.apply(probe))
        if np.abs(converted - plain).max() <= 1:
            return image.convert("RGB"), None
        greys = converted[0, :256]
        if bits > 8 and np.diff(greys.astype(int), axis=0).max() > _MOST_STEP:
            raise LayoutError(f"a {bits}-bit image in linear light")
        return transform.apply(image) if image.mode == "RGB" else Image.fromarray(greys[np.asarray(image)]), None
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        return image.convert("RGB"), f"the colour profile is damaged and was not used ({error}): {_AS_SRGB}"


def _probe(mode: str) -> Image.Image:
    """All greys, and for RGB a lattice of colours as well, in one row."""
    greys = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(greys[None])
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    lattice_P3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    return Image.fromarray(np.concatenate([np.repeat(greys[:, None], 3, axis=1), lattice_P3])[None])
