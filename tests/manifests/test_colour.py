"""Colours of images: whatever space a file is in, its pixels come out in sRGB."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from manifests.decode import decode_image, decode_picture
from sgi2v.errors import ErrorCode, SampleError
from tests.manifests.pictures import bmp, bmp_rows, encoded, png

Floats = NDArray[np.float64]

COLOURS = np.array(
    [
        *((40, 160, 60), (200, 40, 30), (80, 150, 90), (40, 70, 190), (224, 172, 145), (240, 190, 90)),
        *((128, 128, 128), (255, 255, 255), (0, 0, 0), (20, 20, 20), (250, 250, 5), (90, 10, 120)),
    ]
)
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
D65, D50 = np.array([0.95046, 1.0, 1.08906]), np.array([0.9642, 1.0, 0.8249])
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LIGHT = np.linspace(0, 1, 4096)


def to_light(values: Any) -> Floats:
    values = np.asarray(values, float)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_light(light: Floats) -> Floats:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def to_xyz(primaries: Any) -> Floats:
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, D65)


def light_in(primaries: Any) -> Floats:
    """The light of COLOURS as shares of other primaries; colours outside their gamut are cut off."""
    return np.clip(to_light(COLOURS / 255) @ np.linalg.solve(to_xyz(primaries), to_xyz(SRGB)).T, 0, 1)


def profile_of(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    """A version 2 ICC profile."""
    text = b"test\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": xyz_tag(D50)} | tags
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, value in tags.items():
        table += key + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, kind, space, connection)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp").ljust(44, b"\0") + xyz_tag(D50)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def xyz_tag(values: Floats) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def curve_tag(light: Floats) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">I", len(light)) + np.round(light * 65535).astype(">u2").tobytes()


def to_d50(primaries: Any) -> Floats:
    """From light to XYZ under the white of profiles."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gains = np.diag((bradford @ D50) / (bradford @ D65))
    matrix: Floats = np.linalg.inv(bradford) @ gains @ bradford @ to_xyz(primaries)
    return matrix


def rgb_profile(primaries: Any, light: Floats) -> bytes:
    matrix = to_d50(primaries)
    tags = {key: xyz_tag(matrix[:, n]) for n, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile_of(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve_tag(light)))


def grey_profile(light: Floats) -> bytes:
    return profile_of(b"GRAY", {b"kTRC": curve_tag(light)})


P3_PROFILE = rgb_profile(P3, to_light(LIGHT))
IN_P3 = np.round(255 * from_light(light_in(P3))).astype(np.uint8)
ADOBE_PROFILE = rgb_profile(ADOBE, LIGHT**2.2)
ROUNDED = 2
"""Levels of 255 that rounding to 8 bits in a wider space may cost."""
IN_ADOBE = np.round(255 * light_in(ADOBE) ** (1 / 2.2)).astype(np.uint8)


def patches(colours: NDArray[Any]) -> Image.Image:
    """Squares of 32 px in one row: lossy coding leaves them flat."""
    return Image.fromarray(colours.astype(np.uint8)[None].repeat(32, 0).repeat(32, 1))


def colours_of(data: bytes) -> NDArray[Any]:
    """The colour in the middle of each square."""
    return decode_image(data)[16, 16::32].astype(int)


def furthest(data: bytes, expected: NDArray[Any] = COLOURS) -> int:
    return int(np.abs(colours_of(data) - expected).max())


