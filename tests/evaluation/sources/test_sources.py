from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.utils import glob_samples_paths

from taming.data.seeding import SeededDataset
from taming.errors import UserError, sentence
from taming.evaluation.arguments import SetArguments
from taming.evaluation.sources import folder as folder_module
from taming.evaluation.sources import images as images_module
from taming.evaluation.sources.dataset import DatasetSource, ItemSource
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import (
    Manifest,
    SourceImage,
    loaded,
)
from taming.evaluation.sources.npz_images import NpzImages
from taming.evaluation.sources.run import RunSource
from taming.sampling.folder import save_png
from tests.kit.datasets import Items, Noise
from tests.kit.images import image_classes, image_folder, image_sizes, noise, ramps, write_turned
from tests.kit.models import FIRST_STAGE
from tests.kit.runs import tiny_run
from tests.kit.training import small_vqgan, write_config


def images_of(source: Any, batch_size: int = 4, **options: Any) -> dict[int, SourceImage]:
    found = [p for batch in source.batches(batch_size, **options) for p in batch]
    assert len({image.index for image in found}) == len(found)
    return {image.index: image for image in found}


def test_folder_in_the_order_of_torch_fidelity(tmp_path: Path) -> None:
    image_classes(tmp_path, {"10": 2, "2": 3})
    (tmp_path / "2" / "note.txt").write_text("no image")
    (tmp_path / "2" / "._000000.png").write_bytes(b"left by another system")
    source = FolderSource(tmp_path, workers=0)
    hidden = (tmp_path / "2" / "._000000.png").resolve()
    theirs = glob_samples_paths(str(tmp_path), True, "png,jpg,jpeg", verbose=False)
    assert source.files == [path for path in theirs if path != str(hidden)]
    found = images_of(source)
    assert [found[n].label for n in range(len(source))] == [10, 10, 2, 2, 2]
    assert found[0].name == str((tmp_path / "10" / "000.png").resolve())
    np.testing.assert_array_equal(found[0].pixels.permute(1, 2, 0), noise(seed=0))
    assert source.describe() == {
        "kind": "folder",
        "path": str(tmp_path),
        "deep": True,
        "classes": 2,
        "resize": "none",
        "crop": "none",
        "size": None,
    }


def test_images_of_other_formats_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image_folder(tmp_path / "a", 2)
    for number in range(3):
        (tmp_path / f"a/{number}.webp").touch()
    source = FolderSource(tmp_path / "a")
    assert len(source) == 2 and source.describe()["passed_over"] == 3
    assert "a: passed over 3 images of other formats; read are png, jpg, jpeg" in caplog.text
    for path in (tmp_path / "a").glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"no images \(png, jpg, jpeg\), but 3 images of other"):
        FolderSource(tmp_path / "a")


def test_class_folders_with_names(tmp_path: Path) -> None:
    source = FolderSource(image_classes(tmp_path, {"dog": 1, "cat": 2}), workers=0)
    assert source.labels == [0, 0, 1]
    image_folder(tmp_path / ".hidden", 1)
    image_folder(tmp_path / "3", 1)
    for ending in ("JPEG", "Jpg", "jpeg"):
        Image.fromarray(noise()).save(tmp_path / "cat" / f"more.{ending}")
    source = FolderSource(tmp_path, workers=0)
    assert source.labels == [0, *[1] * 5, 2]  # not by numbers, as some have none


def test_samples_say_which_model_made_them(tmp_path: Path) -> None:
    """What not all of them say alike is of several; photographs say nothing."""
    records = [{"weights": w, "config": "c", "number": n} for n, w in enumerate(("a", "a", "b"))]
    for count, weights in ((2, "a"), (3, "several")):
        folder = tmp_path / str(count)
        for number, record in enumerate(records[:count]):
            save_png(torch.zeros(3, 2, 2), folder / f"{number:06}.png", record)
        (folder / "000009.png").write_bytes(b"damaged")
        Image.new("RGB", (2, 2)).save(folder / "a.jpg")
        about = FolderSource(folder).describe()
        assert about["made_with"] == {"weights": weights, "config": "c"}
    save_png(torch.zeros(3, 2, 2), folder / "000003.png")
    assert FolderSource(folder).describe()["made_with"]["config"] == "several"
    assert "made_with" not in FolderSource(image_folder(tmp_path / "photos", 2)).describe()


