"""Images of more than 8 bits: what is black and what is white in them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from taming.data.base import ImagePaths
from taming.data.files.bit_depth import to_bytes
from taming.data.files.images import BadImage, Reading, read_rgb
from taming.errors import UserError

STEPS = np.linspace(0, 4095, 24).round().astype(np.uint16).reshape(4, 6)  # 12 bits
COLORS = np.stack([STEPS, STEPS[::-1], STEPS[:, ::-1]], axis=2)
TRANSPARENT = np.full((4, 6, 1), 65535, np.uint16)


def png(path: Path, values: np.ndarray, *chunks: tuple[bytes, bytes]) -> str:
    """Write a PNG of 16 bits, (H, W) or (H, W, 2 to 4), with further chunks before the pixels."""
    channels = values.shape[2] if values.ndim == 3 else 1
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return str(path)


def tiff(path: Path, values: np.ndarray, tags: dict[int, Any] | None = None) -> str:
    """Write a TIFF; colors by OpenCV, which writes no tags."""
    if values.ndim == 3:
        cv2.imwrite(str(path), values[..., ::-1])
    else:
        info = ImageFileDirectory_v2()
        for tag, value in (tags or {}).items():
            info[tag] = value
        Image.fromarray(values).save(path, tiffinfo=info)
    return str(path)


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """The high byte of values of so many bits, (H, W, 3) uint8."""
    pixels = (values >> (bits - 8)).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["gray", "gray, transparent", "colors", "colors, transparent"])
def test_pngs_keep_their_high_byte_or_have_the_range_that_they_declare(
    tmp_path: Path, kind: str
) -> None:
    def layered(values: np.ndarray) -> np.ndarray:
        values = values if "colors" in kind else values[..., :1]
        values = np.concatenate([values, TRANSPARENT], 2) if "transparent" in kind else values
        return values[..., 0] if values.shape[2] == 1 else values

    def expected(values: np.ndarray, bits: int) -> np.ndarray:
        return scaled(values if "colors" in kind else values[..., 0], bits)

    wide = COLORS * 16 + 7
    np.testing.assert_array_equal(
        read_rgb(png(tmp_path / "a.png", layered(wide))), expected(wide, 16)
    )
    declared = (b"sBIT", bytes([12] * (3 if "colors" in kind else 1) + [16] * ("trans" in kind)))
    np.testing.assert_array_equal(
        read_rgb(png(tmp_path / "b.png", layered(COLORS), declared)), expected(COLORS, 12)
    )
    # As the standard wants it: scaled, so that sBIT says nothing about the range.
    standard = (COLORS // 20 * 16).astype(np.uint16)
    np.testing.assert_array_equal(
        read_rgb(png(tmp_path / "c.png", layered(standard), declared)), expected(standard, 16)
    )
    rounded = standard + (np.arange(6, dtype=np.uint16) % 2)[:, None]
    above = np.maximum(COLORS, 4096 * (COLORS == 4095)).astype(np.uint16)  # more than 12 bits
    for other in (rounded, above):
        np.testing.assert_array_equal(
            read_rgb(png(tmp_path / "d.png", layered(other), declared)), expected(other, 16)
        )


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_tiffs_have_the_range_that_their_tags_declare(tmp_path: Path, order: str) -> None:
    for tags in ({281: 4095}, {280: 0, 281: 4095}, {340: 0, 341: 4095}):
        path = tiff(tmp_path / "a.tif", STEPS, tags)
        np.testing.assert_array_equal(read_rgb(path), scaled(STEPS, 12))
    path = tiff(tmp_path / "b.tif", STEPS.astype(order), {281: 65535})
    np.testing.assert_array_equal(read_rgb(path), scaled(STEPS, 16))
    path = tiff(tmp_path / "c.tif", STEPS, {280: 2000, 281: 2255})
    expected = np.clip(STEPS.astype(int) - 2000, 0, 255)
    np.testing.assert_array_equal(read_rgb(path)[..., 0], expected)


def test_floats_and_wide_integers_need_a_range(tmp_path: Path) -> None:
    shares = (STEPS / 4095).astype(np.float32)
    path = tiff(tmp_path / "a.tif", shares)
    with pytest.raises(BadImage, match=r"floating-point pixels .* go from 0 to 1: .*value_range"):
        read_rgb(path, Reading(of_dataset=True))
    # Scripts that take an image have no such option.
    with pytest.raises(BadImage, match=r"go from 0 to 1: save them with 8 or 16 bits"):
        read_rgb(path)
    found = read_rgb(path, Reading(value_range=(0, 1)))
    np.testing.assert_array_equal(found[..., 0], np.rint(shares.astype(float) * 255))
    np.testing.assert_array_equal(read_rgb(tiff(tmp_path / "b.tif", shares, {341: 1.0})), found)
    wide = tiff(tmp_path / "c.tif", STEPS.astype(np.int32) * 1000)
    with pytest.raises(BadImage, match="pixels of 32 bits have no agreed range"):
        read_rgb(wide)
    assert read_rgb(wide, Reading(value_range=(0, 4095000))).max() == 255
    shares[0, 0] = np.nan
    with pytest.raises(BadImage, match="no finite numbers"):
        read_rgb(tiff(tmp_path / "d.tif", shares), Reading(value_range=(0, 1)))


def test_numbers_outside_a_range_are_cut() -> None:
    np.testing.assert_array_equal(
        to_bytes(np.array([-1, 0, 5, 10, 99]), (0, 10)), [0, 0, 128, 255, 255]
    )


@pytest.mark.parametrize("values", [STEPS, COLORS], ids=["gray", "colors"])
@pytest.mark.parametrize("write", [png, tiff])
def test_a_dark_image_is_named_once_and_value_range_mends_it(
    tmp_path: Path, write: Any, values: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [write(tmp_path / f"{n}.{'png' if write is png else 'tif'}", values) for n in range(3)]
    dataset = ImagePaths(paths)
    assert len([dataset[n] for n in range(3)]) == 3
    [warning] = [record.message for record in caplog.records]
    assert f"{paths[0]} is nearly black" in warning
    assert "up to 4095 of 65535" in warning and "value_range: [0, 4095]" in warning
    caplog.clear()
    images = [item["image"] for item in ImagePaths(paths, value_range=[0, 4095])]
    np.testing.assert_allclose(images[0], scaled(values, 12) / 127.5 - 1, atol=1e-6)
    assert not caplog.records


def test_black_images_and_dark_ones_of_8_bits_are_no_reason_for_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(tmp_path / "a.png")
    black = png(tmp_path / "b.png", np.zeros((4, 6), np.uint16))
    gray = png(tmp_path / "c.png", np.full((4, 6), 4096, np.uint16))
    assert len(list(ImagePaths([str(tmp_path / "a.png"), black, gray]))) == 3
    assert not caplog.records


@pytest.mark.parametrize("wrong", [[0], [0, 1, 2], [5, 5], [9, 2], ["a", "b"], [0, float("nan")]])
def test_wrong_ranges(tmp_path: Path, wrong: list[Any]) -> None:
    path = png(tmp_path / "a.png", STEPS)
    with pytest.raises(UserError, match=r"value_range .* give the values of black and of white"):
        ImagePaths([path], value_range=wrong)
