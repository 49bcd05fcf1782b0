from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from taming.data.files.images import (
    BadImage,
    Reading,
    image_mode_and_size,
    npy_size,
    read_npy,
    read_rgb,
    read_rgb_fast,
    read_with_orientation,
)
from tests.kit.images import ramps, truncate, write_image, write_turned


def test_rgb_png_is_read_as_it_is(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 24, 32)
    assert image_mode_and_size(path)[1] == (24, 32)
    np.testing.assert_array_equal(read_rgb(path), ramps(24, 32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    ending = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    Image.fromarray(ramps(24, 32)).convert(mode).save(tmp_path / f"a.{ending}")
    image = read_rgb(str(tmp_path / f"a.{ending}"))
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8
    expected = np.asarray(Image.fromarray(ramps(24, 32)).convert(mode).convert("RGB"))
    assert np.abs(image.astype(int) - expected).mean() < 6  # JPEG loses a little


def test_transparency_is_dropped_not_composed(tmp_path: Path) -> None:
    colors = ramps(8, 8)
    alpha = np.zeros((8, 8, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([colors, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(str(tmp_path / "a.png")), colors)


def test_palette_with_transparency_is_read_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    image = Image.fromarray(ramps(8, 8)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    assert read_rgb(str(tmp_path / "a.png")).shape == (8, 8, 3)
    assert not recwarn.list


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_gray_keeps_its_high_byte(tmp_path: Path, ending: str) -> None:
    gray = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    Image.fromarray(gray).save(tmp_path / f"a.{ending}")
    image = read_rgb(str(tmp_path / f"a.{ending}"))
    np.testing.assert_array_equal(image, np.stack([gray >> 8] * 3, axis=2))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    path = write_turned(tmp_path / f"a.{ending}", orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image.convert("RGB")))
        expected = np.asarray(image.convert("RGB")) if ending == "tif" else expected
    for read in (read_rgb, read_rgb_fast):
        np.testing.assert_array_equal(read(path), expected)
    assert image_mode_and_size(path)[1] == expected.shape[:2]
    assert expected.shape[:2] == ((32, 24) if orientation > 4 else (24, 32))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'


def test_orientations_of_xmp_count_but_in_tiffs(tmp_path: Path) -> None:
    """Pillow turns those itself."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    Image.fromarray(ramps(24, 32)).save(tmp_path / "a.png", pnginfo=info)
    exif = Image.Exif()
    exif[0x0112], exif[700] = 6, XMP
    Image.fromarray(ramps(24, 32)).save(tmp_path / "a.tif", exif=exif)
    for name in ("a.png", "a.tif"):
        assert image_mode_and_size(str(tmp_path / name))[1] == (32, 24)
        expected = np.rot90(ramps(24, 32), -1)
        np.testing.assert_array_equal(read_rgb(str(tmp_path / name)), expected)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_images_can_be_read_as_they_are_in_the_file(tmp_path: Path, ending: str) -> None:
    turned, plain = (write_turned(tmp_path / f"{n}.{ending}", n) for n in (6, 1))
    as_stored = Reading(upright=False)
    for found in (read_rgb(turned, as_stored), read_rgb_fast(turned, reading=as_stored)):
        np.testing.assert_array_equal(found, read_rgb(plain))
    assert image_mode_and_size(turned, upright=False)[1] == (24, 32)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientations_that_do_not_exist_change_nothing(tmp_path: Path, orientation: int) -> None:
    path = write_turned(tmp_path / "a.jpg", orientation)
    np.testing.assert_array_equal(read_rgb(path), read_rgb(write_turned(tmp_path / "b.jpg", 1)))
    assert image_mode_and_size(path)[1] == (24, 32) and read_with_orientation(path)[1] == 1


def test_damaged_exif_data_are_no_reason_to_refuse_a_photograph(
    tmp_path: Path,
) -> None:
    image = Image.fromarray(ramps(24, 32))
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert read_rgb(str(tmp_path / "a.jpg")).shape == (24, 32, 3)
    assert read_rgb_fast(str(tmp_path / "a.jpg")).shape == (24, 32, 3)
    assert image_mode_and_size(str(tmp_path / "a.jpg"))[1] == (24, 32)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_truncated_file_has_a_header_but_cannot_be_read(tmp_path: Path, ending: str) -> None:
    path = write_image(tmp_path / f"a.{ending}", 100, 100)
    truncate(path, 0.7)
    assert image_mode_and_size(path)[1] == (100, 100)
    with pytest.raises(BadImage, match="cannot be read"):
        read_rgb(path)


def test_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    write_image(tmp_path / "bomb.png", 40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, reason in {
        "absent.png": "does not exist",
        "empty.png": "is empty",
        "text.png": "no image that Pillow can read",
        "float.tif": r"floating-point pixels .*: save them with 8 or 16 bits",
        "bomb.png": "claims to have more than 200 pixels",
        ".": "is a folder",
    }.items():
        with pytest.raises(BadImage, match=reason):
            read_rgb(str(tmp_path / name))


def test_npy(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npy")
    np.save(path, ramps(6, 8).transpose(2, 0, 1)[None])
    assert npy_size(path) == (6, 8)
    np.testing.assert_array_equal(read_npy(path), ramps(6, 8))
    np.save(path, np.asfortranarray(ramps(6, 8).transpose(2, 0, 1)[None]))
    np.testing.assert_array_equal(read_npy(path), ramps(6, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 3, 4, 4), np.float32),
        np.array([{}], dtype=object),  # a pickle, which is never opened
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, wrong: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", wrong, allow_pickle=True)
    with pytest.raises(BadImage, match="cannot be read"):
        npy_size(str(tmp_path / "a.npy"))


def test_archives_and_truncated_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ramps(4, 4))
    np.save(tmp_path / "b.npy", np.zeros((1, 3, 40, 40), np.uint8))
    truncate(tmp_path / "b.npy")
    for name in ("a.npz", "b.npy"):
        for read in (npy_size, read_npy):
            with pytest.raises(BadImage, match="cannot be read"):
                read(str(tmp_path / name))


def test_fast_decoding_gives_the_same_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    for mode in ("RGB", "L", "CMYK"):
        image = Image.fromarray(ramps(40, 60)).convert(mode)
        image.save(tmp_path / f"{mode}.jpg", exif=exif)
        fast = read_rgb_fast(str(tmp_path / f"{mode}.jpg"))
        np.testing.assert_array_equal(fast, read_rgb(str(tmp_path / f"{mode}.jpg")))
    png = write_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb_fast(png, 4), read_rgb(png))


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"icc_profile": bytes(100_000), "comment": b"\xff\xc0"},
        {"subsampling": 0},
        {"keep_rgb": True},
    ],
)
def test_jpegs_of_all_kinds_are_decoded_alike(tmp_path: Path, options: dict[str, Any]) -> None:
    path = str(tmp_path / "a.jpg")
    Image.fromarray(ramps(40, 60)).save(path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taming.data.files.images._to_rgb", None)  # Pillow decodes nothing
        found = read_rgb_fast(path)
    np.testing.assert_array_equal(found, read_rgb(path))


@pytest.mark.parametrize(
    "content", [b"\xff\xd8", b"\xff\xd8" + bytes(50), b"\xff\xd8\xff\xe0\x00\x00\xff", b"\xff" * 99]
)
def test_what_only_begins_like_a_jpeg(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImage):
        read_rgb_fast(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("least_side", "shape"), [(201, (400, 500)), (200, (200, 250)), (40, (50, 63))]
)
def test_reduced_decoding_stays_large_enough(
    tmp_path: Path, least_side: int, shape: tuple[int, int]
) -> None:
    path = write_image(tmp_path / "a.jpg", 400, 500)
    reduced = read_rgb_fast(path, least_side)
    assert reduced.shape == (*shape, 3)
    resized = Image.fromarray(read_rgb(path)).resize(shape[::-1], Image.Resampling.BOX)
    assert np.abs(reduced.astype(int) - np.asarray(resized)).max() <= 4
    Image.open(path).convert("L").save(tmp_path / "gray.jpg")
    assert read_rgb_fast(str(tmp_path / "gray.jpg"), least_side).shape == (*shape, 3)


@pytest.mark.parametrize("size", [(0, 32), (24, 0), (1, 60_000)])
def test_fast_decoding_of_wrong_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    content = bytearray(Path(write_image(tmp_path / "a.jpg")).read_bytes())
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", *size)
    (tmp_path / "a.jpg").write_bytes(content)
    with contextlib.suppress(BadImage):  # some are decoded as what they say
        assert read_rgb_fast(str(tmp_path / "a.jpg")).shape == (*size, 3)


def test_fast_decoding_refuses_what_is_cut_short(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", 100, 100)
    truncate(path, 0.7)
    with pytest.raises(BadImage, match="cannot be read"):
        read_rgb_fast(path)