def test_links_have_the_classes_of_the_tree_that_they_are_in(tmp_path: Path) -> None:
    """As ImageNet's validation images are often sorted."""
    image_folder(tmp_path / "flat", 3)
    image_classes(tmp_path / "elsewhere", {"dog": 1})
    sorted_by_links = tmp_path / "sorted"
    for name, synset in (("000", "cat"), ("001", "ant"), ("002", "cat")):
        (sorted_by_links / synset).mkdir(parents=True, exist_ok=True)
        (sorted_by_links / synset / f"{name}.png").symlink_to(tmp_path / "flat" / f"{name}.png")
    (sorted_by_links / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (sorted_by_links / "dog" / "up").symlink_to(sorted_by_links)
    source = FolderSource(sorted_by_links, workers=0)
    assert source.labels == [2, 1, 0, 1]  # elsewhere/dog goes before flat/*


def test_size_by_some_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "HEADERS_READ", 2)
    image_sizes(tmp_path, {f"{n}.png": (4 if n == 3 else 6, 5) for n in range(6)})
    source = FolderSource(tmp_path)  # of which images 0 and 3 are looked at
    assert source.own_image_size() is None
    Path(source.files[3]).unlink()
    assert FolderSource(tmp_path).own_image_size() == (6, 5)


def test_images_of_the_folder_itself_go_first(tmp_path: Path) -> None:
    image_folder(tmp_path, 2)
    image_folder(tmp_path / "more", 3)
    assert len(FolderSource(tmp_path)) == 2
    everything = FolderSource(tmp_path, deep=True)
    assert len(everything) == 5
    assert everything.labels is None
    image_folder(tmp_path / "more-yet", 1)  # "-" is before "/", and no folder is kept together
    files = FolderSource(tmp_path, deep=True).files
    assert files == glob_samples_paths(str(tmp_path), True, "png", verbose=False)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(tmp_path / "more" / "000.png")
    assert FolderSource(tmp_path / "links").has_classes() is False
    with pytest.raises(UserError, match="--deep"):
        FolderSource(tmp_path.parent, deep=False)


def test_photographs_stand_upright_and_16_bits_become_8(tmp_path: Path) -> None:
    write_turned(tmp_path / "a.png", 6)
    Image.fromarray(ramps(32, 24)[..., 0].astype(np.uint16) * 257).save(tmp_path / "b.png")
    found = images_of(FolderSource(tmp_path, workers=0))
    upright = np.rot90(ramps(24, 32), 3)
    np.testing.assert_array_equal(found[0].pixels.permute(1, 2, 0), upright)
    np.testing.assert_array_equal(found[1].pixels[2], ramps(32, 24)[..., 0])


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "L": lambda image: image.convert("L"),
    "RGBA": lambda image: image.convert("RGBA"),
    "P": lambda image: image.quantize(8),
    "LA": lambda image: image.convert("LA"),
}


