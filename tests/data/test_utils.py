from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from taming.data import utils
from taming.data.helper_types import Annotation
from taming.errors import UserError
from tests.kit.images import ramps


def test_unpacking(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for ending, mode in ((".tar.gz", "w:gz"), (".tar", "w")):
        with tarfile.open(tmp_path / f"packed{ending}", mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / "a.txt", f"in{ending}/a.txt")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(tmp_path / "a.txt", "in.zip/a.txt")
    for ending in (".tar.gz", ".tar", ".zip"):
        utils.unpack(str(tmp_path / f"packed{ending}"))
        assert (tmp_path / f"in{ending}/a.txt").read_text() == "text"
    with pytest.raises(UserError, match=r"a.txt is neither .tar.gz, .tar nor .zip"):
        utils.unpack(str(tmp_path / "a.txt"))
    (tmp_path / "packed.tar").write_text("no tar")
    with pytest.raises(UserError, match="packed.tar cannot be unpacked"):
        utils.unpack(str(tmp_path / "packed.tar"))


def test_tars_are_not_unpacked_without_a_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match="a.tar cannot be unpacked safely by Python 3.*3.10.12 or"):
        utils.unpack(str(tmp_path / "a.tar"))
    assert not (tmp_path / "a.txt").exists()


def test_archives_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with tarfile.open(tmp_path / "inner/bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside.txt"), io.BytesIO())
    with pytest.raises(UserError, match="cannot be unpacked"):
        utils.unpack(str(tmp_path / "inner/bad.tar"))
    for name in ("../outside.txt", "a/../../outside.txt", "/outside.txt", "..\\outside.txt"):
        with zipfile.ZipFile(tmp_path / "inner/bad.zip", "w") as archive:
            archive.writestr("good.txt", "")
            archive.writestr(name, "")
        with pytest.raises(UserError, match=r"cannot be unpacked .*outside.txt' is outside of"):
            utils.unpack(str(tmp_path / "inner/bad.zip"))
    assert not list(tmp_path.rglob("*.txt"))


