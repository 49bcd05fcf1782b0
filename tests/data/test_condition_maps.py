from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taming.data.condition_maps import Depth, ImageMap, Labels, MapKind, one_hot, read_palette
from taming.data.files.images import ORIENTATION_TAG, BadImage, Reading
from taming.errors import UserError
from tests.kit.images import write_image


def save(path: Path, values: np.ndarray, mode: str | None = None) -> str:
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return str(path)


def labels(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def test_one_hot() -> None:
    hot = one_hot(labels([0, 2], [1, 1]), 3)
    assert hot.dtype == np.float32
    np.testing.assert_array_equal(hot[0], [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(hot.argmax(-1), [[0, 2], [1, 1]])


def test_labels_as_stored_and_shifted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", labels([0, 4], [255, 1]))
    shifted = Labels(6, shift=True)
    np.testing.assert_array_equal(shifted.read(path), [[1, 5], [0, 2]])
    assert shifted.finish(shifted.read(path)).shape == (2, 2, 6)
    np.testing.assert_array_equal(Labels(256).read(path), [[0, 4], [255, 1]])


def test_labels_of_palette_images_and_16_bits(tmp_path: Path) -> None:
    image = Image.fromarray(labels([0, 2], [1, 1]))
    image.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(Labels(3).read(str(tmp_path / "p.png")), [[0, 2], [1, 1]])
    path = save(tmp_path / "b.png", labels([0, 255], [255, 0]), "1")
    np.testing.assert_array_equal(Labels(2).read(path), [[0, 1], [1, 0]])
    path = save(tmp_path / "w.png", np.array([[256, 0]], dtype=np.uint16))
    np.testing.assert_array_equal(Labels(257).read(path), [[256, 0]])


def test_labels_are_not_read_of_jpegs(tmp_path: Path) -> None:
    """Even where all numbers are labels: between two of them a JPEG has others."""
    Image.fromarray(np.repeat(labels([3, 15]), 16, 0)).save(tmp_path / "a.jpg", quality=90)
    with pytest.raises(BadImage, match="is a JPEG, whose compression changes labels"):
        Labels(256).read(str(tmp_path / "a.jpg"))
    assert Depth().read(str(tmp_path / "a.jpg")).shape == (16, 2)


def test_labels_out_of_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", labels([0, 182]))
    with pytest.raises(BadImage, match="label 182, but with n_labels 182 labels go from 0 to 181"):
        Labels(182).read(path)
    with pytest.raises(BadImage, match=r"label 182, .* go from 0 to 181 \(and 255, unlabeled\)"):
        Labels(183, shift=True).read(path)
    Image.fromarray(np.array([[-1, 9]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="label -1, but with n_labels 4 labels go from 0 to 3"):
        Labels(4).read(str(tmp_path / "a.tif"))
    with pytest.raises(UserError, match="label 3, but n_labels is 3; give it another fill_mask"):
        Labels(3).finish(labels([0, 3]))
    assert not Labels(3).smooth and Depth().smooth  # no labels between those that are there


def test_colors_are_no_labels_without_a_palette(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    for look in (Labels(3).header_size, Labels(3).read):
        with pytest.raises(BadImage, match="mode RGB.*give a palette file"):
            look(path)


def test_palette(tmp_path: Path) -> None:
    file = tmp_path / "palette.txt"
    file.write_text(
        "# sky and sea\n0 0 255 sky\n\n1, 0, 0\n0 128 0 grass\n255 255 255 snow\n", "utf-8-sig"
    )
    palette = read_palette(file)
    rgb = np.array([[[255, 255, 255], [1, 0, 0], [0, 128, 0], [0, 0, 255]]], dtype=np.uint8)
    path = save(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(Labels(4, palette=palette).read(path), [[3, 1, 2, 0]])
    rgb[0, 1] = (1, 2, 3)
    with pytest.raises(
        BadImage, match=r"color 1 2 3 at row 0, column 1, which .*palette.txt lacks"
    ):
        Labels(4, palette=palette).read(save(tmp_path / "b.png", rgb))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0 0\n1 2\n", "line 2 of the palette .* is no color"),
        ("0 0 256\n", "line 1 .* is no color"),
        ("# sky\n0 0 0 a\n1 1 1\n0 0 0 b", "line 4 .* repeats label 0's color"),
        ("# nothing\n", "has no colors"),
    ],
)
def test_bad_palettes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "palette.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_palette(tmp_path / "palette.txt")
    with pytest.raises(UserError, match="absent.txt cannot be read"):
        read_palette(tmp_path / "absent.txt")


def test_depth_of_float_bytes(tmp_path: Path) -> None:
    depth = np.array([[1000.0, 3000.5], [2000.25, 5000.0]], dtype="<f4")
    path = save(tmp_path / "a.png", depth.view(np.uint8).reshape(2, 2, 4))
    expected = (depth - 1000) / 4000 * 2 - 1
    np.testing.assert_allclose(Depth().read(path), expected, atol=1e-6)
    assert Depth().read(path).dtype == np.float32


def test_depth_of_plain_values(tmp_path: Path) -> None:
    values = np.array([[0, 500], [1000, 250]])
    expected = [[-1, 0], [1, -0.5]]
    wide = save(tmp_path / "w.png", values.astype(np.uint16))
    real = save(tmp_path / "f.tiff", values.astype(np.float32))
    for path in (wide, real):
        np.testing.assert_allclose(Depth().read(path), expected, atol=1e-6)
    flat = save(tmp_path / "flat.png", labels([7, 7]))
    np.testing.assert_array_equal(Depth().read(flat), [[0, 0]])


def test_depth_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="mode RGB"):
        Depth().header_size(write_image(tmp_path / "a.png"))
    for value in (np.nan, np.inf):
        broken = np.array([[value, 1.0]], dtype="<f4").view(np.uint8).reshape(1, 2, 4)
        with pytest.raises(BadImage, match="no finite numbers"):
            Depth().read(save(tmp_path / "b.png", broken))


@pytest.mark.parametrize("kind", [Labels(7), Depth(), ImageMap()])
def test_maps_are_turned_as_their_images_are(tmp_path: Path, kind: MapKind) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6  # to be turned to the right
    stored = labels([1, 2, 3], [4, 5, 6])
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.rot90(stored, -1)).save(tmp_path / "upright.png")
    Image.fromarray(stored).save(tmp_path / "plain.png")
    for upright, same in ((True, "upright.png"), (False, "plain.png")):
        read = kind.read(str(tmp_path / "a.png"), Reading(upright))
        np.testing.assert_array_equal(read, kind.read(str(tmp_path / same)))
        assert kind.header_size(str(tmp_path / "a.png"), Reading(upright)) == read.shape[:2]


def test_image_map(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    kind = ImageMap()
    assert kind.header_size(path) == (24, 32)
    assert kind.finish(kind.read(path)).dtype == np.float32
    assert kind.smooth and not ImageMap(False).smooth