FILES: dict[str, tuple[str, dict[str, Any], int]] = {
    "PNG": ("PNG", {}, ROUNDED),
    "TIFF": ("TIFF", {}, ROUNDED),
    "JPEG": ("JPEG", {"quality": 97, "subsampling": 0}, 5),
    "WebP": ("WEBP", {"lossless": True}, ROUNDED),
    "AVIF": ("AVIF", {"quality": 97, "subsampling": "4:4:4"}, 5),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB"])
def test_an_embedded_profile_is_applied(name: str, space: str) -> None:
    kind, options, tolerance = FILES[name]
    stored, profile = (IN_P3, P3_PROFILE) if space == "Display P3" else (IN_ADOBE, ADOBE_PROFILE)
    assert furthest(encoded(patches(stored), kind, icc_profile=profile, **options)) <= tolerance
    assert furthest(encoded(patches(stored), kind, **options)) > 8


def test_a_cameras_mark_of_adobe_rgb_is_followed() -> None:
    for index, is_adobe in (("R03", True), ("R98", False)):
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[0xA001] = 0xFFFF
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: index}
        data = encoded(patches(IN_ADOBE), "JPEG", quality=97, subsampling=0, exif=exif)
        assert (furthest(data) <= 5) is is_adobe, index


def test_the_profile_in_a_bmp_is_applied() -> None:
    pixels = np.asarray(patches(IN_P3)).astype(int)
    rows = bmp_rows(pixels[..., ::-1], 8)
    more = bytes(84 - 16)
    data = bytearray(bmp(rows, pixels.shape[1], pixels.shape[0], 24, header=124, more=more))
    data[70:74] = b"DEBM"
    data[126:134] = struct.pack("<II", len(data) - 14, len(P3_PROFILE))
    assert furthest(bytes(data) + P3_PROFILE) <= ROUNDED


def test_the_profile_in_a_jpeg_2000_is_applied() -> None:
    data = encoded(patches(IN_P3), "JPEG2000")
    colour_box = struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 16)
    with_profile = struct.pack(">I4sBBB", 11 + len(P3_PROFILE), b"colr", 2, 0, 0) + P3_PROFILE
    at = data.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", data, at)
    grown = struct.pack(">I", size + len(with_profile) - len(colour_box))
    assert colour_box in data
    data = data[:at] + grown + data[at + 4 :].replace(colour_box, with_profile, 1)
    assert furthest(data) <= ROUNDED


def test_colours_with_an_srgb_profile_stay_to_the_bit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for profile in (SRGB_PROFILE, rgb_profile(SRGB, to_light(LIGHT)), rgb_profile(SRGB, to_light(LIGHT[::4]))):
        picture = decode_picture(encoded(Image.fromarray(noise), "PNG", icc_profile=profile))
        assert np.array_equal(picture.pixels_HWC, noise)
        assert picture.note is None
    grey = encoded(Image.fromarray(noise[..., 0]), "PNG", icc_profile=grey_profile(to_light(LIGHT)))
    assert np.array_equal(decode_image(grey)[..., 1], noise[..., 0])


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
def test_a_grey_profile_is_applied(gamma: float) -> None:
    ramp = np.arange(0, 256, 5)
    data = encoded(patches(ramp), "PNG", icc_profile=grey_profile(LIGHT**gamma))
    expected = np.repeat(np.round(255 * from_light((ramp / 255) ** gamma))[:, None], 3, axis=1)
    assert furthest(data, expected) <= 1


def test_a_grey_image_with_a_profile_of_rgb_is_converted() -> None:
    ramp = np.arange(0, 256, 5)
    data = encoded(patches(ramp), "PNG", icc_profile=rgb_profile(P3, LIGHT**1.8))
    expected = np.repeat(np.round(255 * from_light((ramp / 255) ** 1.8))[:, None], 3, axis=1)
    assert furthest(data, expected) <= 1


