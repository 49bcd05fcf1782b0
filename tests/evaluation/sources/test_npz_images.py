"""The ADM suite's files of images, read and written."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.compute_statistics import main as compute_statistics
from taming.errors import UserError
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import SourceImage
from taming.evaluation.sources.npz_images import NpzImages, _in_order, holds_images, write_samples
from tests.kit.images import image_classes, image_folder, truncate

IMAGES = np.random.RandomState(0).randint(0, 256, (11, 6, 9, 3), np.uint8)


def read(source: Any, **options: Any) -> dict[int, SourceImage]:
    return {image.index: image for batch in source.batches(4, **options) for image in batch}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_their_order(tmp_path: Path, save: Any, workers: int) -> None:
    labels = np.arange(11) % 3
    save(tmp_path / "samples.npz", IMAGES, labels)
    source = NpzImages(tmp_path / "samples.npz", workers)
    assert len(source) == 11 and source.has_classes() and source.statistics is None
    found = read(source)
    for index, image in found.items():
        np.testing.assert_array_equal(image.pixels.numpy(), IMAGES[index].transpose(2, 0, 1))
        assert image.label == labels[index]
    assert sorted(found) == list(range(11))
    assert source.image_size() == (6, 9)
    share = read(source, share=(1, 2), skip=(3, 5))  # of a process that continues
    assert sorted(share) == [1, 7, 9]
    np.testing.assert_array_equal(share[7].pixels.numpy(), IMAGES[7].transpose(2, 0, 1))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_image_is_in_memory(tmp_path: Path, save: Any) -> None:
    many = np.zeros((300, 64, 64, 3), np.uint8)  # 3.7 MB
    save(tmp_path / "many.npz", many)
    del many
    tracemalloc.start()
    count = sum(1 for index in range(300) if NpzImages.load(source(tmp_path), index))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300 and peak < 1_000_000


_OPEN: dict[Path, NpzImages] = {}


def source(folder: Path) -> NpzImages:
    return _OPEN.setdefault(folder, NpzImages(folder / "many.npz"))


def test_written_and_read_back(tmp_path: Path) -> None:
    folder = FolderSource(image_classes(tmp_path / "a", {"0": 3, "700": 4}), workers=0)
    assert write_samples(folder, tmp_path / "out.npz", batch_size=2) == (7, [])
    with np.load(tmp_path / "out.npz") as file:
        assert file["arr_0"].dtype == np.uint8 and file["arr_0"].shape == (7, 12, 12, 3)
        assert file["arr_1"].tolist() == [0, 0, 0, 700, 700, 700, 700]
    back = NpzImages(tmp_path / "out.npz", workers=0)
    assert back.fingerprint() == folder.fingerprint()
    plain = FolderSource(image_folder(tmp_path / "b", 3), workers=0)
    write_samples(plain, tmp_path / "plain.npz", batch_size=2)
    assert not NpzImages(tmp_path / "plain.npz").has_classes()


def test_labels_are_written_if_all_images_have_one(tmp_path: Path) -> None:
    for name, labels in (("zeros", np.zeros(11, int)), ("none", None)):
        arrays = {"arr_0": IMAGES} | ({} if labels is None else {"arr_1": labels})
        np.savez(tmp_path / f"{name}.npz", **arrays)
        write_samples(NpzImages(tmp_path / f"{name}.npz", 0), tmp_path / "copy.npz", 4)
        found = NpzImages(tmp_path / "copy.npz", 0).labels
        assert (found is None) is (labels is None)


def test_damaged_images_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = image_folder(tmp_path / "a", 4), tmp_path / "out.npz"
    whole = read(FolderSource(folder, workers=0))
    truncate(folder / "000.png")
    truncate(folder / "002.png")
    with pytest.raises(SystemExit) as stop:
        compute_statistics([str(folder), str(out), "--format", "adm-samples", "--device", "cpu"])
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert f"2 images are in {out}" in said.out and said.err.count("left out: ") == 2
    with np.load(out) as file:
        kept = [whole[n].pixels.permute(1, 2, 0).numpy() for n in (1, 3)]
        np.testing.assert_array_equal(file["arr_0"], kept)
    truncate(folder / "001.png")
    truncate(folder / "003.png")
    with pytest.raises(UserError, match="none of the images can be used; .*000.png"):
        write_samples(FolderSource(folder, workers=0), tmp_path / "none.npz", 1)
    assert not (tmp_path / "none.npz").exists()


def test_damage_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a damaged image is not held in memory until all of the set is read."""
    source = FolderSource(image_folder(tmp_path / "a", 4), workers=0)
    truncate(tmp_path / "a" / "000.png")
    read: list[int] = []
    load = source.load
    monkeypatch.setattr(source, "load", lambda index: read.append(index) or load(index))
    source.pass_over_damage()
    assert next(_in_order(source, 1)).index == 1 and read == [0, 1]


