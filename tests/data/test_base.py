from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, default_collate

from taming.data import checks
from taming.data.base import (
    ConcatDatasetWithIndex,
    ImagePaths,
    NumpyPaths,
)
from taming.data.checks import damage_found_later
from taming.data.columns import StringTable
from taming.data.condition_maps import ImageMap
from taming.data.custom import CustomBase
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.loading import set_loading
from taming.data.options import ImageOptions
from taming.data.seeding import PositionSampler, SeededDataset
from taming.errors import DamagedImage, UserError
from taming.models.codes import channels_first
from tests.documents import ROOT, blocks_of
from tests.kit.images import ramps, truncate, write_deep, write_image, write_images


def test_item(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    dataset = ImagePaths(paths, size=16, labels={"class_label": [5, 6, 7], "name": ["a", "b", "c"]})
    item = dataset[1]
    assert set(item) == {"image", "file_path_", "class_label", "name"} and len(dataset) == 3
    assert item["image"].shape == (16, 16, 3) and item["image"].dtype == np.float32
    assert (item["file_path_"], item["class_label"], item["name"]) == (paths[1], 6, "b")
    assert [item["class_label"] for item in dataset] == [5, 6, 7]
    named = ImagePaths(paths, labels={"file_path_": ["a", "b", "c"]})
    assert named[1]["file_path_"] == paths[1]  # always where the image is


def test_unchanged_image_is_its_pixels(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    image = ImagePaths(paths=[path])[0]["image"]
    np.testing.assert_allclose(image, ramps(24, 32) / 127.5 - 1, atol=1e-6)


def test_numpy_paths_equal_image_paths(tmp_path: Path) -> None:
    png = write_image(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", ramps(24, 32).transpose(2, 0, 1)[None])
    for size in (None, 16):
        item = NumpyPaths([str(tmp_path / "a.npy")], size=size)[0]
        np.testing.assert_array_equal(item["image"], ImagePaths([png], size=size)[0]["image"])


def test_random_crop_and_flip_are_options(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 1, height=16, width=64)
    random.seed(0)
    for options, different in (({}, 1), ({"random_flip": True}, 2), ({"random_crop": True}, 6)):
        dataset = ImagePaths(paths, size=16, **options)
        assert len({dataset[0]["image"].tobytes() for _ in range(30)}) >= different


def test_batches_collate(tmp_path: Path) -> None:
    dataset = ImagePaths(write_images(tmp_path, 3), size=16, labels={"class_label": [2, 0, 1]})
    batch = default_collate([dataset[i] for i in range(3)])
    assert batch["image"].shape == (3, 16, 16, 3)
    assert torch.equal(batch["class_label"], torch.tensor([2, 0, 1]))
    assert batch["file_path_"] == list(dataset.paths)


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_depend_on_seed_epoch_and_index_alone(tmp_path: Path, workers: int) -> None:
    dataset = SeededDataset(
        ImagePaths(write_images(tmp_path, 6, 16, 64), 16, True, random_flip=True), seed=1
    )

    def epoch(number: int, workers: int) -> list[bytes]:
        sampler = PositionSampler(6, seed=1)
        sampler.set_epoch(number)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers)
        return [image.numpy().tobytes() for batch in loader for image in batch["image"]]

    first = epoch(0, workers)
    assert first == epoch(0, 0)
    assert set(first).isdisjoint(epoch(1, workers))


def test_no_paths() -> None:
    with pytest.raises(UserError, match="ImagePaths has no images"):
        ImagePaths([])


def test_labels_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\['x'\] has 3 entries for 2 paths"):
        ImagePaths(write_images(tmp_path, 2), labels={"x": [1, 2, 3]})


def test_headers_are_checked_evenly_in_long_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr(ImagePaths, "check", lambda self, index: checked.append(index))
    for count, step in ((1000, 1), (60_000, 3)):
        ImagePaths(["a.png"] * count)
        assert sorted(checked) == list(range(0, count, step))
        checked.clear()


def test_dark_images_are_looked_for_evenly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_images(tmp_path, 16)
    write_deep(Path(paths[14]), 900)
    ImagePaths(paths)
    assert "014.png is nearly black" in caplog.text


def test_file_that_is_no_image_is_found_at_start(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    Path(paths[1]).write_text("hello")
    with pytest.raises(UserError, match=r"001\.png, from my list, is no image"):
        ImagePaths(paths, size=16, source="my list")


def test_damage_may_be_found_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_images(tmp_path, 2)
    Path(paths[1]).write_text("hello")
    with damage_found_later():
        dataset = ImagePaths(paths, size=16)
    assert not caplog.records and dataset[0]["image"].shape == (16, 16, 3)
    with pytest.raises(DamagedImage, match="001.png, from ImagePaths, is no image"):
        dataset[1]
    with pytest.raises(UserError, match="001.png"):  # the context has ended
        ImagePaths(paths, size=16)


def test_absent_file_is_found_at_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png, from ImagePaths, does not exist"):
        ImagePaths([str(tmp_path / "a.png")])


def test_image_smaller_than_the_crop_is_found_at_start(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2, height=24, width=32)
    with pytest.raises(UserError, match="is 32 x 24 pixels, smaller than the crop of 32"):
        ImagePaths(paths, crop_size=32)
    assert ImagePaths(paths, size=32)[0]["image"].shape == (32, 32, 3)


def test_image_that_shrinks_later_is_named_while_loading(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2)
    dataset = ImagePaths(paths, crop_size=20)
    write_image(Path(paths[1]), 8, 8)
    with pytest.raises(UserError, match=r"001\.png, .* is 8 x 8 pixels"):
        dataset[1]


def test_bad_files_are_replaced_by_the_next_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_images(tmp_path, 6)
    dataset = ImagePaths(paths, on_error="skip")
    for number in (2, 3, 5):
        Path(paths[number]).write_text("hello")
    found = [dataset[index]["file_path_"] for index in range(6)]
    assert found == [paths[index] for index in (0, 1, 4, 4, 4, 0)]
    assert "skipped: " in caplog.text and "on_error" not in caplog.text  # which is set
    said = caplog.text.count("skipped: ")
    assert len(list(dataset)) == len(dataset) and caplog.text.count("skipped: ") == said
    raising = ImagePaths([paths[0], paths[4]])
    whole = Path(paths[4]).read_bytes()
    Path(paths[4]).write_text("hello")
    for fatal in (lambda: ImagePaths(paths), lambda: raising[1]):
        with pytest.raises(UserError, match=r"data\.params\.train\.params\.on_error=skip, and lik"):
            fatal()
    Path(paths[4]).write_bytes(whole)
    monkeypatch.setattr(checks, "REPLACEMENTS_TRIED", 2)
    assert dataset[3]["file_path_"] == paths[4]
    with pytest.raises(UserError, match=f"2 files in a row cannot be used: {paths[2]}"):
        dataset[2]
    one = ImagePaths(paths[:1], on_error="skip")
    Path(paths[0]).write_text("hello")
    with pytest.raises(UserError, match=f"none of its files can be used: {paths[0]}"):
        one[0]


def test_truncated_jpeg_is_named_while_loading(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", 100, 100)
    truncate(path, 0.7)
    dataset = ImagePaths([path], size=16)
    with pytest.raises(UserError, match=r"a\.jpg, from ImagePaths, cannot be read \(.*truncated"):
        dataset[0]


def test_bytes_become_the_same_floats_in_the_model(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2)
    plain, fast = ImagePaths(paths, 16), ImagePaths(paths, 16)
    assert set_loading(ConcatDataset([fast]), fast_decode=True, image_bytes=True) == 1
    batch = default_collate([fast[0], fast[1]])["image"]
    assert batch.dtype == torch.uint8
    expected = default_collate([plain[0], plain[1]])["image"].permute(0, 3, 1, 2)
    assert torch.equal(channels_first(batch), expected)
    assert channels_first(batch).is_contiguous()
    whole = ImagePaths(paths)
    set_loading(whole, fast_decode=False, image_bytes=True)
    assert whole[0]["image"].flags.writeable  # or collating warns


def test_images_with_maps_are_decoded_whole(tmp_path: Path) -> None:
    image, mask = write_image(tmp_path / "a.jpg", 64, 64), write_image(tmp_path / "b.png", 64, 64)
    maps = {"condition": MapFiles(StringTable([mask]), ImageMap())}
    paired = ImagesWithMaps([image], maps, ImageOptions(16))
    set_loading(CustomBase(paired), fast_decode=True, image_bytes=True)
    assert paired.pixels(0).shape == (64, 64, 3)
    with pytest.raises(UserError, match="preprocessor cannot be set beside maps .condition."):
        paired.preprocessor = paired.transform
    item = paired[0]
    assert item["image"].dtype == np.uint8 and item["condition"].dtype == np.float32


def test_the_dataset_of_the_docs(tmp_path: Path) -> None:
    blocks = blocks_of(ROOT / "docs" / "data.md")
    (code,) = (one.text for one in blocks if one.heading == "A dataset in code")
    names: dict[str, Any] = {}
    exec(code, names)
    write_image(tmp_path / "ann_1.png")
    write_image(tmp_path / "bob_1.png")
    items = list(names["Sketches"](tmp_path, 16))
    assert [item["artist"] for item in items] == ["ann", "bob"]
    assert items[0].keys() == {"image", "file_path_", "artist"}
    assert items[0]["image"].shape == (16, 16, 3)


@pytest.mark.parametrize("kind", [ImagePaths, NumpyPaths])
def test_subclasses_read_files_of_any_kind(tmp_path: Path, kind: type[ImagePaths]) -> None:
    class Own(kind):  # type: ignore[misc, valid-type]
        def preprocess_image(self, image_path: str) -> Any:
            pixels = np.full((24, 32, 3), int(Path(image_path).read_text()), np.uint8)
            return self.preprocessor(image=pixels)["image"] / 255

    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(str(number))
    data = Own(sorted(map(str, tmp_path.iterdir())), size=16, labels={"name": ["a", "b", "c"]})
    assert [item["image"].max() * 255 for item in data] == [0, 1, 2]
    assert data[2]["image"].shape == (16, 16, 3) and data[2]["name"] == "c"


def test_subclasses_go_on_from_the_usual_image(tmp_path: Path) -> None:
    class Own(NumpyPaths):
        def preprocess_image(self, image_path: str) -> Any:
            return -super().preprocess_image(image_path)

    path = str(tmp_path / "a.npy")
    np.save(path, ramps(24, 32).transpose(2, 0, 1)[None])
    np.testing.assert_array_equal(Own([path], 16)[0]["image"], -NumpyPaths([path], 16)[0]["image"])


@pytest.mark.parametrize("size", [-1, 0, None])
def test_sizes_that_leave_images_as_they_are(tmp_path: Path, size: int | None) -> None:
    [path] = write_images(tmp_path, 1)
    assert ImagePaths([path], size)[0]["image"].shape == (24, 32, 3)
    assert ImagePaths([path], 16, crop_size=size)[0]["image"].shape == (
        (16, 16, 3) if size is None else (16, 21, 3)
    )


def test_joined_datasets_say_whose_an_item_is() -> None:
    data = ConcatDatasetWithIndex([["a"], ["b", "c"]])  # type: ignore[list-item]
    assert [data[i] for i in range(3)] == [("a", 0), ("b", 1), ("c", 1)]
    assert data[-1] == ("c", 1)


def test_another_preprocessor_may_be_set(tmp_path: Path) -> None:
    """As users of the original do, with what is called as albumentations are."""
    path = write_image(tmp_path / "a.png")
    dataset = ImagePaths([path], size=16)

    def mirrored(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image[:8, ::-1]}

    dataset.preprocessor = mirrored
    np.testing.assert_allclose(dataset[0]["image"], ramps(24, 32)[:8, ::-1] / 127.5 - 1, atol=1e-6)
    assert ImagePaths([path], size=16)[0]["image"].shape == (16, 16, 3)


class Published(ImagePaths):
    """A subclass that makes everything itself, as the published class allowed."""

    def __init__(self, paths: list[str]) -> None:
        self.size, self.random_crop = 16, False
        self.labels = {"name": ["a", "b"], "file_path_": paths}
        self._length = len(paths)


def test_subclasses_may_set_everything_themselves(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2)
    own, usual = Published(paths), ImagePaths(paths, 16, labels={"name": ["a", "b"]})
    pickled = pickle.loads(pickle.dumps(Published(paths)))
    assert len(own) == 2 and (own.size, own.source) == (16, "Published")
    for dataset in (own, pickled):
        np.testing.assert_array_equal(dataset[1]["image"], usual[1]["image"])
        assert dataset[1]["name"] == "b" and dataset[1].keys() == usual[1].keys()
    own.preprocessor = lambda image: {"image": image[:4]}
    assert own[0]["image"].shape == (4, 32, 3)
    assert not hasattr(own, "nothing")


def test_subclasses_that_set_nothing_are_told_what_to_set() -> None:
    class Empty(ImagePaths):
        def __init__(self) -> None: ...

    message = (
        r"Empty.__init__ must call super\(\).__init__\(paths\), or set self.labels = {'file_path_'"
    )
    for use in (len, lambda data: data[0]):
        with pytest.raises(UserError, match=message):
            use(Empty())
