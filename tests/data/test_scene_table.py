from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from taming.data.options import OnError
from taming.data.scene_table import Limits, Objects, Row, SceneCollector, SceneTable
from taming.errors import UserError


def collect(boxes: list[list[float]], on_error: str = "raise", area: float = 0.01) -> SceneTable:
    collector = SceneCollector(Limits(area, 0, 9), ("is_group_of",), on_error, "data")  # type: ignore[arg-type]
    count = len(boxes)
    for start in range(0, count, 2):  # in several parts
        rows = range(start, min(start + 2, count))
        collector.add(
            Objects(
                images=[0 for _ in rows],
                boxes=np.array(boxes)[list(rows)],
                categories=[0 for _ in rows],
                ids=list(rows),
                confidences=[0.5 for _ in rows],
                flags=[row % 2 for row in rows],
                sources=["", "drawn"][: len(rows)],
                place=lambda row, start=start: f"line {start + row}",  # type: ignore[misc]
            )
        )
    return collector.table(1)[0]


def test_boxes_that_stick_out_a_little_are_cut_off() -> None:
    table = collect([[0.1, 0.7, 0.3, 0.2], [-0.01, 0.5, 0.31, 0.51], [0.9, 0.9, 0.01, 0.01]])
    inside, cut = table.annotations(0, "7", ["a"])
    np.testing.assert_allclose((inside.area, cut.area), (0.06, 0.15))
    assert inside.bbox == (0.1, 0.7, 0.3, 0.2)  # exactly: 0.1 + 0.3 - 0.1 would be another number
    np.testing.assert_allclose(cut.bbox, (0, 0.5, 0.3, 0.5))
    assert (inside.source, cut.source, inside.image_id) == (None, "drawn", "7")
    assert (inside.is_group_of, cut.is_group_of, cut.id) == (False, True, 1)


@pytest.mark.parametrize(
    "box",
    [[0.9, 0, 0.2, 1], [0, 0, 1, 1.03], [-0.5, 0, 1, 1], [0, 0, -0.1, 1], [float("nan"), 0, 1, 1]],
)
def test_impossible_boxes(box: list[float], caplog: pytest.LogCaptureFixture) -> None:
    boxes = [[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.5, 0.5], box]
    with pytest.raises(UserError, match=r"data: line 3 has a box outside its image \(x, y, width"):
        collect(boxes)
    with caplog.at_level(logging.WARNING):
        assert len(collect(boxes, "skip").annotations(0, "", ["a"])) == 3
    assert "left out 1 objects, the first because line 3" in caplog.text


def test_objects_are_larger_than_the_least_area() -> None:
    table = collect([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.6]], area=0.25)
    assert [one.id for one in table.annotations(0, "", ["a"])] == [1]


def test_no_objects() -> None:
    assert collect([]).annotations(0, "", []) == []


def lengths(rows: list[Row]) -> Objects:
    """Boxes as wide as the third field says."""
    count = len(rows)
    boxes = np.array([[0, 0, float(fields[2]), 1] for _, fields in rows]).reshape(count, 4)
    return Objects(
        images=[0] * count,
        boxes=boxes,
        categories=[0] * count,
        ids=[number for number, _ in rows],
        confidences=[1.0] * count,
        flags=[0] * count,
        sources=[""] * count,
        place=lambda number: f"line {rows[number][0]}",
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((3, ("b", "x", "0.5")), "data: line 3 is for image b, which is not listed; repair"),
        ((3, ("a", "x", "wide")), "data: line 3 cannot be read .could not convert .* 'wide'"),
        ((3, ("a", "x", "7")), "data: line 3 has a box outside its image"),
    ],
)
def test_rows_that_cannot_be_right_are_named_or_left_out(row: Row, message: str) -> None:
    rows: list[Row] = [(1, ("a", "x", "0.5")), (2, ("a", "unknown", "?")), row]

    def collected(on_error: OnError) -> SceneTable:
        collector = SceneCollector(Limits(0, 0, 9), (), on_error, "data")
        options: Any = {"images": {"a"}, "categories": {"x"}, "convert": lengths}
        collector.add_rows(rows, place="line {}".format, **options)
        return collector.table(1)[0]

    with pytest.raises(UserError, match=message):
        collected("raise")
    assert [one.id for one in collected("skip").annotations(0, "a", ["x"])] == [1]


def test_flags_keep_their_bits_where_only_some_are_known() -> None:
    known = ("is_occluded", "is_inside")
    collector = SceneCollector(Limits(0, 0, 9), known, "raise", "data")
    objects = lengths([(1, ("a", "x", "0.5")), (2, ("a", "x", "0.5"))])
    collector.add(replace(objects, flags=[0b00100, 0b10001]))
    found = collector.table(1)[0].annotations(0, "a", ["x"])
    assert [one.is_occluded for one in found] == [True, False]
    assert [one.is_inside for one in found] == [False, True]
    assert found[0].is_group_of is None