def test_images_of_one_size_alone_are_written(tmp_path: Path) -> None:
    image_folder(tmp_path / "a" / "0", 2)
    image_folder(tmp_path / "a" / "1", 2, width=20)
    with pytest.raises(UserError, match="has another size than .*000.png"):
        write_samples(FolderSource(tmp_path / "a"), tmp_path / "out.npz", 4)
    assert not list(tmp_path.glob("*.npz*"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 of float32 and shape .11, 6, 9, 3."),
        ({"arr_0": IMAGES[0]}, "give images as uint8"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, "shape .11, 3, 6, 9.; give images as uint8"),
        ({"arr_0": IMAGES[:0]}, "shape .0, 6, 9, 3."),
        ({"arr_0": np.asfortranarray(IMAGES)}, "in the order of Fortran.*ascontiguousarray of it"),
        ({"other": IMAGES}, "holds no images"),
        (
            {"arr_0": IMAGES, "arr_1": np.zeros(3, int)},
            "arr_1 of int64 and shape .3,.; give",
        ),
        ({"arr_0": IMAGES, "arr_1": np.zeros(11)}, "arr_1 of float64 .* each of the 11 images"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert holds_images(tmp_path / "a.npz") is ("arr_0" in arrays)
    with pytest.raises(UserError, match=message):
        NpzImages(tmp_path / "a.npz")


HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (11, 6, 9, 3)}\n"
SHORT = (
    b"\x93NUMPY\x01\x00" + len(HEADER).to_bytes(2, "little") + HEADER + bytes(11 * 6 * 9 * 3 - 1)
)


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ("arr_0.npy", b"no array at all"),
        ("arr_0.npy", b"\x93NUMPY\x01\x00\x08\x00{'descr'("),  # a header that is no literal
        ("arr_0.npy", b"\x93NUMPY\x07\x00"),
        ("arr_0.npy", SHORT),
        ("arr_0.npy", b""),
        ("arr_1.npy", b"\x93NUMPY\x01\x00\x08\x00{'descr'("),
        ("mu.npy", b"no array at all"),
    ],
)
def test_checksums_may_be_right(tmp_path: Path, entry: str, content: bytes) -> None:
    np.savez(tmp_path / "a.npz", IMAGES, np.arange(11), mu=np.zeros(2), sigma=np.eye(2))
    with (
        zipfile.ZipFile(tmp_path / "a.npz") as whole,
        zipfile.ZipFile(tmp_path / "b.npz", "w") as archive,
    ):
        for name in whole.namelist():
            archive.writestr(name, content if name == entry else whole.read(name))
    assert len(NpzImages(tmp_path / "a.npz")) == 11
    with pytest.raises(UserError, match="b.npz (holds no images|is no statistics file)"):
        NpzImages(tmp_path / "b.npz")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    noise = np.random.RandomState(1).randint(0, 256, (40, 64, 64, 3), np.uint8)
    np.savez_compressed(path, noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not holds_images(path)
    with pytest.raises(UserError, match="holds no images"):
        NpzImages(path)
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2 : len(whole) // 2 + 200] = bytes(200)
    path.write_bytes(spoiled)
    with pytest.raises(UserError, match="is damaged at image"):
        read(NpzImages(path))
