"""What a change of files is noticed by: names, sizes and times; nothing is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch.utils.data import ConcatDataset

from taming.data.base import ImagePaths
from taming.data.custom import CustomTest
from taming.data.file_versions import version_of
from taming.data.files.lmdb_records import FILE
from taming.data.lsun import LSUNTrain
from taming.data.paired import PairedTrain
from taming.data.shards import Shards
from taming.data.tools.shard_writer import write_shards
from tests.data.test_lsun import write_database
from tests.kit.images import write_images


def touch(path: str | Path) -> None:
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def noticed(dataset: object, path: str | Path, config: object = None) -> bool:
    """Whether another time of change of a file is another version of the dataset."""
    before = version_of(dataset, config)
    assert version_of(dataset, config) == before
    touch(path)
    return version_of(dataset, config) != before


def test_names_sizes_and_times(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    dataset = ImagePaths(paths)
    found = {version_of(dataset), version_of(ImagePaths(paths[:2]))}
    found.add(version_of(ImagePaths(paths[::-1])))
    status = os.stat(paths[1])
    with open(paths[1], "ab") as file:
        file.write(b"more")
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    found.add(version_of(dataset))
    os.unlink(paths[2])
    found.add(version_of(dataset))
    assert len(found) == 5
    assert noticed(dataset, paths[0])


def test_images_of_datasets_that_wrap_and_join(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 4)
    (tmp_path / "list.txt").write_text("\n".join(paths[:2]))
    listed = CustomTest(size=8, test_images_list_file=str(tmp_path / "list.txt"))
    both = ConcatDataset([listed, ImagePaths(paths[2:])])
    assert all(noticed(both, path) for path in paths)
    assert not noticed(both, tmp_path / "list.txt")
    # With its config, which names it.
    config = {"size": 8, "parts": [{"test_images_list_file": str(tmp_path / "list.txt")}, None]}
    assert noticed(both, tmp_path / "list.txt", config)


def test_maps_beside_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    write_images(tmp_path / "maps", 3, seed=5)
    pairs = PairedTrain(str(tmp_path / "images"), str(tmp_path / "maps"), "image")
    (maps,) = pairs.maps.values()
    assert noticed(pairs, pairs.paths[1]) and noticed(pairs, maps.paths[0])


def test_archives_and_databases_are_files_of_their_own(tmp_path: Path) -> None:
    write_database(tmp_path / "tower_train_lmdb", 3)
    assert noticed(LSUNTrain("tower", 8, root=tmp_path), tmp_path / "tower_train_lmdb" / FILE)
    write_shards(ImagePaths(write_images(tmp_path / "images", 3)), tmp_path / "shards", 2)
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert len(shards) == 2
    assert all(noticed(Shards(str(tmp_path / "shards")), path) for path in shards)


def test_annotations_in_folders_that_a_config_names(tmp_path: Path) -> None:
    dataset = ImagePaths(write_images(tmp_path / "images", 1))
    named = [tmp_path / "a.csv", tmp_path / "annotations" / "b.json"]
    others = [tmp_path / "images" / "000.jpg", tmp_path / "annotations" / "deep" / "c.json"]
    for path in [*named, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    config = {"data_path": str(tmp_path), "size": 8}
    assert [noticed(dataset, path, config) for path in named] == [True, True]
    assert [noticed(dataset, path, config) for path in others] == [False, False]


def test_a_user_folder_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = write_images(tmp_path, 1)
    (tmp_path / "list.txt").write_text(paths[0])
    assert noticed(ImagePaths(paths), tmp_path / "list.txt", {"txt_file": "~/list.txt"})
