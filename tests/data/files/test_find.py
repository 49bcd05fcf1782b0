from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

from taming.data.files.find import (
    HEADERS_CHECKED,
    check_spread,
    find_images,
    read_image_list,
    split_off,
    write_image_lists,
)
from taming.errors import UserError
from tests.data.written_files import write_image, write_images

REPOSITORY = Path(__file__).parents[3]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_images_is_sorted_recursive_and_skips_the_rest(tmp_path: Path) -> None:
    wanted = [tmp_path / name for name in ("B.JPG", "a.png", "deep/c.webp")]
    touch(*wanted, tmp_path / "Thumbs.db", tmp_path / ".a.png", tmp_path / ".ipynb/d.png")
    os.symlink(tmp_path, tmp_path / "deep/up")
    assert list(find_images(tmp_path)) == list(map(str, wanted))
    assert list(find_images(tmp_path, [".webp"])) == [str(wanted[2])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_list_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    touch(tmp_path / "here/a b.png", tmp_path / "lists/ü.png", tmp_path / "absolute.png")
    file = tmp_path / "lists/train.txt"
    lines = ["here/a b.png  ", "", "ü.png", str(tmp_path / "absolute.png")]
    file.write_bytes("\r\n".join(lines).encode(encoding))
    monkeypatch.chdir(tmp_path)
    expected = ["here/a b.png", str(tmp_path / "lists/ü.png"), lines[3]]
    assert list(read_image_list(file, "CustomTrain")) == expected


def test_working_directory_comes_before_the_lists_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.png", tmp_path / "lists/a.png")
    (tmp_path / "lists/train.txt").write_text("a.png\n")
    monkeypatch.chdir(tmp_path)
    assert list(read_image_list("lists/train.txt", "CustomTrain")) == ["a.png"]


def test_missing_list_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(UserError, match=f"CustomTrain: the list file {path} does not exist"):
            read_image_list(path, "CustomTrain")


def test_empty_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n  \n")
    with pytest.raises(UserError, match=r"CustomTrain: the list file .*a\.txt is empty"):
        read_image_list(tmp_path / "a.txt", "CustomTrain")


def test_missing_files_are_counted_and_the_first_has_its_line(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    lines = ["a.png", "", *[f"{i}.png" for i in range(700)]]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"line 3 of .*a\.txt: 0\.png .*700 of the 701 listed"):
        read_image_list(tmp_path / "a.txt", "CustomTrain")


def test_headers_are_checked_evenly_in_long_lists() -> None:
    few: list[int] = []
    many: list[int] = []
    check_spread(1000, few.append, "a list")
    check_spread(3 * HEADERS_CHECKED, many.append, "a list")
    assert sorted(few) == list(range(1000))
    assert sorted(many) == list(range(0, 3 * HEADERS_CHECKED, 3))


def test_split_is_fixed_and_barely_moves_when_files_are_added() -> None:
    names = [f"{i}.png" for i in range(200)]
    first = split_off(names, 0.1, seed=0)
    assert len(first) == 20 and first == split_off(names[::-1], 0.1, seed=0)
    assert first != split_off(names, 0.1, seed=1) != split_off(names, 0.1, seed=1, key="cat")
    grown = split_off([*names, *(f"new{i}.png" for i in range(200))], 0.1, seed=0)
    assert len(grown) == 40 and all(name in first for name in grown & set(names))


def test_split_leaves_something_on_both_sides_where_it_can() -> None:
    assert len(split_off(["a", "b"], 0.01, 0)) == 1
    assert len(split_off(["a", "b"], 0.99, 0)) == 1
    assert split_off(["a"], 0.5, 0) == set() == split_off(["a", "b"], 0.0, 0)


def test_written_lists_are_read_back(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 20)
    assert write_image_lists(tmp_path / "images", tmp_path / "lists", 0.1, seed=3) == (18, 2)
    train, test = (
        list(read_image_list(tmp_path / f"lists/{n}.txt", "x")) for n in ("train", "test")
    )
    assert sorted(train + test) == images and len(test) == 2


def test_lists_need_two_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="has 1 image files"):
        write_image_lists(tmp_path, tmp_path / "lists")


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["make_image_list.py", *arguments])
    runpy.run_path(str(REPOSITORY / "scripts/make_image_list.py"), run_name="__main__")


def test_script_says_where_the_lists_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 4)
    monkeypatch.chdir(tmp_path)
    run_script(monkeypatch, "images")
    said = capsys.readouterr().out
    assert said == "data/own/train.txt lists 3 images, data/own/test.txt 1\n"
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, "absent")
    assert capsys.readouterr().err.startswith("error: absent has 0 image files")
