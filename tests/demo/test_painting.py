"""What the canvas is given, and how what it sends is checked."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from taming.demo import painting
from taming.demo.painting import MOST_PIXELS, Label, check_map, check_size, colors, decode, pack
from taming.errors import UserError
from tests.kit.demo import Canvas, painted, png
from tests.support import ROOT

FIRST = np.arange(12, dtype=np.int32).reshape(3, 4)
LABELS = [Label(str(number), "#000000") for number in range(12)]


def paint(**options: Any) -> Any:
    return painting.paint("test canvas", FIRST, LABELS, **options)


def test_colors_differ() -> None:
    assert colors(3) == colors(5)[:3]
    rows = np.array([list(bytes.fromhex(color[1:])) for color in colors(16)], float)
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2) + 1000 * np.eye(16)
    assert apart.min() > 25


def test_numbers_are_packed_for_the_browser() -> None:
    numbers = np.array([[1, 256], [65535, 0]], np.int32)
    raw = zlib.decompress(base64.b64decode(pack(numbers)))
    assert struct.unpack("<4H", raw) == (1, 256, 65535, 0)


def test_what_is_painted_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Canvas(monkeypatch) and paint() is None
    canvas = Canvas(monkeypatch, test=painted(FIRST[::-1]))
    made = paint()
    assert (check_map(made.getvalue(), (3, 4)) == FIRST[::-1]).all()
    given = canvas.given["test canvas"]
    assert (given["height"], given["width"], given["cell"], given["mode"]) == (3, 4, 1, "paint")
    assert given["first"] == pack(FIRST) and len(given["labels"]) == 12


def test_a_canvas_of_another_document_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(monkeypatch, test=painted(FIRST))
    assert paint() is not None
    document = canvas.given["test canvas"]["document"]
    canvas.answers["test canvas"] = lambda _: {"document": document, **painted(FIRST)({})}
    assert paint() is not None
    assert paint(version=1) is None and paint(label=3) is None


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (None, "is no picture of its size; load the page again"),
        (7, "is no picture of its size"),
        ("x" * 30_000_000, "is no picture of its size"),
        ("****", "is no PNG"),
        ("é", "is no PNG"),
        (base64.b64encode(b"GIF").decode(), "painting.png"),
        (png(np.zeros((4, 3), np.uint8)), "has 4 x 3 pixels, and what it sent 3 x 4"),
        (png(np.zeros((3, 4, 3), np.uint8)), "picture in colors"),
    ],
)
def test_other_values_are_refused(
    sent: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Canvas(monkeypatch, test=lambda _: {"png": sent})
    with pytest.raises(UserError, match=words):
        paint()


@pytest.mark.parametrize("sent", [None, "text", {"class": "a"}])
def test_other_lists_of_boxes_are_refused(sent: object, monkeypatch: pytest.MonkeyPatch) -> None:
    Canvas(monkeypatch, test=lambda _: {"objects": sent})
    with pytest.raises(UserError, match="is no list of boxes"):
        painting.draw_boxes("test canvas", (8, 8), [], LABELS, 3)


def test_a_canvas_is_bounded() -> None:
    check_size(2048, 2048)
    with pytest.raises(UserError, match="4096 x 1025 pixels is too large to paint on: 4,194,304"):
        check_size(1025, 4096)
    with pytest.raises(UserError, match="1 x 4194305 pixels is too large"):
        painting.paint("k", np.broadcast_to(np.int32(0), (MOST_PIXELS + 1, 1)), LABELS)
    with pytest.raises(UserError, match="65,537 labels are too many"):
        painting.paint("k", FIRST, LABELS[:1] * 65_537)


def test_decoding_is_strict() -> None:
    assert decode(base64.b64encode(b"abc").decode()) == b"abc"
    with pytest.raises(UserError, match="no PNG"):
        decode("YWJj\n!")


def test_the_canvas_needs_nothing_from_elsewhere() -> None:
    folder = ROOT / "taming" / "demo" / "canvas"
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 330
        assert "http" not in text and "eval(" not in text and "innerHTML" not in text, path
        names = [part.split('"')[0] for part in text.split('from "./')[1:]]
        assert all((folder / name).is_file() for name in names)
