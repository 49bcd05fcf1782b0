"""Images at the size of a protocol: Pillow's own pixels, from files and from datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from taming.errors import UserError
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import LoadedSource
from taming.evaluation.sources.resize import (
    AS_IT_IS,
    CENTER,
    FILTERS,
    NONE,
    PILLOW,
    Resizing,
    center_crop,
)
from taming.pictures import to_uint8_array
from tests.kit.images import noise, ramps, write_image
from tests.kit.real import FOLDER, needs_real_data

PAPER = Resizing(PILLOW, CENTER, (256, 256))
CONFIG = """
data:
  target: taming.training.data_module.DataModuleFromConfig
  params:
    batch_size: 1
    validation:
      target: taming.data.custom.CustomTest
      params: {{size: 64, test_images_list_file: {0}, random_crop: true, random_flip: true}}
"""


def by_pillow(path: str | Path, side: int = 256) -> np.ndarray:
    """The largest centered square of a file, resized, by nothing but Pillow."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.size == (side, side):
        return np.asarray(image)
    least = min(image.size)
    left, top = (image.width - least) // 2, (image.height - least) // 2
    square = image.crop((left, top, left + least, top + least))
    return np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))


def dataset_of(paths: Sequence[str | Path], folder: Path) -> DatasetSource:
    """The files as a config's dataset, which would resize, crop and flip them for training."""
    (folder / "list.txt").write_text("\n".join(map(str, paths)))
    (folder / "data.yaml").write_text(CONFIG.format(folder / "list.txt"))
    return DatasetSource(folder / "data.yaml", workers=0)


def assert_as_pillow(source: LoadedSource, paths: Sequence[str | Path]) -> None:
    source.resizing = PAPER
    assert len(source) == len(paths)
    for index, path in enumerate(paths):
        pixels = source.load(index)[0]
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), by_pillow(path), str(path))


def test_another_entry_is_not_the_image_file(tmp_path: Path) -> None:
    """Of pairs, whose conditions are images too, the condition is what is resized."""
    for number in range(2):
        write_image(tmp_path / "images" / f"{number}.png", 40, 40, number)
        write_image(tmp_path / "others" / f"{number}.png", 40, 40, number, noise)
    pairs = f"{{images: {tmp_path / 'images'}, conditions: {tmp_path / 'others'}, kind: image}}"
    config = CONFIG.replace("taming.data.custom.CustomTest", "taming.data.paired.PairedTrain")
    config = config[: config.index("      params:")] + f"      params: {pairs}\n"
    (tmp_path / "pairs.yaml").write_text(config)
    source = DatasetSource(tmp_path / "pairs.yaml", key="condition", workers=0)
    source.resizing = Resizing(PILLOW, CENTER, (8, 8))
    assert not source.reads_files
    item = source.dataset[0]
    expected = source.resizing(to_uint8_array(item["condition"]))
    found = source.load(0)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(found, expected)
    assert (found != source.resizing(to_uint8_array(item["image"]))).any()


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "gray": lambda image: image.convert("L"),
    "palette": lambda image: image.quantize(16),
    "transparent": lambda image: image.convert("RGBA"),
    "bits": lambda image: image.convert("1"),
    "color": lambda image: image,
}
# Odd and even differences of the sides, smaller and larger than 256, one pixel wide, and as wanted.
SIZES = [(300, 401), (401, 300), (300, 400), (64, 37), (1, 300), (300, 1), (1, 1), (255, 256)]
SIZES += [(256, 256), (256, 257), (257, 256), (512, 512), (377, 600)]


def test_pixels_are_those_of_pillow(tmp_path: Path) -> None:
    paths = []
    for number, (height, width) in enumerate(SIZES):
        content = noise if number % 2 else ramps
        for name, change in list(MODES.items())[number % 3 :: 2]:
            path = tmp_path / f"{number:02}-{name}.png"
            change(Image.fromarray(content(height, width, seed=250))).save(path)
            paths.append(path)
    jpeg = tmp_path / "99.jpg"
    Image.fromarray(noise(333, 500, seed=250)).save(jpeg)
    paths = sorted([*paths, jpeg])
    assert_as_pillow(FolderSource(tmp_path, workers=0), paths)
    assert_as_pillow(dataset_of(paths, tmp_path), paths)


@needs_real_data
def test_photographs_are_those_of_pillow(tmp_path: Path) -> None:
    found = (path for ending in ("jpg", "JPEG") for path in sorted(FOLDER.rglob(f"*.{ending}")))
    paths = list(islice(found, 0, None, 3))
    assert len(paths) >= 20
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number:02}{path.suffix}").symlink_to(path)
    source = FolderSource(folder, workers=0)
    assert_as_pillow(source, source.files)
    assert_as_pillow(dataset_of(paths, tmp_path), paths)


