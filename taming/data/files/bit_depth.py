"""Images of more than 8 bits per value: which of their values are black, and which are white."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from taming.data.files.tar_members import opened

ValueRange = tuple[float, float]
"""The values that become the pixels 0 and 255."""

FULL: ValueRange = (0, 65535)
DARK = 16  # pixels; a brightest one below it means values of 12 bits or less, or a black image
LIMITS_TAGS = ((280, 281), (340, 341))  # TIFF's MinSampleValue, MaxSampleValue; SMin..., SMax...
BITS_TAG = 258  # TIFF's BitsPerSample
MOST_BEFORE_PIXELS = 64  # chunks of a PNG that are looked at

# Pillow keeps one byte of two. These of its raw modes keep the other one ...
OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
ALL_BYTES = {"LA;16B": "RGBA"}  # ... and this one all four of gray and transparency


def raw_mode(image: Image.Image) -> str:
    """How the values of an image lie in its file, in Pillow's words; before it is decoded."""
    tiles = image.tile if isinstance(image, ImageFile) else ()
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has more than 8 bits per value."""
    return image.mode.startswith(("I", "F")) or ";16" in raw_mode(image)


def deep_values(image: Image.Image, path: str) -> np.ndarray:
    """All bits of an image for which `is_deep` holds: (H, W), or uint16 (H, W, 3); not turned."""
    mode = raw_mode(image)
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    if mode in ALL_BYTES:
        return _decoded_as(path, ALL_BYTES[mode])[..., :2].copy().view(">u2")[..., 0]
    high = np.asarray(image).astype(np.uint16)[..., :3]
    name, _, order = mode.partition(";")
    return (high << 8) + _decoded_as(path, f"{name};{OTHER_BYTE[order]}")[..., :3]


def _decoded_as(path: str, mode: str) -> np.ndarray:
    """The file, decoded as if its values lay in another way than they do."""
    with Image.open(opened(path)) as image:
        for number, (codec, box, offset, arguments) in enumerate(image.tile):
            changed = (mode, *arguments[1:]) if isinstance(arguments, tuple) else mode
            image.tile[number] = type(image.tile[number])(codec, box, offset, changed)
        return np.asarray(image)


def declared_range(image: Image.Image, path: str, values: np.ndarray) -> ValueRange | None:
    """The range that a TIFF's or PNG's header says; None if it says nothing, or all 16 bits.

    PNGs that follow their standard are scaled to 16 bits, whatever their sBIT says. It is the range
    of the others: their values stay below it, and differ in bits that scaling leaves empty.
    """
    if image.format == "TIFF":
        return _range_of_tiff(image)
    bits = _significant_bits(path) if image.format == "PNG" else 16
    if bits >= 16 or values.max(initial=0) >= 2**bits:
        return None
    scaled = (values % 2 ** (16 - bits) <= 1).all()  # 1: of programs that round
    return None if scaled else (0, 2**bits - 1)


def _range_of_tiff(image: Image.Image) -> ValueRange | None:
    assert isinstance(image, TiffImageFile)
    tags = image.tag_v2
    for low_tag, high_tag in LIMITS_TAGS:
        if high_tag in tags:
            low, high = _numbers(tags.get(low_tag, 0)), _numbers(tags[high_tag])
            return (min(low), max(high)) if max(high) > min(low) else None
    bits = max(_numbers(tags.get(BITS_TAG, 16)))
    return (0, 2**bits - 1) if bits < 16 else None


def _numbers(value: object) -> list[float]:
    values = value if isinstance(value, tuple) else (value,)
    return [float(str(number)) for number in values]


def _significant_bits(path: str) -> int:
    """The largest number in a PNG's sBIT chunk, transparency aside; 16 if there is none."""
    source = opened(path)
    with open(source, "rb") if isinstance(source, str) else source as file:
        file.seek(8)
        colors = 1
        for _ in range(MOST_BEFORE_PIXELS):
            head = file.read(8)
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name == b"IHDR":
                colors = 3 if file.read(length)[9] & 2 else 1
                file.seek(4, 1)  # its checksum
                continue
            if name == b"sBIT":
                return max(file.read(length)[:colors], default=16) or 16
            if name in (b"IDAT", b""):
                break
            file.seek(length + 4, 1)
    return 16


def to_bytes(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Values as uint8: `value_range` becomes 0 to 255, and what lies outside is cut.

    Whole numbers keep their high bits, as Pillow does with 16 bits.
    """
    low, high = value_range
    whole = values.dtype.kind in "iu" and float(low).is_integer() and float(high).is_integer()
    if whole and high - low >= 255:
        scaled = (values.astype(np.int64) - int(low)) * 256 // int(high - low + 1)
    else:
        scaled = np.rint((values.astype(np.float64) - low) / (high - low) * 255)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def deep_pixels(
    image: Image.Image,
    path: str,
    value_range: ValueRange | None,
    on_dark: Callable[[str], None],
    *,
    of_dataset: bool = False,
) -> np.ndarray:
    """An image for which `is_deep` holds as pixels uint8 (H, W, 3); not turned.

    Args:
        value_range: by default what the file declares, else all 16 bits.
        on_dark: gets a sentence "<path> is nearly black: ..." if 16 bits make it so.
        of_dataset: whether sentences name the option of datasets that says the range.

    Raises:
        ValueError: for numbers without an agreed range.
    """
    values = deep_values(image, path)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are no finite numbers")
    chosen = value_range or declared_range(image, path, values)
    pixels = to_bytes(values, chosen or _agreed(values, of_dataset))
    if chosen is None and pixels.max(initial=0) < DARK and values.max(initial=0) > 0:
        on_dark(_dark(path, int(values.max()), of_dataset))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _agreed(values: np.ndarray, of_dataset: bool) -> ValueRange:
    low, high = values.min(initial=0), values.max(initial=0)
    if values.dtype.kind == "f" or not FULL[0] <= low <= high <= FULL[1]:
        kind = "floating-point pixels" if values.dtype.kind == "f" else "pixels of 32 bits"
        advice = "save them with 8 or 16 bits"
        if of_dataset:
            advice = (
                "say with the dataset's value_range: [low, high] what is black and what white, or "
                "save 8 or 16 bits"
            )
        raise ValueError(
            f"{kind} have no agreed range, and these go from {low:g} to {high:g}: {advice}"
        )
    return FULL


def _dark(path: str, highest: int, of_dataset: bool) -> str:
    likely = 2 ** highest.bit_length() - 1
    advice = "scale them to 16 bits"
    if of_dataset:
        advice = f"set value_range: [0, {likely}] in the dataset's params"
    return (
        f"{path} is nearly black: its 16-bit values go up to {highest} of 65535; if fewer bits are "
        f"used on purpose, {advice}"
    )
