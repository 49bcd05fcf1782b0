from __future__ import annotations

import logging

import numpy as np
import pytest

from taming.data.scene_table import Limits, Objects, SceneCollector, SceneTable, converted
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
    assert inside.bbox == (0.1, 0.7, 0.3, 0.2)  # exactly: 0.1 + 0.3 - 0.1 would be another number
    np.testing.assert_allclose(cut.bbox, (0, 0.5, 0.3, 0.5))
    assert (inside.source, cut.source, inside.image_id) == (None, "drawn", "7")
    assert (inside.is_group_of, cut.is_group_of, cut.id) == (False, True, 1)


@pytest.mark.parametrize(
    "box", [[0.9, 0, 0.2, 1], [-0.5, 0, 1, 1], [0, 0, -0.1, 1], [float("nan"), 0, 1, 1]]
)
def test_impossible_boxes(box: list[float], caplog: pytest.LogCaptureFixture) -> None:
    boxes = [[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.5, 0.5], box]
    with pytest.raises(UserError, match=r"data: line 3 has a box outside its image \(x, y, width"):
        collect(boxes)
    with caplog.at_level(logging.WARNING):
        assert len(collect(boxes, "skip").annotations(0, "", ["a"])) == 3
    assert "left out 1 objects, the first because line 3" in caplog.text


def test_no_objects() -> None:
    assert collect([]).annotations(0, "", []) == []


def test_rows_that_cannot_be_converted_are_handed_back() -> None:
    bad: list[str] = []
    rows, numbers = converted(
        ["1", "x", "3"], lambda rows: list(map(int, rows)), lambda row, _: bad.append(row)
    )
    assert (rows, numbers, bad) == (["1", "3"], [1, 3], ["x"])