def lab(colour: Any) -> Floats:
    """CIELAB of an sRGB colour, under the white of profiles."""
    shares = to_d50(SRGB) @ to_light(np.asarray(colour) / 255) / D50
    x, y, z = np.where(shares > 216 / 24389, np.cbrt(shares), (24389 / 27 * shares + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def cmyk_profile(colours: dict[tuple[int, ...], Any]) -> bytes:
    """Inks at 0 or 255, and the sRGB colour that they print; all other mixtures are black."""
    grid = np.zeros((2, 2, 2, 2, 3))
    grid[...] = lab((0, 0, 0))
    for inks, colour in colours.items():
        grid[tuple(ink // 255 for ink in inks)] = lab(colour)
    stored = np.round(grid * [2.55, 1, 1] + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    line = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + b"".join(struct.pack(">i", n) for n in (65536, 0, 0, 0) * 2)
    table += struct.pack(">i", 65536) + line * 4 + stored.tobytes() + line * 3
    return profile_of(b"CMYK", {b"A2B0": table}, kind=b"prtr", connection=b"Lab ")


INKS = {
    (0, 0, 0, 0): (255, 255, 255),
    (255, 0, 0, 0): (70, 150, 200),
    (0, 255, 0, 0): (210, 40, 120),
    (0, 0, 255, 0): (245, 220, 40),
    (0, 0, 0, 255): (0, 0, 0),
}


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_a_cmyk_profile_is_applied(kind: str) -> None:
    inks = np.array(list(INKS), np.uint8)[None].repeat(32, 0).repeat(32, 1)
    options = {"quality": 97} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(inks, "CMYK"), kind, icc_profile=cmyk_profile(INKS), **options)
    assert furthest(data, np.array(list(INKS.values()))) <= 5
    assert decode_picture(data).note is None
    without = decode_picture(encoded(Image.fromarray(inks, "CMYK"), kind, **options))
    assert without.note == "the image is CMYK and has no colour profile: its colours are approximate"


def with_chunks(pixels: NDArray[Any], **chunks: bytes) -> bytes:
    return png(pixels, 8, 2, {name.encode(): data for name, data in chunks.items()})


def chromaticities(primaries: Any) -> bytes:
    pairs = ((0.3127, 0.3290), *primaries)
    return struct.pack(">8I", *(round(value * 100_000) for pair in pairs for value in pair))


def gamma_chunk(gamma: float) -> bytes:
    return struct.pack(">I", round(100_000 / gamma))


@pytest.mark.parametrize("gamma", [1.0, 1.4, 1.8, 3.0])
def test_the_gamma_of_a_png_is_applied(gamma: float) -> None:
    stored = np.round(255 * to_light(COLOURS / 255) ** (1 / gamma)).astype(int)
    expected = np.round(255 * from_light((stored / 255) ** gamma))
    pixels = np.asarray(patches(stored))
    assert furthest(with_chunks(pixels, gAMA=gamma_chunk(gamma)), expected) <= 1
    plain = np.asarray(patches(COLOURS))
    for chunks in ({"sRGB": b"\0"}, {"iCCP": b"p\0\0" + zlib.compress(SRGB_PROFILE)}):
        assert furthest(with_chunks(plain, gAMA=gamma_chunk(gamma), **chunks)) == 0


def test_the_gamma_and_primaries_that_mean_srgb_change_nothing() -> None:
    plain = np.asarray(patches(COLOURS))
    for chunks in (
        {"gAMA": struct.pack(">I", 45455)},
        {"gAMA": struct.pack(">I", 45455), "cHRM": chromaticities(SRGB)},
        {"cHRM": chromaticities(SRGB)},
        {"cICP": bytes([1, 13, 0, 1])},
        {"cICP": bytes([2, 2, 0, 1])},
    ):
        assert furthest(with_chunks(plain, **chunks)) == 0


def test_the_primaries_of_a_png_are_applied() -> None:
    adobe = np.asarray(patches(IN_ADOBE))
    assert furthest(with_chunks(adobe, gAMA=gamma_chunk(2.2), cHRM=chromaticities(ADOBE))) <= ROUNDED
    p3 = np.asarray(patches(IN_P3))
    assert furthest(with_chunks(p3, cHRM=chromaticities(P3))) <= ROUNDED
    assert furthest(with_chunks(p3, cICP=bytes([12, 13, 0, 1]), gAMA=gamma_chunk(1.0))) <= ROUNDED


def test_the_coded_colours_of_an_avif_are_applied() -> None:
    data = encoded(patches(IN_P3), "AVIF", quality=97, subsampling="4:4:4")
    at = data.index(b"nclx") + 4
    assert furthest(data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]) <= 4
    for transfer, words in ((16, "PQ"), (18, "HLG")):
        with pytest.raises(SampleError, match=f"high dynamic range AVIF .{words}") as caught:
            decode_image(data[:at] + struct.pack(">HH", 9, transfer) + data[at + 4 :])
        assert caught.value.code is ErrorCode.IMAGE_UNDECODABLE


def test_alpha_is_kept_while_colours_are_converted() -> None:
    alpha = np.linspace(0, 255, len(COLOURS)).round().astype(np.uint8)
    stored = np.concatenate([IN_P3, alpha[:, None]], axis=1)
    share = alpha[:, None] / 255
    expected = np.round(COLOURS * share + 255 * (1 - share))
    assert furthest(encoded(patches(stored), "PNG", icc_profile=P3_PROFILE), expected) <= 2
    palette = patches(IN_P3).quantize(len(COLOURS))
    assert furthest(encoded(palette, "PNG", icc_profile=P3_PROFILE)) <= ROUNDED


DAMAGED = {
    "cut off": (P3_PROFILE[:200], "damaged"),
    "no profile": (b"nonsense" * 40, "damaged"),
    "no curves": (P3_PROFILE.replace(b"TRC", b"XXX"), "damaged"),
    "of CMYK": (cmyk_profile(INKS), "the colour profile is for CMYK, not for RGB"),
    "of grey": (grey_profile(LIGHT), "the colour profile is for GRAY, not for RGB"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_an_image_with_a_damaged_profile_loads_with_a_note(name: str) -> None:
    profile, words = DAMAGED[name]
    picture = decode_picture(encoded(patches(COLOURS), "PNG", icc_profile=profile))
    assert picture.note is not None
    assert words in picture.note
    assert np.array_equal(picture.pixels_HWC[16, 16::32], COLOURS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_profile_that_cannot_be_unpacked_is_noted(kind: str) -> None:
    if kind == "PNG":
        data = with_chunks(np.asarray(patches(COLOURS)), iCCP=b"p\0\0 is not deflated")
    else:
        data = encoded(patches(COLOURS), kind, quality=97, subsampling=0, icc_profile=P3_PROFILE)
        data = data.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2")  # the second part is missing
    picture = decode_picture(data)
    assert picture.note is not None
    assert "its profile cannot be unpacked" in picture.note
    assert np.abs(picture.pixels_HWC[16, 16::32].astype(int) - COLOURS).max() <= 5


@pytest.mark.parametrize(
    "chunks",
    [{"gAMA": bytes(4)}, {"gAMA": gamma_chunk(1.8), "cHRM": bytes(32)}, {"cHRM": chromaticities([(0.3, 0.3)] * 3)}],
    ids=["gamma 0", "no primaries", "equal primaries"],
)
def test_a_png_with_damaged_colour_data_loads_with_a_note(chunks: dict[str, bytes]) -> None:
    picture = decode_picture(with_chunks(np.asarray(patches(COLOURS)), **chunks))
    assert picture.note is not None
    assert "damaged" in picture.note
    assert np.array_equal(picture.pixels_HWC[16, 16::32], COLOURS)


def test_deep_images_in_linear_light_are_refused_and_shallow_ones_converted() -> None:
    light = np.asarray(patches(np.round(255 * to_light(COLOURS / 255))))
    assert furthest(png(light, 8, 2, {b"gAMA": gamma_chunk(1.0)})) <= 7, "8 bits hold no more of dark tones"
    with pytest.raises(SampleError, match="16-bit image in linear light") as caught:
        decode_image(png(light.astype(int) * 257, 16, 2, {b"gAMA": gamma_chunk(1.0)}))
    assert caught.value.code is ErrorCode.IMAGE_UNDECODABLE
