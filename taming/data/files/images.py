"""Image files to arrays: any mode that Pillow reads becomes RGB, any damage becomes `BadImage`."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image, UnidentifiedImageError

from taming.data.files.bit_depth import ValueRange, deep_pixels, is_deep
from taming.data.files.tar_members import is_member, opened, read_bytes
from taming.user_files import regular, special_kind

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", "Corrupt EXIF data")  # pixels do not depend on them

# What Pillow's decoders and numpy's reader raise on damaged or hostile files.
DAMAGE: tuple[type[Exception], ...] = (struct.error, zlib.error, Image.DecompressionBombError)
DAMAGE += (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError)
DAMAGE += (MemoryError,)  # for a nonsensical length of what follows

JPEGS = ("JPEG", "MPO")  # Pillow's formats; cameras write the second
REDUCED = {1: 1, 2: 17, 4: 33, 8: 65}  # OpenCV's numbers for decoding at a part of the size


# EXIF's orientation -> quarter turns to the left, of images that are MIRRORED after mirroring, such
# that they stand upright. 6 is a camera turned to the left: the image is turned to the right.
ORIENTATION_TAG = 0x0112
# Where Pillow finds it; in most images there is none of these.
SOURCES_OF_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
TURNS = {2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}
MIRRORED = {2, 4, 5, 7}


class BadImage(Exception):
    """A file cannot be used; the message continues "<path> ..." ("is empty (0 bytes)")."""


@dataclass(frozen=True)
class Reading:
    """How image files become pixels."""

    upright: bool = True  # turned as the camera was held (EXIF)
    value_range: ValueRange | None = None  # of images with more than 8 bits; None: as they say
    on_dark: Callable[[str], None] = log.warning  # gets a sentence if that makes one nearly black
    of_dataset: bool = False  # whether there is an option `value_range` to name in sentences


PLAIN = Reading()


@contextlib.contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Turn the many kinds of errors that damaged files cause into a `BadImage`."""
    try:
        yield
    except DAMAGE as error:
        raise BadImage(damage_of(path, error)) from error


def _most_pixels() -> int:
    """The number of pixels above which Pillow refuses to decode."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 2**62)


def damage_of(path: str, error: Exception) -> str:
    """What is wrong with a file on which `DAMAGE` was raised: continues "<path> ..."."""
    if isinstance(error, Image.DecompressionBombError):
        return f"claims to have more than {_most_pixels():,} pixels, which would fill the memory"
    if isinstance(error, MemoryError):
        return "is damaged: it claims to hold more than the memory does"
    if is_member(path):
        unknown = isinstance(error, UnidentifiedImageError)
        return f"cannot be read ({'it is no image that Pillow knows' if unknown else error})"
    if not os.path.exists(path):
        return "does not exist"
    if os.path.isdir(path):
        return "is a folder, not an image file"
    if kind := special_kind(path):
        return f"is {kind}, not an image file"
    if os.path.getsize(path) == 0:
        return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is no image that Pillow can read"
    return f"cannot be read ({error})"


def image_mode_and_size(path: str, upright: bool = True) -> tuple[str, tuple[int, int]]:
    """Pillow's mode and (height, width) from the header alone; raises `BadImage`."""
    with damage_named(path), Image.open(opened(path)) as image:
        sideways = upright and orientation_of(image) >= 5
        return image.mode, (image.size if sideways else image.size[::-1])


def has_deep_values(path: str) -> bool:
    """Whether an image file has more than 8 bits per value; raises `BadImage`."""
    with damage_named(path), Image.open(opened(path)) as image:
        return is_deep(image)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, in which an image's pixels still are; 1 is upright.

    Pillow turns TIFFs itself. Damaged EXIF data say nothing about the pixels.
    """
    if image.format == "TIFF" or not SOURCES_OF_EXIF & image.info.keys():
        return 1
    try:
        # Not PngImageFile's method, which decodes the image if its header has no EXIF data.
        orientation = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)
    except DAMAGE:
        return 1
    return orientation if orientation in TURNS else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) of an image of some orientation, upright."""
    if orientation not in TURNS:
        return pixels
    pixels = np.fliplr(pixels) if orientation in MIRRORED else pixels
    return np.ascontiguousarray(np.rot90(pixels, TURNS[orientation]))


def read_stored(path: str, upright: bool = True) -> np.ndarray:
    """The numbers of a file as they are, (H, W) or (H, W, C); raises `BadImage`."""
    with damage_named(path), Image.open(opened(path)) as image:
        return _stored(image, upright)


def _stored(image: Image.Image, upright: bool) -> np.ndarray:
    values = np.asarray(image)
    return turned(values, orientation_of(image)) if upright else values


