"""What the drawing of one image starts from: an example of the data, or what a person gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from taming.errors import UserError
from taming.sampling.conditions import cut_to_tokens, read_condition, read_picture, request_for
from taming.sampling.engine import Request
from taming.sampling.examples import read_example
from taming.sampling.scenes import Scene, builder_of, read_layout, read_scene, scene_requests
from taming.sampling.sizes import pixels_per_token

# Side, in pixels, of pictures of a condition that has no pixels of its own.
PICTURE_SIDE = 384


@dataclass(frozen=True)
class Start:
    """What an image is drawn from.

    Attributes:
        shape: its height and width in tokens.
        x: an image [1, C, H, W] in [-1, 1] of that size, parts of which may be kept.
        c: the condition as `model.get_input` gives it, batch size 1.
        scene: the condition of a model of scenes, whose tokens depend on the window.
        number: of the example.
    """

    shape: tuple[int, int]
    x: Tensor | None = None
    c: Tensor | None = None
    scene: Scene | None = None
    number: int = 0


def has_scenes(model: Any, dataset: Any) -> bool:
    """Whether a model's conditions are scenes of a `SeededDataset`."""
    builders = getattr(getattr(dataset, "dataset", None), "conditional_builders", {})
    return model.cond_stage_key in builders


def start_of_example(model: Any, dataset: Any, number: int) -> Start:
    """The item of that number of a `SeededDataset`, cut to whole tokens."""
    if not has_scenes(model, dataset):
        example = read_example(model, dataset, number)
        return Start(example.shape, example.x, example.c, number=number)
    scene, image = read_scene(dataset, number)
    factor = pixels_per_token(model)
    x = cut_to_tokens(model.get_input(model.first_stage_key, {"image": image}), factor)
    return Start((x.shape[2] // factor, x.shape[3] // factor), x, scene=scene, number=number)


def scaled(model: Any, start: Start, scale: float) -> Start:
    """The same at `scale` times the size, in whole tokens; one-hot labels stay so."""
    if scale == 1:
        return start
    factor = pixels_per_token(model)
    height, width = (max(1, round(side * scale)) for side in start.shape)
    size = (height * factor, width * factor)
    labels = hasattr(model.cond_stage_model, "colorize")
    x = None if start.x is None else F.interpolate(start.x, size, mode="bilinear")
    c = start.c
    if c is not None and c.dim() == 4:
        c = F.interpolate(c, size, mode="nearest-exact" if labels else "bilinear")
    return replace(start, shape=(height, width), x=x, c=c)


def request_of(model: Any, dataset: Any, start: Start, known: Tensor | None = None) -> Request:
    """The request for the image; `known` are codes (h, w) that are given, -1 elsewhere.

    Raises:
        UserError: where the model needs a condition and the start has none.
    """
    if start.scene is None:
        return request_for(model, start.c, 0, start.shape, known)
    builder = builder_of(dataset.dataset, model.cond_stage_key)
    (request,) = scene_requests(start.scene, builder, start.number, [0])
    return replace(request, known=known)


@torch.no_grad()
def pictures_of(model: Any, dataset: Any, start: Start) -> dict[str, Tensor]:
    """What the condition looks like, by name: (3, H, W) in [-1, 1]; nothing without a condition.

    Conditions that are images come twice, the second time as the transformer knows them.
    """
    key = model.cond_stage_key
    if start.scene is not None:
        builder = builder_of(dataset.dataset, key)
        name = dataset.dataset.get_textual_label_for_category_no
        side = PICTURE_SIDE / max(start.shape)
        size = (round(start.shape[1] * side), round(start.shape[0] * side))
        return {key: builder.plot(start.scene.tokens(builder), name, size, 2)}
    if start.c is None or model.be_unconditional:
        return {}
    c = start.c.to(model.device)
    quant, _ = model.encode_to_c(c)
    found = model.condition_images(c, quant, (PICTURE_SIDE, PICTURE_SIDE))
    names = {"conditioning": key, "conditioning_rec": f"{key}, as the transformer knows it"}
    return {names[name]: picture[0].float() for name, picture in found.items()}


def start_of_files(
    model: Any, dataset: Any, image: str | None, condition: str | None, reduce: bool = True
) -> Start:
    """What files give, cut to whole tokens; at the training's size where there are none.

    Args:
        image: one to keep parts of.
        condition: a map for models of those, a layout for models of scenes (see `read_layout`).
        reduce: images that are larger than the training's are scaled down until one side fits.

    Raises:
        UserError: for files that are something else, or of different sizes.
    """
    x = None if image is None else _image(model, image, reduce)
    c, scene = None, None
    if condition is not None and has_scenes(model, dataset):
        scene = read_layout(Path(condition), dataset.dataset, model.cond_stage_key)
    elif condition is not None:
        c = _map(model, condition, reduce)
    pixels = [part.shape[2:] for part in (x, c) if part is not None]
    if len(pixels) == 2 and pixels[0] != pixels[1]:
        sizes = [f"{width} x {height}" for height, width in pixels]
        raise UserError(
            f"the image gives {sizes[0]} pixels and the condition {sizes[1]}; make them equal"
        )
    factor = pixels_per_token(model)
    height, width = (side // factor for side in pixels[0]) if pixels else model.latent_shape()[1:]
    return Start((height, width), x, c, scene)


def reads_files(model: Any, dataset: Any) -> bool:
    """Whether a model's condition can come from a file."""
    maps = hasattr(model.cond_stage_model, "encoder") and not model.be_unconditional
    return maps or has_scenes(model, dataset)


def _image(model: Any, path: str, reduce: bool) -> Tensor:
    channels = model.first_stage_model.channels
    if reduce:
        _reduce(model, path, Image.Resampling.LANCZOS)
    return cut_to_tokens(read_picture(path, channels), pixels_per_token(model))


def _map(model: Any, path: str, reduce: bool) -> Tensor:
    labels = hasattr(model.cond_stage_model, "colorize")
    if reduce:
        _reduce(model, path, Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS)
    return cut_to_tokens(read_condition(model, path), pixels_per_token(model))


def _reduce(model: Any, path: str, resampling: Image.Resampling) -> None:
    """Scale the file down to the training's size, where it is an image and larger than that."""
    factor = pixels_per_token(model)
    height, width = (side * factor for side in model.latent_shape()[1:])
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            scale = max(height / image.height, width / image.width)
            if scale >= 1:
                return
            sides = (max(width, image.width * scale), max(height, image.height * scale))
            small = image.resize((round(sides[0]), round(sides[1])), resampling)
            small.save(path, "TIFF")  # which holds every mode
    except (OSError, ValueError):
        return  # whoever reads it says what it is
