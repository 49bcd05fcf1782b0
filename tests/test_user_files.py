"""Pipes and devices among users' files: refused by name, instead of read without end."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taming.checkpoint import read_checkpoint
from taming.checkpoint.hub import read_config
from taming.config import load_config
from taming.data.condition_maps import read_palette
from taming.data.files import annotations, images
from taming.data.files.list_files import ListPair, read_image_list
from taming.data.files.shard_index import scan
from taming.data.files.tar_members import member_path, read_bytes
from taming.data.folder import ImageFolderTrain
from taming.data.imagenet_classes import give_synsets_from_indices
from taming.data.lsun import LSUNTrain
from taming.data.paired import _stems
from taming.data.tools.extraction import NetworkOptions, load_network
from taming.data.utils import unpack
from taming.errors import DamagedImage, UserError
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.results import read_result
from taming.evaluation.sources.folder import FolderSource, file_digest
from taming.modules.discriminator.dino import read_vit
from taming.modules.losses.weight_files import WeightFile, find_weights
from taming.modules.vqvae.nearest import VectorQuantizer2
from taming.sampling.conditions import read_pixels
from taming.sampling.scenes import read_layout
from taming.user_files import name_and_file, read_text, regular, with_home


def test_files_are_passed_on_also_through_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("ä", encoding="utf-8")
    (tmp_path / "b").symlink_to("a")
    assert regular(tmp_path / "b") == tmp_path / "b"
    assert read_text(str(tmp_path / "b")) == "ä"


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    for name in ("pipe", "device", "socket"):
        with pytest.raises(OSError, match=f"it is a .*{name}, not a file"):
            regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "nothing")


def test_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert with_home("~/a") == "/home/ada/a" and with_home(Path("~")) == Path("/home/ada")
    for other in ("a/~", "~nosuchuser/a", "~a\0b", "~\ud800"):
        assert with_home(other) == other and with_home(Path(other)) == Path(other)
    for name, expected in (
        ("resnet18:~/w.pth", ("resnet18", "/home/ada/w.pth")),
        ("small:C:\\w.pth", ("small", "C:\\w.pth")),
        ("resnet101@V1", ("resnet101@V1", "")),
    ):
        assert name_and_file(name) == expected


def network_of(weights: str) -> Any:
    model = Path(weights).with_name("net.py")
    model.write_text("import torch\ndef make():\n    return torch.nn.ReLU()\n")
    options = NetworkOptions(model=str(model), entry="make", weights=weights)
    return load_network(options, torch.device("cpu"))


READERS: dict[str, Callable[[str], Any]] = {
    "image": images.read_rgb,
    "fast image": images.read_rgb_fast,
    "header": images.image_mode_and_size,
    "array": images.read_npy,
    "member": lambda path: read_bytes(member_path(f"{path}.tar", 0, 0, "png")),
    "json": lambda path: annotations.read_json(path, (), "a set"),
    "csv": lambda path: list(annotations.read_csv(path, (), "a set", header=False)),
    "palette": read_palette,
    "synsets": lambda path: give_synsets_from_indices([], path),
    "result": read_result,
    "config": lambda path: read_config(Path(path)),
    "shard": lambda path: list(scan(path)),
    "archive": lambda path: unpack(f"{path}.tar"),
    "weights": network_of,
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_users_files_refuses_devices(tmp_path: Path, name: str) -> None:
    for place in ("a", "a.tar"):  # one that ends, so that a reader which takes it does so, too
        (tmp_path / place).symlink_to("/dev/null")
    with pytest.raises(
        (UserError, OSError, images.BadImage), match="is a device, not a|but a device or a pipe"
    ):
        READERS[name](str(tmp_path / "a"))


def test_a_pipe_among_images_is_a_damaged_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    source = FolderSource(tmp_path, workers=0)
    with pytest.raises(DamagedImage, match=r"a\.png is a named pipe, not an image file"):
        source.load(0)
    source.content_key()
    assert file_digest(str(tmp_path / "a.png")) != file_digest(str(tmp_path / "b.png"))


NETWORK = WeightFile("VGG16", "", "TAMING_VGG16", "vgg_path", "LPIPS")
# What is said where a folder is given, beside its name.
OF_FOLDERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "list": (lambda path: read_image_list(path, "A"), "a list file; .*make_image_list.py"),
    "statistics": (lambda path: Statistics.load(Path(path)), "a statistics file; give an .npz"),
    "remap": (lambda path: VectorQuantizer2(4, 2, 0.25, remap=path), "a file; give an .npy"),
    "condition": (read_pixels, "an? image"),
    "layout": (lambda path: read_layout(Path(path), None, ""), "a layout"),  # type: ignore[arg-type]
    "vit": (lambda path: read_vit(path, 8, 1, 16), "a file; give DINO's"),
    "weights": (lambda path: find_weights(NETWORK, path), "a file; give torchvision"),
    "checkpoint": (read_checkpoint, "a checkpoint; name a file in it"),
    "yaml": (lambda path: load_config([Path(path)], ()), "a config file"),
}


@pytest.mark.parametrize("name", OF_FOLDERS)
def test_a_folder_in_the_place_of_a_file_is_called_one(tmp_path: Path, name: str) -> None:
    read, words = OF_FOLDERS[name]
    with pytest.raises(UserError, match=f"{tmp_path} is a folder, not {words}"):
        read(str(tmp_path))


@pytest.mark.parametrize("name", ["folder", "lsun", "paired", "made list"])
def test_a_file_in_the_place_of_a_folder_is_called_one(tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    file.touch()
    lists = ListPair("a.txt", "b.txt", str(file), ("png",))
    makers: dict[str, Callable[[], Any]] = {
        "folder": lambda: ImageFolderTrain(size=8, root=str(file)),
        "lsun": lambda: LSUNTrain(size=8, category="tower", root=str(file)),
        "paired": lambda: _stems(file),
        "made list": lambda: lists.read(True, "A", "raise"),
    }
    with pytest.raises(UserError, match=f"{file} is a file, not a folder"):
        makers[name]()
