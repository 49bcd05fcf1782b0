"""Annotation files whose entries are of the wrong kind: one sentence names file and entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taming.data.files.annotations import all_fields, identity_of, read_csv, read_json
from taming.errors import UserError

GOOD = [{"id": 5, "width": 48, "name": "a"}, {"id": 6, "width": 48.5, "name": "b"}]


def test_fields_in_order() -> None:
    assert all_fields(GOOD, ("width", "id"), "f.json", "images") == [(48, 5), (48.5, 6)]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"width": None}, "f.json: the 'width' of entry 1 of images is no number"),
        ({"width": "4"}, "f.json: the 'width' of entry 1 of images is no number"),
        ({"name": {"a": 1}}, "f.json: the 'name' of entry 1 of images is no text"),
    ],
)
def test_values_of_another_type(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        all_fields([GOOD[0], GOOD[1] | entry], ("id", "width", "name"), "f.json", "images")


@pytest.mark.parametrize("records", [None, True, 3, "abc", {"a": 1}])
def test_no_list_at_all(records: Any) -> None:
    with pytest.raises(UserError, match="f.json: images must be a list"):
        all_fields(records, ("id",), "f.json", "images")


@pytest.mark.parametrize("records", [[None], [3], [[]], [{"name": "a"}]])
def test_entries_that_lack_a_field(records: Any) -> None:
    with pytest.raises(UserError, match="entry 0 of images has no 'id'"):
        all_fields(records, ("id", "width"), "f.json", "images")


def test_ids_can_be_looked_up() -> None:
    values = [identity_of(value) for value in (5, "a", [1], {"b": 2}, 5.0, 5.5)]
    assert list(map(repr, values)) == ["5", "'a'", "'[1]'", "\"{'b': 2}\"", "5", "5.5"]


def test_the_mark_of_windows_is_no_part_of_json(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "f.json", ["a"], "x") == {"a": 1}


def test_columns_by_name_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text('\ufeffa,b,c\n1,2,3\n\n4,"5,\n6",7\n')
    assert list(read_csv(file, ("c", "b"), "x")) == [(2, ("3", "2")), (5, ("7", "5,\n6"))]
    assert next(read_csv(file, ("b",), "x")) == (2, ("2",))
    rows = read_csv(file, ("first", "second"), "x", header=False)
    assert [values for _, values in rows][:2] == [("a", "b"), ("1", "2")]
