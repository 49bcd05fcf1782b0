"""Image files to arrays: any mode that Pillow reads becomes RGB, any damage becomes `BadImage`."""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image, UnidentifiedImageError

from taming.data.files.tar_members import is_member, opened, read_bytes

# What Pillow's decoders and numpy's reader raise on damaged or hostile files.
DAMAGE: tuple[type[Exception], ...] = (struct.error, zlib.error, Image.DecompressionBombError)
DAMAGE += (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError)

REDUCED = {1: 1, 2: 17, 4: 33, 8: 65}  # OpenCV's numbers for decoding at a part of the size


class BadImage(Exception):
    """A file cannot be used; the message continues "<path> ..." ("is empty (0 bytes)")."""


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
    if is_member(path):
        return f"cannot be read ({error})"
    if not os.path.exists(path):
        return "does not exist"
    if os.path.isdir(path):
        return "is a folder, not an image file"
    if os.path.getsize(path) == 0:
        return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is no image that Pillow can read"
    return f"cannot be read ({error})"


def image_mode_and_size(path: str) -> tuple[str, tuple[int, int]]:
    """Pillow's mode and (height, width) from the header alone; raises `BadImage`."""
    with damage_named(path), Image.open(opened(path)) as image:
        return image.mode, (image.height, image.width)


def read_rgb(path: str) -> np.ndarray:
    """Decode an image file as uint8 (H, W, 3); raises `BadImage`.

    Transparency is dropped and an EXIF orientation is ignored, as in the training of the published
    models. 16-bit grays keep their high byte, as Pillow does with 16-bit RGB.
    """
    with damage_named(path), Image.open(opened(path)) as image:
        return _to_rgb(image)


def read_rgb_fast(path: str, least_side: int = 0) -> np.ndarray:
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
            return _to_rgb(image) if pixels is None else pixels


def _decode_jpeg(content: bytes, image: Image.Image, least_side: int) -> np.ndarray | None:
    """uint8 (H, W, 3); None for what Pillow has to decode or refuse.

    That is other formats, damage, and files without their end, of which OpenCV would return the
    part that is there.
    """
    whole = content.rstrip(b"\0").endswith(b"\xff\xd9")
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB") or not whole:
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


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # "I" as well: some formats' 16 bits are widened to 32
        gray = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)  # (H, W)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it with 8 or 16 bits")
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
    return io.BytesIO(read_bytes(path)) if is_member(path) else open(path, "rb")


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
