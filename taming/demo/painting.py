"""The canvas in the page: segmentations, boxes and masks that are painted.

What is in `canvas/` runs in the browser, without a build and without the network, and talks to
Streamlit through `window.postMessage`. What comes back is a PNG of label numbers, or a list of
boxes; both are bounded here, and read by the functions that read uploaded files.
"""

from __future__ import annotations

import base64
import binascii
import colorsys
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from PIL import Image
from streamlit.components.v1 import declare_component

from taming.errors import UserError
from taming.sampling.conditions import read_pixels
from taming.sampling.uploads import MOST_BYTES, stored

CANVAS = declare_component("canvas", path=str(Path(__file__).parent / "canvas"))
MOST_PIXELS = 4_194_304  # of a canvas
MOST_LABELS = 65_536  # that a PNG's 16 bits tell apart
MARK = "#ff2d87"  # of what is to be drawn again


@dataclass(frozen=True)
class Label:
    """What can be painted, or the class of a box; without a color it is transparent."""

    name: str
    color: str | None


@dataclass
class Painted:
    """What was painted, as an upload: a file's name and content."""

    name: str
    content: bytes

    def getvalue(self) -> bytes:
        """The content."""
        return self.content


def colors(count: int) -> list[str]:
    """Different colors, `#rrggbb`; those of the first labels differ most (golden angle)."""
    hues = [(0.58 + 0.618034 * number) % 1 for number in range(count)]
    tones = [(0.62, 0.90), (0.80, 0.68), (0.45, 0.98), (0.70, 0.50)]
    rgb = [colorsys.hsv_to_rgb(hue, *tones[n % len(tones)]) for n, hue in enumerate(hues)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in parts) for parts in rgb]


def labels_of(names: Sequence[str]) -> list[Label]:
    """A label of each name, in the color before it if there is one: `120 190 80 grass`.

    Those without a name, as of an empty line, are called by their numbers.
    """
    pairs = enumerate(zip(names, colors(len(names)), strict=True))
    return [
        _in_own_color(name) or Label(name.strip() or f"label {number}", color)
        for number, (name, color) in pairs
    ]


def _in_own_color(line: str) -> Label | None:
    *rgb, name = line.split(maxsplit=3) or [""]
    if len(rgb) != 3 or not all(part.isascii() and part.isdecimal() for part in rgb):
        return None
    values = [int(part) for part in rgb]
    return Label(name.strip(), f"#{bytes(values).hex()}") if max(values) < 256 else None


def check_size(height: int, width: int) -> None:
    """Refuse (`UserError`) a canvas that is larger than a page can paint on."""
    if height * width > MOST_PIXELS:
        raise UserError(
            f"a canvas of {width} x {height} pixels is too large to paint on: {MOST_PIXELS:,} "
            "pixels are allowed; make it smaller, or upload a file"
        )


def paint(
    key: str,
    first: np.ndarray,
    labels: Sequence[Label],
    *,
    background: Image.Image | None = None,
    cell: int = 1,
    at_once: bool = False,
    version: object = 0,
    **options: Any,
) -> Painted | None:
    """A map of labels that is painted on, as a PNG; None until something is.

    Args:
        first: int (H, W), what is there at first; another one, or another `version`, starts over.
        background: what shows below labels without a color, and through the others.
        cell: side in pixels of the squares that are painted as a whole.
        at_once: the page gets every stroke when it ends, not a moment later.
        options: `help` describes the canvas, `choices` the labels; `brush` in pixels; `label` is
            the number of the one to begin with.

    Raises:
        UserError: for a canvas that is too large, and a value that is no map of its size.
    """
    height, width = first.shape
    check_size(height, width)
    if len(labels) > MOST_LABELS:
        raise UserError(f"{len(labels):,} labels are too many to paint with")
    arguments = {
        "mode": "paint",
        "first": pack(first),
        "labels": [vars(label) for label in labels],
        "background": None if background is None else data_url(background),
        "cell": cell,
        "width": width,
        "height": height,
        "label": 0,
        "brush": max(cell, min(height, width) // 16),
        **options,
    }
    value = _show(key, arguments, version, at_once)
    if value is None:
        return None
    content = decode(value.get("png"))
    now = check_map(content, (height, width))
    st.session_state[f"{key} now"] = (value["document"], pack(now))
    return Painted("painting.png", content)


def draw_boxes(
    key: str,
    size: tuple[int, int],
    first: Sequence[Mapping[str, Any]],
    labels: Sequence[Label],
    most: int,
) -> Painted | None:
    """Boxes with classes, as the JSON of a layout (see `read_layout`); None until there is one.

    Args:
        size: (height, width) of the canvas, in any unit.
        first: the objects that are there at first, `{"class": name, "box": [x0, y0, w, h]}`.
        most: so many boxes are allowed.

    Raises:
        UserError: for a value that is no list of objects.
    """
    arguments = {
        "mode": "boxes",
        "first": list(first),
        "labels": [vars(label) for label in labels],
        "height": size[0],
        "width": size[1],
        "most": most,
        "label": 0,
        "choices": "Classes",
        "help": "Boxes with classes: drag to draw one, n adds one, comma and period choose one, "
        "arrow keys move it and with Shift resize it, Delete deletes it",
    }
    value = _show(key, arguments, 0, False)
    objects = list(first) if value is None else value.get("objects")
    if not isinstance(objects, list) or len(json.dumps(objects)) > MOST_BYTES:
        raise UserError("what the canvas sent is no list of boxes; load the page again")
    if value is not None:
        st.session_state[f"{key} now"] = (value["document"], objects)
    return Painted("boxes.json", json.dumps(objects).encode()) if objects else None


def _show(
    key: str, arguments: dict[str, Any], version: object, at_once: bool
) -> Mapping[str, Any] | None:
    """Show the canvas; its value, or that of before if the canvas is new in the page."""
    text = json.dumps([arguments, str(version)], sort_keys=True)
    document = sha256(text.encode()).hexdigest()[:16]
    kept, now = st.session_state.get(f"{key} now", ("", None))
    now = now if kept == document else None
    value = CANVAS(**arguments, document=document, now=now, at_once=at_once, key=key, default=None)
    if isinstance(value, dict) and value.get("document") == document:
        st.session_state[f"{key} value"] = value
        return value
    before: Mapping[str, Any] | None = st.session_state.get(f"{key} value")
    return before if before is not None and before["document"] == document else None


def pack(values: np.ndarray) -> str:
    """Numbers as the canvas reads them: 16 bits, little-endian, zlib, base64."""
    return base64.b64encode(zlib.compress(values.astype("<u2").tobytes())).decode()


def data_url(image: Image.Image) -> str:
    """An image as a PNG in an address."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def decode(text: object) -> bytes:
    """The bytes of a canvas's PNG; `UserError` for anything else."""
    if not isinstance(text, str) or len(text) > 4 * MOST_BYTES // 3:
        raise UserError("what the canvas sent is no picture of its size; load the page again")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("what the canvas sent is no PNG; load the page again") from None


def check_map(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """The numbers int32 (H, W) of a canvas's PNG, which has `size` (height, width).

    Raises:
        UserError: for what is no PNG of numbers, and another size.
    """
    with stored(Painted("painting.png", content)) as (path,):
        numbers = read_pixels(str(path), "labels")
    if numbers.shape != tuple(size):
        height, width = numbers.shape
        raise UserError(
            f"the canvas has {size[1]} x {size[0]} pixels, and what it sent {width} x {height}; "
            "load the page again"
        )
    return numbers
