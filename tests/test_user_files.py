"""Pipes and devices among users' files: refused by name, instead of read without end."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taming.checkpoint.hub import read_config
from taming.data.condition_maps import read_palette
from taming.data.files import annotations, images
from taming.data.files.shard_index import scan
from taming.data.files.tar_members import member_path, read_bytes
from taming.data.imagenet_classes import give_synsets_from_indices
from taming.data.tools.extraction import NetworkOptions, load_network
from taming.data.utils import unpack
from taming.errors import DamagedImage, UserError
from taming.evaluation.results import read_result
from taming.evaluation.sources.folder import FolderSource, file_digest
from taming.user_files import read_text, regular, with_home


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
    with pytest.raises((UserError, OSError, images.BadImage), match="is a device, not a"):
        READERS[name](str(tmp_path / "a"))


def test_a_pipe_among_images_is_a_damaged_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    source = FolderSource(tmp_path, workers=0)
    with pytest.raises(DamagedImage, match=r"a\.png is a named pipe, not an image file"):
        source.load(0)
    source.content_key()
    assert file_digest(str(tmp_path / "a.png")) != file_digest(str(tmp_path / "b.png"))