def test_damaged_archives(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(1000)
    with tarfile.open(tmp_path / "cut.tar.gz", "w:gz") as archive:
        archive.addfile(member := tarfile.TarInfo("a"), io.BytesIO())
        member.size = len(noise)
        archive.addfile(member, io.BytesIO(noise))
    whole = (tmp_path / "cut.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("damaged", "encrypted"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("a", "ab" * 1000)
    content = bytearray((tmp_path / "damaged.zip").read_bytes())
    content[33:38] = b"\xff" * 5  # of the packed bytes
    (tmp_path / "damaged.zip").write_bytes(content)
    content = bytearray((tmp_path / "encrypted.zip").read_bytes())
    content[6] |= 1  # the flag, in both headers
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(content)
    for name in ("cut.tar.gz", "damaged.zip", "encrypted.zip"):
        with pytest.raises(UserError, match=f"{name} cannot be unpacked .*; get it anew"):
            utils.unpack(str(tmp_path / name))


def test_folders_and_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = utils.get_root("flowers")
    assert root == "data/flowers" and Path(root).is_dir() and not utils.is_prepared(root)
    utils.mark_prepared(root)
    assert utils.is_prepared(root)
    Path("source").write_text("content")
    url = (tmp_path / "source").as_uri()
    assert utils.download_urls({"a": url}, root) == {"a": "data/flowers/a"}
    Path("source").unlink()
    assert Path(utils.download_url("a", url, root)).read_text() == "content"  # it is there


def test_people_are_asked_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(text: str) -> str:
        asked.append(text)
        assert len(asked) <= 2, "asked for what is there"
        (tmp_path / "a.tar").touch() if len(asked) == 2 else None
        return ""

    monkeypatch.setattr("builtins.input", answer)
    assert utils.prompt_download("a.tar", "http://x", str(tmp_path)) == str(tmp_path / "a.tar")
    assert len(asked) == 2 and "download a.tar from http://x" in asked[0]
    (tmp_path / "content").mkdir()
    utils.prompt_download("b.tar", "http://x", str(tmp_path), "content")
    assert len(asked) == 2

    def nobody(text: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    with pytest.raises(UserError, match=r"c.tar is missing; download c.tar from http://x"):
        utils.prompt_download("c.tar", "http://x", str(tmp_path))


def test_progress() -> None:
    with tqdm(disable=False, file=io.StringIO()) as bar:
        show = utils.reporthook(bar)
        show(2, 10, 50)
        show(3, 10, 50)
        assert (bar.n, bar.total) == (30, 50)


def test_square_crops() -> None:
    image = ramps(40, 60)
    np.testing.assert_array_equal(utils.quadratic_crop(image, (20, 10, 40, 20)), image[5:25, 20:40])
    assert utils.quadratic_crop(image, (20, 10, 40, 20), alpha=0.5).shape == (10, 10, 3)
    assert utils.quadratic_crop(image, (20, 10, 21, 10)).shape == (2, 2, 3)  # the smallest
    assert utils.quadratic_crop(image, (20, 10, 40, 20), alpha=0.99).shape == (19, 19, 3)
    for box in ((50, 10, 60, 20), (10, 30, 20, 40), (0, 10, 10, 20), (10, 0, 20, 10)):
        assert utils.quadratic_crop(image, box, alpha=2.0).shape == (20, 20, 3)
    corner = utils.quadratic_crop(image[..., 0], (0, 0, 10, 10), alpha=2.0)
    padded = np.pad(image[..., 0], 20, mode="reflect")
    np.testing.assert_array_equal(corner, padded[15:35, 15:35])


def thing(number: int) -> Annotation:
    return Annotation(0.1, "x", (0, 0, 1, 1), number, str(number))


def test_batches() -> None:
    items: list[dict[str, Any]] = [
        {
            "image": np.full((2, 2, 3), i, np.float32),
            "annotations": [thing(number) for number in range(i)],
            "caption": ["a", "b"],
            "point": (i, 2.0),
            "mirrored": np.array([[1, 2], [3, 4]])[:, ::-1],
        }
        for i in range(3)
    ]
    batch = utils.custom_collate(items)
    assert batch["image"].shape == (3, 2, 2, 3) and batch["image"].dtype == torch.float32
    assert [len(annotations) for annotations in batch["annotations"]] == [0, 1, 2]
    assert batch["annotations"][2][1] == thing(1)
    assert batch["caption"] == [["a"] * 3, ["b"] * 3]
    assert batch["point"][0].tolist() == [0, 1, 2]
    assert batch["mirrored"].tolist() == [[[2, 1], [4, 3]]] * 3
    items[1]["image"] = np.zeros((4, 2, 3), np.float32)
    with pytest.raises(UserError, match=r"'image' of a batch have several shapes, \(2, 2, 3\) and"):
        utils.custom_collate(items)
    with pytest.raises(UserError, match="of type list .*equal size"):
        utils.custom_collate([["a"], ["a", "b"]])


def test_what_makes_no_batch() -> None:
    with pytest.raises(UserError, match="some items of the data have no 'b'"):
        utils.custom_collate([{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1}])
    with pytest.raises(UserError, match="'a' of the data are of type NoneType, of which no batch"):
        utils.custom_collate([{"a": None}, {"a": None}])


def test_workers_are_forks_on_linux_unless_one_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str | None] = [None]
    monkeypatch.setattr(utils.multiprocessing, "get_start_method", lambda **_: chosen[0])
    monkeypatch.setattr(utils.sys, "platform", "linux")
    assert utils.start_method(2) == "fork" and utils.start_method(0) is None
    chosen[0] = "forkserver"
    assert utils.start_method(2) == "fork"
    chosen[0] = "spawn"
    assert utils.start_method(2) is None
    chosen[0] = None
    monkeypatch.setattr(utils.sys, "platform", "darwin")
    assert utils.start_method(2) is None