def read_labels(path: str, upright: bool = True) -> np.ndarray:
    """The label numbers of a file as they are; raises `BadImage`, also for a JPEG, which has other
    numbers at the edges than those that were saved."""
    with damage_named(path), Image.open(opened(path)) as image:
        if image.format in JPEGS:
            raise BadImage("is a JPEG, whose compression changes labels (a PNG keeps them)")
        return _stored(image, upright)


def read_rgb(path: str, reading: Reading = PLAIN) -> np.ndarray:
    """Decode an image file as uint8 (H, W, 3); raises `BadImage`.

    Transparency is dropped. Of values of 16 bits the high byte is kept, unless the file or
    `reading` says that they have a smaller range.
    """
    with damage_named(path), Image.open(opened(path)) as image:
        return _finished(_to_rgb(image, path, reading), image, reading)


def read_with_orientation(path: str) -> tuple[np.ndarray, int]:
    """The pixels of `read_rgb` as they are in the file, and their EXIF orientation, 1 to 8."""
    with damage_named(path), Image.open(opened(path)) as image:
        return _to_rgb(image, path, PLAIN), orientation_of(image)


def read_rgb_fast(path: str, least_side: int = 0, reading: Reading = PLAIN) -> np.ndarray:
    """`read_rgb` with OpenCV's JPEG decoder: the same pixels in about 60 % of the time.

    Args:
        least_side: in pixels. An image whose smallest side is at least twice, 4 or 8 times as long
            is decoded at 1/2, 1/4 or 1/8 of its size (as Pillow's `draft` does), which skips most
            of the work: of the DCT's coefficients only the low ones are used. 0: never.
    """
    with damage_named(path):
        content = read_bytes(path)
        with Image.open(io.BytesIO(content)) as image:
            pixels = _decode_jpeg(content, image, least_side)
            if pixels is None:
                pixels = _to_rgb(image, path, reading)
            return _finished(pixels, image, reading)


def _finished(pixels: np.ndarray, image: Image.Image, reading: Reading) -> np.ndarray:
    return turned(pixels, orientation_of(image)) if reading.upright else pixels


def _decode_jpeg(content: bytes, image: Image.Image, least_side: int) -> np.ndarray | None:
    """uint8 (H, W, 3); None for what Pillow has to decode or refuse.

    That is other formats, damage, and files without their end, of which OpenCV would return the
    part that is there.
    """
    whole = content.rstrip(b"\0").endswith(b"\xff\xd9")
    if image.format not in JPEGS or image.mode not in ("L", "RGB") or not whole:
        return None
    import cv2

    smallest = min(image.size)
    factor = next((f for f in (8, 4, 2) if least_side and smallest // f >= least_side), 1)
    flags = REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _to_rgb(image: Image.Image, path: str, reading: Reading) -> np.ndarray:
    if is_deep(image):
        range_ = reading.value_range
        return deep_pixels(image, path, range_, reading.on_dark, of_dataset=reading.of_dataset)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def npy_size(path: str) -> tuple[int, int]:
    """(height, width) of a `.npy` of shape (1, 3, H, W) from its header; raises `BadImage`."""
    with damage_named(path), _opened_npy(path) as file:
        (_, _, height, width), _ = _npy_header(file)
        return height, width


def read_npy(path: str) -> np.ndarray:
    """Read a `.npy` of shape (1, 3, H, W) uint8 as uint8 (H, W, 3); raises `BadImage`."""
    with damage_named(path), _opened_npy(path) as file:
        shape, order = _npy_header(file)
        content = np.frombuffer(file.read(), np.uint8, math.prod(shape))
        return np.ascontiguousarray(content.reshape(shape, order=order)[0].transpose(1, 2, 0))


def _opened_npy(path: str) -> IO[bytes]:
    return io.BytesIO(read_bytes(path)) if is_member(path) else open(regular(path), "rb")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"]]:
    """Shape and order of the array in an open file.

    `np.load` would allocate memory for whatever size a file claims.
    """
    first = npy_format.read_magic(file) == (1, 0)
    read_header = npy_format.read_array_header_1_0 if first else npy_format.read_array_header_2_0
    shape, transposed, dtype = read_header(file)
    if len(shape) != 4 or shape[:2] != (1, 3) or dtype != np.uint8:
        raise ValueError(f"{dtype} {shape} instead of uint8 (1, 3, H, W)")
    if shape[2] * shape[3] > _most_pixels():
        raise Image.DecompressionBombError
    start = file.tell()
    if file.seek(0, os.SEEK_END) - start < math.prod(shape):
        raise ValueError("it is cut short")
    file.seek(start)
    return shape, "F" if transposed else "C"
