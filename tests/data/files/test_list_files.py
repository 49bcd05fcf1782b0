from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from taming.data.files.list_files import (
    ListPair,
    read_image_list,
    read_pairs,
    write_image_lists,
    write_list,
)
from taming.errors import UserError
from tests.kit.images import touch, write_image, write_images

REPOSITORY = Path(__file__).parents[3]


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
    missing, folder = tmp_path / "no.txt", tmp_path / "a b"
    folder.mkdir()
    with pytest.raises(UserError, match=f"CustomTrain: there is no list file {missing}; .* FOLDER"):
        read_image_list(missing, "CustomTrain")
    line = (
        f"{folder} is a folder, not a list file; .* python scripts/make_image_list.py '{folder}' w"
    )
    with pytest.raises(UserError, match=f"CustomTrain: {line}"):
        read_image_list(folder, "CustomTrain")


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


def test_written_lists_are_read_back(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 20)
    assert write_image_lists([tmp_path / "images"], tmp_path / "lists", 0.1, seed=3) == (18, 2, [])
    train, test = (
        list(read_image_list(tmp_path / f"lists/{n}.txt", "x")) for n in ("train", "test")
    )
    assert sorted(train + test) == images and len(test) == 2
    write_image_lists([tmp_path / "images"], tmp_path / "lists", 0.1, seed=4)
    assert list(read_image_list(tmp_path / "lists/test.txt", "x")) != test


def test_lists_of_several_folders_have_a_share_of_each(tmp_path: Path) -> None:
    folders = [tmp_path / "photographs", tmp_path / "drawings"]
    images = [set(write_images(folder, 10)) for folder in folders]  # of the same names
    assert write_image_lists([*folders, folders[0]], tmp_path / "lists", 0.2) == (16, 4, [])
    train, test = (
        set(read_image_list(tmp_path / f"lists/{n}.txt", "x")) for n in ("train", "test")
    )
    assert train | test == images[0] | images[1] and not train & test
    assert [len(own & test) for own in images] == [2, 2]
    with pytest.raises(UserError, match="there is no folder absent"):
        write_image_lists([*folders, "absent"], tmp_path / "lists")


def test_lists_need_two_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="has 1 image files"):
        write_image_lists([tmp_path], tmp_path / "lists")


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
    (tmp_path / "images" / "bad.png").write_text("no image")
    (tmp_path / "images" / "empty.jpg").touch()
    (tmp_path / "images" / "link.png").symlink_to("gone.png")
    run_script(monkeypatch, "images")
    said, left_out = capsys.readouterr()
    assert said == "data/own/train.txt lists 3 images, data/own/test.txt 1\n"
    lines = [line.removeprefix(f"left out: {tmp_path}/images/") for line in left_out.splitlines()]
    assert lines[:2] == ["bad.png is no image that Pillow can read", "empty.jpg is empty (0 bytes)"]
    assert lines[2:] == ["link.png does not exist", "left out 3 files that are no images"]
    listed = [
        *read_image_list("data/own/train.txt", "x"),
        *read_image_list("data/own/test.txt", "x"),
    ]
    assert sorted(listed) == sorted(map(str, (tmp_path / "images").glob("[0-9]*")))
    for path in listed[1:]:
        Path(path).unlink()
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, "images")
    assert "has 1 image files that can be read, and 3 others" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, "absent")
    assert capsys.readouterr().err.startswith("error: there is no folder absent")


@pytest.mark.parametrize(
    "name", ["two\nlines", "car\rriage", "blank ", "\u00a0wide", '"both"', 'a"b']
)
def test_any_name_is_written_such_that_it_is_read_back(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    images = [write_image(folder / f"{stem}.png") for stem in (f"{name}a", f" {name}", "plain")]
    images += write_images(folder / f"{name} ", 2)
    write_image_lists([folder], tmp_path / "lists", 0.5)
    listed = [*read_image_list(tmp_path / "lists/train.txt", "x")]
    listed += read_image_list(tmp_path / "lists/test.txt", "x")
    assert sorted(listed) == sorted(images)


def test_plain_lines_stay_plain_and_quotes_in_names_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / '"a.png"', tmp_path / "b.png")
    (tmp_path / "list.txt").write_text('"a.png"\n"b.png"\nb.png\n')
    assert list(read_image_list("list.txt", "x")) == ['"a.png"', "b.png", "b.png"]
    write_list("written.txt", ["b.png", "a b.png"])
    assert (tmp_path / "written.txt").read_text() == "b.png\na b.png\n"


