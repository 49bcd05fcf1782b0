"""What a sample starts from: an example of the data, files of the user's, or a painting."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from taming.demo.links import Choices
from taming.demo.paper import paint_condition
from taming.demo.plain_text import escaped
from taming.demo.runs import Loaded
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.conditions import read_condition
from taming.sampling.inputs import (
    SampleInputs,
    has_scenes,
    inputs_of_example,
    inputs_of_files,
    reads_files,
    scaled,
)
from taming.sampling.sizes import pixels_per_token
from taming.sampling.uploads import IMAGE_TYPES, require_pixels, stored

LAYOUT_TYPES = ["yaml", "yml", "json"]
EXAMPLE, UPLOAD, PAINTING = "an example", "an upload", "a painting"


def sources(loaded: Loaded) -> list[str]:
    """What a sample can start from, by what the run's condition is."""
    examples = [EXAMPLE] if loaded.dataset is not None else []
    paints = [PAINTING] if reads_files(loaded.model, loaded.dataset) else []
    return [*examples, UPLOAD, *paints]


def choose_inputs(loaded: Loaded, choices: Choices, label_names: list[str]) -> SampleInputs | None:
    """The inputs; None while the canvas is empty."""
    model, dataset = loaded.model, loaded.dataset
    source = choices.choice("Start from", "source", sources(loaded), radio=True, horizontal=True)
    inputs: SampleInputs | None
    if source == EXAMPLE and dataset is not None:
        number = choices.number("Example", "example", (0, len(dataset) - 1), 0)
        inputs = inputs_of_example(model, dataset, number)
    elif source == PAINTING:
        inputs = paint_condition(loaded, choices, label_names)
    else:
        inputs = choose_files(loaded)
    own = 0 if inputs is None or inputs.c is None or model.n_classes is None else int(inputs.c[0])
    if model.n_classes is not None and inputs is not None:
        label = choose_class(choices, model.n_classes, own, loaded.names)
        inputs = replace(inputs, c=read_condition(model, str(label)))
    return inputs and scale(model, inputs, choices)


def scale(model: Net2NetTransformer, inputs: SampleInputs, choices: Choices) -> SampleInputs:
    """The inputs at the size that is asked for, within bounds."""
    factor = choices.slider(
        "Scale", "scale", (0.5, 4.0), 1.0, step=0.25, help="of the image's sides"
    )
    height, width = (int(factor * n) * pixels_per_token(model) for n in inputs.shape)
    require_pixels(height, width, "the sample")
    return scaled(model, inputs, factor)


def choose_class(choices: Choices, count: int, own: int, names: dict[int, str]) -> int:
    """A class by its name, or by its number where there are no names; `own` is the example's."""
    key = f"class of {own}"
    if not names:
        return choices.number("Class", "class", (0, count - 1), own, key=key, keep=False)
    with_names = [
        f"{number}: {names[number]}" if number in names else str(number) for number in range(count)
    ]
    number_of = {name: str(number) for number, name in enumerate(with_names)}
    chosen = choices.choice(
        "Class",
        "class",
        with_names,
        key=key,
        keep=False,
        default=own,
        text_of=number_of.__getitem__,
    )
    return int(number_of[chosen])


def choose_files(loaded: Loaded) -> SampleInputs:
    """Inputs from files that are uploaded."""
    side, condition = st.sidebar, None
    model, dataset = loaded.model, loaded.dataset
    image = side.file_uploader("Image to complete", IMAGE_TYPES, key="image")
    if reads_files(model, dataset):
        types = LAYOUT_TYPES if has_scenes(model, dataset) else IMAGE_TYPES
        label = f"Condition: {escaped(model.cond_stage_key)}"
        condition = side.file_uploader(label, types, key="condition")
    reduce = side.checkbox("Reduce large images to the size of training", True, key="reduce")
    with stored(image, condition) as (image_path, condition_path):
        return inputs_of_files(model, dataset, image_path, condition_path, reduce)
