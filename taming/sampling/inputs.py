"""Inputs of one sample, of a dataset or of files that a user gives: an image and a condition."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.data.base import ImageFiles
from taming.data.seeding import SeededDataset
from taming.data.utils import custom_collate
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.first_stage import FirstStage
from taming.sampling import scenes
from taming.sampling.conditions import cut_to_tokens, image_condition_stage, read_input
from taming.sampling.scenes import Scene, SceneBuilder, scene_dataset
from taming.sampling.sizes import pixels_per_token, trained_shape, trained_size

# Side, in pixels, of pictures of a condition that has no pixels of its own.
PICTURE_SIDE = 384


@dataclass(frozen=True)
class SampleInputs:
    """Inputs of one sample, cut to whole tokens."""

    shape: tuple[int, int]  # height and width of the sample in tokens
    x: Tensor | None = None  # an image [1, C, H, W] in [-1, 1] of that size
    c: Tensor | None = None  # the condition as `model.get_input` gives it, batch size 1
    scene: Scene | None = None  # or that of a model of scenes, whose tokens depend on the window
    builder: SceneBuilder | None = None
    number: int = 0  # the item's index in its dataset

    @property
    def condition_hash(self) -> str:
        """What tells conditions, and the sizes of samples, apart."""
        digest = hashlib.sha256(repr((self.shape, self.scene)).encode())
        if self.c is not None:
            digest.update(self.c.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def inputs_of_item(model: Net2NetTransformer, dataset: SeededDataset, number: int) -> SampleInputs:
    """A dataset's item as the model reads it in training."""
    x, c = model.get_xc(custom_collate([dataset.entries(number)]))
    cut, shape = _cut(model, x)
    if c.dim() == 4 and c.shape[2:] == x.shape[2:]:
        c = c[:, :, : cut.shape[2], : cut.shape[3]]
    condition = None if model.condition_kind == "none" else c
    return SampleInputs(shape, cut, condition, number=number)


def has_scenes(model: Net2NetTransformer, dataset: SeededDataset | None) -> bool:
    """Whether the model's conditions are scenes of the dataset."""
    return dataset is not None and model.cond_stage_key in scenes.builders_of(dataset.dataset)


def class_names(dataset: SeededDataset) -> dict[int, str]:
    """What the classes of a dataset are called, by number; empty for datasets without names."""
    data = dataset.dataset
    if not isinstance(data, ImageFiles) or not {"class_label", "human_label"} <= data.labels.keys():
        return {}
    numbers, items = np.unique(np.asarray(data.labels["class_label"]), return_index=True)
    names = data.labels["human_label"]
    return {int(number): str(names[int(item)]) for number, item in zip(numbers, items, strict=True)}


def inputs_of_example(
    model: Net2NetTransformer, dataset: SeededDataset, number: int
) -> SampleInputs:
    """`inputs_of_item`; scenes are kept as such, so that they can be sampled at other sizes."""
    if not has_scenes(model, dataset):
        return inputs_of_item(model, dataset, number)
    scene, image = scenes.read_scene(dataset, number)
    x, shape = _cut(model, model.get_input(model.first_stage_key, {"image": image}))
    builder = scenes.builders_of(dataset.dataset)[model.cond_stage_key]
    return SampleInputs(shape, x, scene=scene, builder=builder, number=number)


def _cut(model: Net2NetTransformer, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Images cut to whole tokens, and their (height, width) in tokens."""
    factor = pixels_per_token(model)
    cut = cut_to_tokens(x, factor)
    return cut, (cut.shape[2] // factor, cut.shape[3] // factor)


def inputs_of_files(
    model: Net2NetTransformer,
    dataset: SeededDataset | None,
    image: str | None,
    condition: str | None,
    reduce: bool = True,
) -> SampleInputs:
    """Inputs from files, at the training's size if there are none.

    Args:
        dataset: knows the classes of a model of scenes.
        image: one to keep parts of.
        condition: an image for models of those, a layout for models of scenes (see `read_layout`).
        reduce: images that are larger than the training's are scaled down until one side fits.

    Raises:
        UserError: for files that are something else, or of different sizes.
    """
    c, scene, builder = None, None, None
    x = None if image is None else _read(model, model.first_stage_model, image, reduce)
    if condition is not None and dataset is not None and has_scenes(model, dataset):
        scene, builder = scenes.layout_of(condition, dataset, model.cond_stage_key)
    elif condition is not None:
        c = _read(model, image_condition_stage(model), condition, reduce)
    pixels = [part.shape[2:] for part in (x, c) if part is not None]
    if len(pixels) == 2 and pixels[0] != pixels[1]:
        sizes = [f"{width} x {height}" for height, width in pixels]
        raise UserError(
            f"the image gives {sizes[0]} pixels and the condition {sizes[1]}; make them equal"
        )
    factor = pixels_per_token(model)
    shape = (pixels[0][0] // factor, pixels[0][1] // factor) if pixels else trained_shape(model)
    return SampleInputs(shape, x, c, scene, builder)


def _read(model: Net2NetTransformer, stage: FirstStage, path: str, reduce: bool) -> Tensor:
    factor = pixels_per_token(model)
    x = read_input(stage, path, reduce_to=trained_size(model) if reduce else None)
    return cut_to_tokens(x, factor)


def reads_files(model: Net2NetTransformer, dataset: SeededDataset | None) -> bool:
    """Whether the model's condition can come from a file."""
    return model.condition_kind == "image" or has_scenes(model, dataset)


def scaled(model: Net2NetTransformer, inputs: SampleInputs, scale: float) -> SampleInputs:
    """The same at `scale` times the size, in whole tokens; one-hot labels stay one-hot."""
    if scale == 1:
        return inputs
    factor = pixels_per_token(model)
    height, width = (max(1, round(side * scale)) for side in inputs.shape)
    size = (height * factor, width * factor)

    def resized(images: Tensor, labels: bool) -> Tensor:
        return F.interpolate(images, size, mode="nearest-exact" if labels else "bilinear")

    x, c = inputs.x, inputs.c
    x = None if x is None else resized(x, model.first_stage_model.reads_labels)
    if c is not None and c.dim() == 4:
        image = model.condition_kind == "image"
        c = resized(c, image and cast(FirstStage, model.cond_stage_model).reads_labels)
    return replace(inputs, shape=(height, width), x=x, c=c)


@torch.no_grad()
def condition_images(
    model: Net2NetTransformer, inputs: SampleInputs, dataset: SeededDataset | None = None
) -> dict[str, Tensor]:
    """What the condition looks like, by name: (3, H, W) in [-1, 1]; empty without a condition.

    Conditions that are images come twice, the second time as the transformer knows them.
    """
    key = model.cond_stage_key
    if inputs.scene is not None and inputs.builder is not None and dataset is not None:
        class_name = scene_dataset(dataset).get_textual_label_for_category_no
        unit = PICTURE_SIDE / max(inputs.shape)
        size = (round(inputs.shape[1] * unit), round(inputs.shape[0] * unit))
        tokens = inputs.scene.tokens(inputs.builder)
        return {key: inputs.builder.plot(tokens, class_name, size, 2)}
    if inputs.c is None or model.condition_kind == "none":
        return {}
    c = inputs.c.to(model.device)
    quant, _ = model.encode_to_c(c)
    images = model.condition_images(c, quant, (PICTURE_SIDE, PICTURE_SIDE))
    names = {"conditioning": key, "conditioning_rec": f"{key}, as the transformer knows it"}
    return {names[name]: image[0].float() for name, image in images.items()}
