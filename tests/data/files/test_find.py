from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from taming.data.files.find import (
    THREADS,
    class_folders,
    find_images,
    in_threads,
    relative_names,
    split_off,
)
from tests.kit.images import touch


def test_find_images_is_sorted_recursive_and_skips_the_rest(tmp_path: Path) -> None:
    wanted = [tmp_path / name for name in ("B.JPG", "a.png", "deep/c.webp")]
    touch(*wanted, tmp_path / "Thumbs.db", tmp_path / ".a.png", tmp_path / ".ipynb/d.png")
    os.symlink(tmp_path, tmp_path / "deep/up")
    touch(tmp_path / "__MACOSX/e.png")
    assert list(find_images(tmp_path)) == list(map(str, wanted))
    assert list(find_images(tmp_path, [".webp"])) == [str(wanted[2])]
    os.symlink(tmp_path / "deep", tmp_path / "__MACOSX/link")
    assert list(find_images(tmp_path / "__MACOSX", ["webp"])) == [
        str(tmp_path / "__MACOSX/link/c.webp")
    ]


def test_class_folders_are_sorted_as_numbers_if_they_are(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("10/a", "9/a", ".git/a", "__pycache__/a", "file")))
    assert class_folders(tmp_path) == ["9", "10"]
    touch(tmp_path / "b/a")
    assert class_folders(tmp_path) == ["10", "9", "b"] and class_folders(tmp_path / "no") == []


def test_split_is_fixed_and_barely_moves_when_files_are_added() -> None:
    names = [f"{i}.png" for i in range(200)]
    first = split_off(names, 0.1, seed=0)
    assert len(split_off(names[:196], 0.1, seed=0)) == 20  # rounded
    assert len(first) == 20 and first == split_off(names[::-1], 0.1, seed=0)
    assert first != split_off(names, 0.1, seed=1) != split_off(names, 0.1, seed=1, key="cat")
    grown = split_off([*names, *(f"new{i}.png" for i in range(200))], 0.1, seed=0)
    assert len(grown) == 40 and all(name in first for name in grown & set(names))


def test_split_leaves_something_on_both_sides_where_it_can() -> None:
    assert len(split_off(["a", "b"], 0.01, 0)) == 1
    assert len(split_off(["a", "b"], 0.99, 0)) == 1
    assert split_off(["a"], 0.5, 0) == set() == split_off(["a", "b"], 0.0, 0)


def test_work_in_threads_is_in_order_and_not_far_ahead() -> None:
    taken = 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        while taken < 30_000:
            taken += 1
            yield taken

    doubled = in_threads(numbers(), lambda number: 2 * number, "doubling")
    assert next(doubled) == 2 and taken < 256 * (2 * THREADS + 2)
    assert list(doubled) == list(range(4, 60_001, 2))


def test_relative_names_are_the_same_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their first parts are classes, as in the lists of ImageNet."""
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "a.png").touch()
    assert relative_names(tmp_path) == ["n1/a.png"]
    monkeypatch.setattr(os.path, "relpath", lambda path, folder: r"n1\a.png")
    monkeypatch.setattr(os, "sep", "\\")
    assert relative_names(tmp_path) == ["n1/a.png"]
