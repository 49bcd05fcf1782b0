"""What there is to paint for a run: a segmentation, a picture, boxes, or a part to keep."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import streamlit as st
import torch
from PIL import Image
from torch import Tensor

from taming.data.conditional_builder.objects_center_points import Canvas
from taming.data.helper_types import mirrored
from taming.data.seeding import SeededDataset
from taming.demo.links import Choices
from taming.demo.painting import (
    MARK,
    MOST_PIXELS,
    Label,
    Painted,
    check_map,
    check_size,
    draw_boxes,
    labels_of,
    paint,
)
from taming.demo.runs import Loaded
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import Placed, resize_and_crop, to_uint8
from taming.sampling import scenes
from taming.sampling.completion import keep_mask
from taming.sampling.conditions import image_condition_stage
from taming.sampling.inputs import SampleInputs, has_scenes, inputs_of_example, inputs_of_files
from taming.sampling.scenes import Scene, SceneBuilder
from taming.sampling.sizes import pixels_per_token, trained_shape, trained_size
from taming.sampling.uploads import stored

PAINTS = {
    "black": "#000000",
    "white": "#ffffff",
    "gray": "#808080",
    "brown": "#7a4a20",
    "red": "#d62728",
    "orange": "#ff8c1a",
    "yellow": "#ffd92f",
    "green": "#2ca02c",
    "light green": "#9acd5a",
    "sky blue": "#87b5ff",
    "blue": "#1f4fd8",
    "purple": "#8a4fc8",
    "pink": "#ff9ec7",
}
GRAYS = 17  # from black to white
STROKES = "arrow keys move, space paints, brackets change the size, Ctrl+Z undoes"


def paint_condition(
    loaded: Loaded, choices: Choices, label_names: Sequence[str]
) -> SampleInputs | None:
    """Inputs from what is painted; None while there is nothing."""
    model, dataset = loaded.model, loaded.dataset
    begin = _example_to_begin_with(loaded, choices)
    if dataset is not None and has_scenes(model, dataset):
        painted = paint_boxes(model, dataset, begin)
        if painted is None:
            st.info("Draw a box of a class to begin with.", icon=":material/gesture:")
            return None
    else:
        size = _size_of_canvas(model, choices)
        if image_condition_stage(model).reads_labels:
            painted = paint_labels(model, size, begin, label_names)
        else:
            painted = paint_picture(model, size, begin)
    with stored(painted) as (path,):
        return inputs_of_files(model, dataset, None, path, False)


def _example_to_begin_with(loaded: Loaded, choices: Choices) -> SampleInputs | None:
    if loaded.dataset is None:
        return None
    last = len(loaded.dataset) - 1
    number = choices.number(
        "Begin with example", "begin", (-1, last), 0, help="-1: with an empty canvas"
    )
    return None if number < 0 else inputs_of_example(loaded.model, loaded.dataset, number)


def _size_of_canvas(model: Net2NetTransformer, choices: Choices) -> tuple[int, int]:
    """(height, width) in pixels, in whole tokens, by the training's size at first."""
    unit, (height, width) = pixels_per_token(model), trained_size(model)
    columns = st.sidebar.columns(2)
    most = max(MOST_PIXELS // unit, width, height)
    sides = [
        choices.number(name.title(), name, (unit, most), side, place=column, step=unit)
        for name, side, column in zip(("width", "height"), (width, height), columns, strict=True)
    ]
    width, height = (max(unit, side // unit * unit) for side in sides)
    check_size(height, width)
    return height, width


def paint_labels(
    model: Net2NetTransformer,
    size: tuple[int, int],
    begin: SampleInputs | None,
    label_names: Sequence[str],
) -> Painted:
    """A segmentation, as the PNG of its labels' numbers; at first it is the example's."""
    count = image_condition_stage(model).channels
    if label_names and len(label_names) != count:
        raise UserError(
            f"--label_names has {len(label_names)} lines, but the model has {count} labels"
        )
    names = list(label_names) or [f"label {number}" for number in range(count)]
    first = np.zeros(size, np.int32)
    if begin is not None and begin.c is not None:
        labels = begin.c[0].argmax(0).numpy().astype(np.int32)
        first = resize_and_crop(labels, size, Image.Resampling.NEAREST)
    options: dict[str, Any] = {
        "choices": "Labels",
        "help": f"A map of labels, {size[1]} x {size[0]} pixels: {STROKES}",
        "label": min(1, count - 1),
        "background": _picture_of(model, begin, size),
    }
    return paint("labels canvas", first, labels_of(names), **options) or as_png(first)


def paint_picture(
    model: Net2NetTransformer, size: tuple[int, int], begin: SampleInputs | None
) -> Painted:
    """A picture in a few colors, or in grays, for conditions that are images."""
    if image_condition_stage(model).channels == 1:
        tones = [round(255 * n / (GRAYS - 1)) for n in range(GRAYS)]
        labels = [
            Label(f"{round(tone / 2.55)} %", f"#{tone:02x}{tone:02x}{tone:02x}") for tone in tones
        ]
    else:
        labels = [Label(name, color) for name, color in PAINTS.items()]
    options: dict[str, Any] = {
        "choices": "Colors",
        "help": f"A picture, {size[1]} x {size[0]} pixels: {STROKES}",
        "label": 1,
        "background": _picture_of(model, begin, size),
    }
    first = np.zeros(size, np.int32)
    painted = paint("picture canvas", first, labels, **options)
    numbers = first if painted is None else check_map(painted.content, size)
    if numbers.max() >= len(labels):
        raise UserError(f"the canvas has {len(labels)} colors, and sent number {numbers.max()}")
    table = np.array([list(bytes.fromhex(str(label.color)[1:])) for label in labels], np.uint8)
    return as_png(table[numbers])


def _picture_of(
    model: Net2NetTransformer, begin: SampleInputs | None, size: tuple[int, int]
) -> Image.Image | None:
    """The example's image, to be traced."""
    if begin is None or begin.x is None:
        return None
    pixels = to_uint8(model.as_pictures(begin.x)[0]).permute(1, 2, 0).numpy()
    return Image.fromarray(resize_and_crop(pixels, size).squeeze())


def as_png(pixels: np.ndarray) -> Painted:
    """Numbers (H, W), or colors uint8 (H, W, 3), as a file."""
    content = io.BytesIO()
    if pixels.ndim == 2:
        pixels = pixels.astype(np.uint8 if pixels.max(initial=0) < 256 else np.uint16)
    Image.fromarray(pixels).save(content, "PNG")
    return Painted("painting.png", content.getvalue())


# ---------------------------------------------------------------------- boxes


def paint_boxes(
    model: Net2NetTransformer, dataset: SeededDataset, begin: SampleInputs | None
) -> Painted | None:
    """Boxes of the dataset's classes; at first they are the example's."""
    data = scenes.scene_dataset(dataset)
    builder = scenes.builders_of(data)[model.cond_stage_key]
    numbers = data.category_number
    ordered = sorted(data.categories.values(), key=lambda one: numbers[one.id])
    # As in the pictures of what the model reads.
    labels = [Label(category.name, Canvas.color(numbers[category.id])) for category in ordered]
    first: list[dict[str, Any]] = []
    if begin is not None and begin.scene is not None:
        first = objects_of(begin.scene, builder, data.get_textual_label_for_category_no)
    return draw_boxes("boxes canvas", trained_shape(model), first, labels, builder.no_max_objects)


def objects_of(
    scene: Scene, builder: SceneBuilder, name_of: Callable[[int], str]
) -> list[dict[str, Any]]:
    """The objects of a scene that its image shows, as those of a layout."""
    left, top, width, height = scene.crop
    objects = []
    for annotation in scene.annotations:
        x, y, w, h = annotation.bbox
        x0, x1 = (min(max((edge - left) / width, 0.0), 1.0) for edge in (x, x + w))
        y0, y1 = (min(max((edge - top) / height, 0.0), 1.0) for edge in (y, y + h))
        if x1 > x0 and y1 > y0:
            box = (x0, y0, x1 - x0, y1 - y0)
            shown = mirrored(box) if scene.flipped else box
            sides = [float(np.floor(side * 1e6) / 1e6) for side in shown]
            objects.append({"class": name_of(annotation.category_no), "box": sides})
    return objects[: builder.no_max_objects]


# ---------------------------------------------------------------------- masks


def paint_mask(
    key: str, picture: Image.Image, cell: int, *, at_once: bool = False, version: object = 0
) -> np.ndarray | None:
    """Where a picture is to be drawn again: bool (H, W) in pixels; None until something is."""
    width, height = picture.size
    painted = paint(
        key,
        np.zeros((height, width), np.int32),
        [Label("kept", None), Label("drawn again", MARK)],
        background=picture,
        cell=cell,
        label=1,
        at_once=at_once,
        version=version,
        brush=max(cell, min(height, width) // 5),
        choices="Mask",
        help=f"What is to be drawn again of a picture of {width} x {height} pixels: {STROKES}",
    )
    if painted is None:
        return None
    numbers = check_map(painted.content, (height, width))
    if numbers.max() > 1:
        raise UserError(f"a mask has the numbers 0 and 1, and the canvas sent {numbers.max()}")
    marked: np.ndarray = numbers == 1
    return marked if marked.any() else None


def kept_tokens(marked: np.ndarray, cell: int) -> Tensor:
    """Which tokens are kept, bool (h, w), of pixels bool (H, W) that are to be drawn again.

    Raises:
        UserError: if nothing would be kept.
    """
    if marked.all():
        return torch.zeros(marked.shape[0] // cell, marked.shape[1] // cell, dtype=torch.bool)
    mask = as_png(np.where(marked, 0, 255))
    with stored(mask) as (path,):
        height, width = marked.shape
        return keep_mask(str(path), Placed.whole((height, width)), cell)
