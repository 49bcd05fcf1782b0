"""Shards and their indices that claim what is not there."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from taming.data.files.shard_index import ShardColumns, find_shards, read_index, scan
from taming.data.files.tar_members import add_member, read_bytes
from taming.errors import UserError
from tests.kit.archives import sparse_tar


@pytest.mark.parametrize("name", ["a.jpg", "a.json", "a.txt"])
def test_sparse_members_are_refused(tmp_path: Path, name: str) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(sparse_tar(name, 2**40))
    with pytest.raises(UserError, match=f"a.tar holds '{name}' as a sparse file"):
        list(scan(str(tar)))


@pytest.mark.parametrize(
    "row",
    [
        b"{",
        b"1",
        b'["a"]',
        b'["a", 1, {}]',
        b'["a", {"jpg": 3}, {}]',
        b'["a", {}, 3]',
        b"[" * 9999,
        b'["\xff", {}, {}]',
    ],
)
def test_damaged_indices_are_named(tmp_path: Path, row: bytes) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(bytes(10))
    index = Path(f"{tar}.index")
    version = f"10 {tar.stat().st_mtime_ns}"
    lines = [version.encode(), json.dumps(["b", {"jpg": [1, 2]}, {}]).encode(), row]
    index.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match="a.tar.index is damaged"):
        list(read_index(str(tar)))


def test_metadata_of_others_that_is_no_object_is_an_entry(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("a.json", b"[1, 2]"), ("b.txt", b"a"), ("b.json", b'{"caption":0}')):
            add_member(archive, name, content)
    first, second = scan(str(tmp_path / "a.tar"))
    assert first.metadata == {"json": [1, 2]}
    assert second.metadata == {"caption": "a"}  # of the text file, whatever comes first
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        add_member(archive, "a.json", b"{")
    with pytest.raises(UserError, match="the shard .*b.tar cannot be read"):
        list(scan(str(tmp_path / "b.tar")))


def test_samples_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("x/1.jpg", "x/1.cls", "y/1.jpg", "y/1.cls"):
            add_member(archive, name, b"7")
    samples = list(scan(str(tmp_path / "a.tar")))
    assert [one.key for one in samples] == ["x/1", "y/1"]
    assert all(one.metadata == {"class_label": 7} and list(one.files) == ["jpg"] for one in samples)


def test_columns_of_several_shards(tmp_path: Path) -> None:
    fields = {"depth.png": b"dd", "JPG": b"jjj", "cls": b"7\n", "txt": b"a house\n"}
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for field, content in fields.items():
                add_member(archive, f"{name}.{field}", content)
    columns = ShardColumns(find_shards([f"{tmp_path}/a.tar", f"{tmp_path}/b*"]), ["depth"])
    assert list(columns.metadata["__key__"]) == ["a", "b"] and list(columns.lengths) == [1, 1]
    assert [read_bytes(path) for path in columns.paths["image"]] == [b"jjj"] * 2
    assert [read_bytes(path) for path in columns.paths["depth"]] == [b"dd"] * 2
    assert list(columns.metadata["caption"]) == ["a house"] * 2


def test_a_sample_in_the_padding_and_a_copy_are_seen(tmp_path: Path) -> None:
    """Tars are filled up to multiples of 10 KiB: their size does not tell what is added."""
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        add_member(archive, "a.jpg", b"x")
    size = tar.stat().st_size
    assert [one.key for one in read_index(str(tar))] == ["a"]
    with tarfile.open(tar, "a") as archive:
        add_member(archive, "b.jpg", b"y")
    assert tar.stat().st_size == size
    for _ in range(2):  # the second time from the new index
        assert [one.key for one in read_index(str(tar))] == ["a", "b"]
    copy = tmp_path / "copy.tar"
    shutil.copyfile(tar, copy)
    shutil.copyfile(f"{tar}.index", f"{copy}.index")
    assert [one.key for one in read_index(str(copy))] == ["a", "b"]
    version = f"{size} {copy.stat().st_mtime_ns}"
    assert Path(f"{copy}.index").read_text().splitlines()[0] == version


@pytest.mark.parametrize("folder", ["plain", "[a]", "2024 [set 1]/[b]"])
def test_shards_lie_in_folders_of_any_name(folder: str, tmp_path: Path) -> None:
    place = tmp_path / folder / "in"
    place.mkdir(parents=True)
    tars = [str(place / f"{name}.tar") for name in ("a-2", "a-[1]", "b")]
    for tar in tars:
        Path(tar).touch()
    assert find_shards(str(place)) == find_shards(f"{place}/*.tar") == tars
    assert find_shards(f"{tmp_path / folder}/*/a-*.tar") == tars[:2]
    assert find_shards([tars[1], f"{place}/[b].tar"]) == tars[1:]
    with pytest.raises(UserError, match="there are no shards .*in/c"):
        find_shards(f"{place}/c*")


def test_patterns_of_webdataset(tmp_path: Path) -> None:
    tars = [str(tmp_path / f"{split}-{n:03}.tar") for split in ("b", "a") for n in (9, 10)]
    for tar in tars:
        Path(tar).touch()
    assert find_shards(f"{tmp_path}/{{b,a}}-{{009..010}}.tar") == tars
    assert find_shards(f"{tmp_path}/{{b,a}}-0{{10..09}}.tar") == [tars[i] for i in (1, 0, 3, 2)]
    assert find_shards(f"{tmp_path}/a-{{009..010}}*") == tars[2:]
    odd = tmp_path / "x{1..2}.tar"
    odd.touch()
    assert find_shards(str(odd)) == [str(odd)]
    with pytest.raises(UserError, match="there is no shard .*a-011.tar, of .*999"):
        find_shards(f"{tmp_path}/a-{{009..999999999999}}.tar")
    for place in ("pipe:cat a.tar", "s3://bucket/{00..10}.tar", "https://x/a.tar"):
        with pytest.raises(UserError, match="shards are read from files; fetch them"):
            find_shards([place])


def test_files_that_macs_add_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("._a.jpg", "a.jpg", "x/._b.jpg", "x/b.seg.png", "x/b.jpg", ".DS_Store"):
            add_member(archive, name, name.encode())
    assert [one.key for one in scan(str(tmp_path / "a.tar"))] == ["a", "x/b"]
    columns = ShardColumns([str(tmp_path / "a.tar")])
    assert [read_bytes(path) for path in columns.paths["image"]] == [b"a.jpg", b"x/b.jpg"]


def test_relative_patterns_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[x]/y").mkdir(parents=True)
    for name in ("a.tar", "[x]/y/b.tar"):
        Path(name).touch()
    assert find_shards("*.tar") == ["a.tar"]
    assert find_shards("*/*/*.tar") == find_shards("[x]/*/*.tar") == ["[x]/y/b.tar"]