def test_lists_that_are_made_once_hold_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["two\nlines.png", " blank.png", "c.png", "d.png"]
    touch(*(tmp_path / "images" / name for name in names))
    pair = ListPair("train.txt", "validation.txt", "images", ("png",), 0.5)
    listed = pair.read(True, "x", "raise").names, pair.read(False, "x", "raise").names
    assert sorted([*listed[0], *listed[1]]) == sorted(names)
    (tmp_path / "train.txt").unlink()  # it then gets what the other one does not name
    assert sorted(pair.read(True, "x", "raise").names) == sorted(listed[0])


def test_the_folder_of_validation_is_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["training/validation/a.png", "validation/b.png", "validation.png"]
    touch(*(tmp_path / "images" / name for name in names))
    pair = ListPair("t.txt", "v.txt", "images", ("png",), val_folder="validation")
    assert list(pair.read(False, "x", "raise").names) == [names[1]]
    assert sorted(pair.read(True, "x", "raise").names) == sorted({*names} - {names[1]})


@pytest.mark.parametrize("there", ["train.txt", "validation.txt"])
def test_a_missing_list_has_what_the_other_does_not_however_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(*(tmp_path / "images" / name for name in ("a.png", "b/c.png", '"d".png', "e.png")))
    pair = ListPair("train.txt", "validation.txt", "images", ("png",), 0.5)
    lines = ["./a.png", str(tmp_path / "images/b/../b/c.png"), '"\\"d\\".png"']
    Path(there).write_text("\n".join(lines))
    training = there == "validation.txt"
    assert list(pair.read(training, "x", "raise").names) == ["e.png"]
    Path("validation.txt" if there == "train.txt" else "train.txt").unlink()
    Path(there).write_text("\n".join([*lines, "of/another.png"]))
    with pytest.raises(UserError, match=f"line 4 of {there}: of/another.png does not exist"):
        pair.read(training, "x", "raise")
    assert list(pair.read(training, "x", "skip").names) == ["e.png"]


def test_a_missing_list_is_of_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["training/a.png", "training/b.png", "validation/c.png", "validation/d.png"]
    touch(*(tmp_path / "images" / name for name in names))
    pair = ListPair("t.txt", "v.txt", "images", ("png",), val_folder="validation")
    Path("v.txt").write_text("who/knows.png\ntraining/b.png\n")
    assert list(pair.read(True, "x", "raise").names) == names[:1]  # b is for validation here
    Path("t.txt").write_text("who/knows.png\nvalidation/d.png\n")
    Path("v.txt").unlink()
    assert list(pair.read(False, "x", "raise").names) == names[2:3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_pairs_in_files_of_windows(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "pairs.txt").write_bytes("a.png küche\r\n\r\nb.png x\r\n".encode(encoding))
    expected = {"a.png": "küche", "b.png": "x"}
    assert read_pairs(tmp_path / "pairs.txt", "image category") == expected


def test_lines_may_begin_at_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "home" / "a.png", 8, 8)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "list.txt").write_text("~/a.png\n")
    assert list(read_image_list("~/../list.txt", "Own")) == [str(tmp_path / "home" / "a.png")]


@pytest.mark.parametrize(
    "line", [b"~a\0b.png", b"~nosuchuser/a.png", b"a\0b", b'"~\\ud800"', b"~\xff", b'"\\u0000"']
)
def test_any_bytes_are_a_name_that_is_missing(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(line + b"\n")
    with pytest.raises(UserError, match="line 1 of .* does not exist"):
        read_image_list(tmp_path / "list.txt", "x")


def test_a_list_of_nobody_s_folder_is_missing() -> None:
    with pytest.raises(UserError, match="there is no list file ~nosuchuser/a.txt"):
        read_image_list("~nosuchuser/a.txt", "x")