def test_any_mode_becomes_rgb_and_is_counted(tmp_path: Path) -> None:
    for n, change in enumerate(MODES.values()):
        image = change(Image.fromarray(noise(seed=n)))
        if image.mode == "RGBA":
            image.putalpha(128)
        image.save(tmp_path / f"{n}.png")
    manifest = Manifest(4)
    for index, picture in images_of(FolderSource(tmp_path, workers=0)).items():
        with Image.open(tmp_path / f"{index}.png") as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(picture.pixels.permute(1, 2, 0), expected)
        manifest.update([picture])
    assert manifest.describe()["converted_to_rgb"] == dict.fromkeys(sorted(MODES), 1)
    assert manifest.describe()["sizes"] == {"12x12": 4}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is empty (0 bytes)"),
        (lambda content: content[: len(content) // 2], "cannot be read"),
        (lambda content: b"no image at all", "is no image that Pillow can read"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_are_named(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str, workers: int
) -> None:
    path = image_folder(tmp_path, 3) / "001.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        images_of(FolderSource(tmp_path, workers=workers))
    assert sentence(error.value).startswith(f"{path} {message}")
    assert len(sentence(error.value).splitlines()) == 1
    source = FolderSource(tmp_path, workers=workers)
    source.pass_over_damage()
    assert set(images_of(source)) == {0, 2}
    [text] = source.leave_out_damaged()
    assert text.startswith(f"{path} {message}") and not source.damaged
    assert set(images_of(source)) == {0, 1} and len(source) == 2


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_no_images(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        FolderSource(tmp_path / name)


def test_hashes_follow_pixels_and_order_not_names(tmp_path: Path) -> None:
    first = FolderSource(image_folder(tmp_path / "a", 3), workers=0)
    (tmp_path / "b").mkdir()
    for n, name in enumerate("xyz"):
        with Image.open(first.files[n]) as image:
            image.save(tmp_path / "b" / f"{name}.png", compress_level=0)
    renamed = FolderSource(tmp_path / "b", workers=0)
    assert first.fingerprint() == renamed.fingerprint()
    assert first.content_key() != renamed.content_key()  # of the files' bytes
    (tmp_path / "b" / "x.png").rename(tmp_path / "b" / "zz.png")
    assert FolderSource(tmp_path / "b", workers=0).fingerprint() != first.fingerprint()

    key, changed = first.content_key(), noise(seed=1)
    assert FolderSource(shutil.copytree(tmp_path / "a", tmp_path / "c")).content_key() == key
    changed[3, 4, 1] ^= 1
    Image.fromarray(changed).save(first.files[1])
    assert first.content_key() != key
    assert first.fingerprint() != FolderSource(tmp_path / "c", workers=0).fingerprint()


def test_images_that_are_left_out_take_their_labels_along(tmp_path: Path, config: str) -> None:
    folder = FolderSource(image_classes(tmp_path, {"3": 2, "5": 2}), workers=0)
    dataset = DatasetSource(config, "train", workers=0)
    names = [folder.files[3], dataset.load(7)[2]]
    for source in (folder, dataset):
        for _ in range(2):  # those behind move up
            source.leave_out({0, 3})
    assert [folder.load(n)[1:3] for n in range(len(folder))] == [(5, folder.files[0])]
    assert len(dataset) == 8 and dataset.load(3)[2] == names[1] == "item 7"
    assert torch.equal(
        torch.from_numpy(dataset.load(3)[0]),
        torch.from_numpy(DatasetSource(config, "train").load(7)[0]),
    )


@pytest.mark.parametrize(("count", "workers"), [(31, 0), (64, 2), (100, 3), (10_000, 4)])
def test_few_images_are_loaded_without_processes(
    monkeypatch: pytest.MonkeyPatch, config: str, count: int, workers: int
) -> None:
    asked: list[int] = []

    def loader(*_: Any, num_workers: int, **__: Any) -> list[Any]:
        asked.append(num_workers)
        return []

    monkeypatch.setattr(images_module, "DataLoader", loader)
    monkeypatch.setattr(images_module, "available_cpus", lambda: 4)
    assert list(loaded(Noise(count), range(count), 4, None)) == []
    assert list(loaded(Noise(count), range(count), 4, 1)) == []
    assert list(DatasetSource(config, workers=3).images([0, 1], 4)) == []
    assert asked == [workers, 1, 3]


def test_labels_are_part_of_the_key(tmp_path: Path) -> None:
    sources = [FolderSource(image_classes(tmp_path / n, {n: 2})) for n in ("3", "4")]
    assert sources[0].content_key() != sources[1].content_key()
    assert sources[0].fingerprint() == sources[1].fingerprint()
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for name, labels in (("a", [0, 1]), ("b", [1, 0])):
        np.savez(tmp_path / f"{name}.npz", arr_0=images, arr_1=np.array(labels))
    arrays = [NpzImages(tmp_path / f"{name}.npz", workers=0) for name in ("a", "b")]
    assert arrays[0].content_key() != arrays[1].content_key()
    assert arrays[0].fingerprint() == arrays[1].fingerprint()


def test_batches_hold_one_size_and_shares_cover_the_set(tmp_path: Path) -> None:
    for n in range(12):
        Image.fromarray(noise(seed=n, width=8 + n % 3)).save(tmp_path / f"{n:06}.png")
    source = FolderSource(tmp_path, workers=0)
    for batch in source.batches(3):
        assert len({image.pixels.shape for image in batch}) == 1
        assert len(batch) <= 3
    shares = [set(images_of(source, share=(rank, 3), skip={4, 5})) for rank in range(3)]
    assert shares == [{0, 3, 6, 9}, {1, 7, 10}, {2, 8, 11}]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("config"), small_vqgan())


def test_dataset_of_a_config(config: str) -> None:
    source = DatasetSource(config, "train", workers=1)
    found, noise = images_of(source), Noise(12)
    assert sorted(found) == list(range(12))
    expected = ((noise[11]["image"] + 1) * 127.5).round().astype(np.uint8)
    np.testing.assert_array_equal(found[11].pixels.permute(1, 2, 0), expected)
    assert found[11].label == 1
    about = source.describe()
    assert about["dataset"]["params"] == {"length": 12}
    assert about["split"] == "train"
    assert len(DatasetSource(config)) == 4
    assert DatasetSource(config).content_key() != source.content_key()


class Endless(torch.utils.data.Dataset[Any]):
    """Nobody knows how many items it has."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, index: int) -> Any:
        return Noise(self.length)[index]


NO_LENGTH = f"data.params.validation.target={__name__}.Endless"
EMPTY = "data.params.validation.params.length=0"


def test_gray_images_are_of_three_equal_channels(config: str) -> None:
    source = DatasetSource(config, workers=0)
    gray = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)
    for image in (gray, gray[..., None]):
        pixels = source.to_pixels(image, "a")
        assert pixels.shape == (3, 4, 5) and (pixels == pixels[0]).all()
        np.testing.assert_array_equal(pixels[0], ((gray + 1) * 127.5).round())


def test_items_are_hashed_with_what_the_model_reads() -> None:
    columns = {
        "image": torch.rand(3, 4, 4, 3),
        "depth": torch.rand(3, 4, 4),
        "class_label": torch.tensor([4, 5, 6]),
        "other": torch.rand(3),
    }

    def source(**changes: torch.Tensor) -> ItemSource:
        data = SeededDataset(Items(columns | changes))
        return ItemSource(data, ("image", "depth"), workers=0)

    key = source().content_key()
    assert source(other=torch.zeros(3)).content_key() == key
    changed = [{"image": columns["image"].flip(0)}, {"depth": columns["depth"].transpose(1, 2)}]
    assert len({key, *(source(**change).content_key() for change in changed)}) == 3
    whole = source()
    found = images_of(whole)
    assert torch.equal(found[2].pixels, columns["image"][2].permute(2, 0, 1))
    assert [found[n].label for n in range(3)] == [4, 5, 6]
    whole.leave_out({0})
    whole.leave_out({0})
    assert len(whole) == 1 and images_of(whole)[0].label == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "has no data.params.test"),
        ({"split": "validatoin"}, "give --split train or validation"),
        ({"key": "picture"}, "have no 'picture'"),
        ({"key": "class_label"}, r"is \(\)"),
        ({"overrides": [NO_LENGTH]}, "a stream without a length"),
        ({"overrides": [EMPTY]}, "data.params.validation is empty"),
    ],
)
def test_wrong_choices_of_a_dataset(config: str, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images_of(DatasetSource(config, **options, workers=0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("logs") / "run")


def test_what_a_name_means(
    run: Path, tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(tmp_path / "images", 1)
    assert isinstance(SetArguments().open(str(tmp_path / "images")), FolderSource)
    assert isinstance(SetArguments().open(config), DatasetSource)
    monkeypatch.chdir(tmp_path)  # where the shipped configs are not
    assert isinstance(SetArguments().open("configs/digits_vqgan.yaml"), DatasetSource)
    for path in (run, run / "checkpoints" / "last.ckpt"):
        assert isinstance(SetArguments().open(str(path)), RunSource)
    with pytest.raises(UserError, match="give a folder of images, a run"):
        SetArguments().open(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="is a first stage.*evaluate_first_stage.py"):
        SetArguments().open(str(tiny_run(tmp_path / "stage", FIRST_STAGE)))