def test_crops_begin_at_the_lower_of_two_middles() -> None:
    image = np.stack(np.meshgrid(np.arange(4), np.arange(7), indexing="ij"), axis=2)  # (4, 7, 2)
    assert center_crop(image, (9, 9))[0, :, 1].tolist() == [1, 2, 3, 4]
    assert center_crop(image.transpose(1, 0, 2), (9, 9))[:, 0, 1].tolist() == [1, 2, 3, 4]
    wide = center_crop(image, (2, 6))  # the largest of its shape
    assert wide.shape == (2, 7, 2) and wide[0, 0].tolist() == [1, 0]
    high = center_crop(image, (8, 2))
    assert high.shape == (4, 1, 2) and high[0, 0].tolist() == [0, 3]


def test_filters_are_what_they_are_called() -> None:
    image = noise(90, 60, seed=250)
    square = np.ascontiguousarray(image[15:75])
    found = {name: Resizing(name, CENTER, (20, 20))(image) for name in FILTERS}
    bilinear = cv2.resize(square, (20, 20), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found["opencv"], bilinear)
    values = torch.from_numpy(square).permute(2, 0, 1)[None].double()
    smooth = torch.nn.functional.interpolate(values, (20, 20), mode="bilinear", antialias=True)
    torch_pixels = smooth[0].permute(1, 2, 0).round().numpy()
    assert np.abs(found["torch-antialias"] - torch_pixels).max() <= 1  # halves may go either way
    assert (found["torch-antialias"] == torch_pixels).mean() > 0.99
    difference = np.abs(found["torch-antialias"].astype(int) - found[PILLOW])
    assert difference.max() <= 2 and 0 < difference.mean() < 0.5  # Pillow rounds between passes
    # Of noise, averages of all pixels vary much less than single ones.
    assert found["opencv"].std() > 1.5 * found[PILLOW].std()
    assert len({pixels.tobytes() for pixels in found.values()}) == 3


def test_what_crop_and_size_mean() -> None:
    image = noise(30, 60)
    squeezed = np.asarray(Image.fromarray(image).resize((20, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Resizing(PILLOW, NONE, (10, 20))(image), squeezed)
    np.testing.assert_array_equal(Resizing(NONE, CENTER)(image), image[:, 15:45])
    for name in FILTERS:
        assert Resizing(name, CENTER, (30, 60))(image) is image
        np.testing.assert_array_equal(Resizing(name, CENTER, (30, 30))(image), image[:, 15:45])
    assert AS_IT_IS(image) is image and AS_IT_IS.changes_nothing and not PAPER.changes_nothing
    assert not Resizing(NONE, CENTER).changes_nothing
    assert PAPER.describe() == {"resize": PILLOW, "crop": CENTER, "size": [256, 256]}
    assert AS_IT_IS.describe() == {"resize": NONE, "crop": NONE, "size": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((PILLOW, CENTER, None), "give both"),
        ((NONE, NONE, (8, 8)), "give both"),
        (("pillow", CENTER, (8, 8)), "no resize 'pillow'; known are none, opencv, pillow"),
        ((PILLOW, "centre", (8, 8)), "no crop 'centre'; did you mean 'center'"),
        ((PILLOW, CENTER, (0, 8)), "at least 1 pixel a side"),
    ],
)
def test_resizings_that_are_none(options: tuple[str, str, tuple[int, int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Resizing(*options)


def test_a_resizing_is_part_of_what_a_set_is(tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / f"{number}.png", 20, 30, number, noise)
    keys, prints = set(), set()
    for resizing in (
        AS_IT_IS,
        Resizing(NONE, CENTER),
        *(Resizing(name, crop, (9, 9)) for name in FILTERS for crop in (CENTER, NONE)),
        Resizing(PILLOW, CENTER, (9, 8)),
    ):
        source = FolderSource(tmp_path, workers=0)
        plain = source.content_key()
        source.resizing = resizing
        assert (source.content_key() == plain) is resizing.changes_nothing
        keys.add(source.content_key())
        prints.add(source.fingerprint())
        assert source.describe().items() >= resizing.describe().items()
        expected = {NONE: (20, 30) if resizing.crop == NONE else (20, 20)}
        assert source.image_size() == expected.get(resizing.resize, resizing.size)
    assert len(keys) == len(prints) == 9


def test_datasets_say_which_pixels_they_give(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{number}.png", 90, 130, number) for number in range(3)]
    source = dataset_of(paths, tmp_path)
    assert source.describe()["images_are"] == "as in training"
    assert source.image_size() == source.own_image_size() == (64, 64)
    Image.fromarray(noise(64, 80)).save(paths[1])  # one of them has another shape
    whole = ["data.params.validation.params.size=null"]
    assert DatasetSource(tmp_path / "data.yaml", overrides=whole).own_image_size() is None
    before = source.content_key()
    source = dataset_of(paths, tmp_path)
    source.resizing = Resizing(PILLOW, CENTER, (32, 32))
    assert source.describe()["images_are"] == "the files" and source.reads_files
    assert source.image_size() == (32, 32) and source.own_image_size() == (64, 64)
    assert source.content_key() != before
    np.testing.assert_array_equal(source.load(2)[0].transpose(1, 2, 0), by_pillow(paths[2], 32))
    Path(paths[1]).write_bytes(b"no image")
    source.pass_over_damage()
    assert [image.index for batch in source.batches(2) for image in batch] == [0, 2]
    (sentence,) = source.leave_out_damaged()
    assert paths[1] in sentence and len(source) == 2
