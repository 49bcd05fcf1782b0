"""Scenes to sample (arXiv 2105.06458): objects of a dataset, or of a layout in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.data import Dataset

from taming.config import did_you_mean
from taming.config_files import load_yaml
from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.conditional_builder.objects_center_points import (
    ObjectsCenterPointsConditionalBuilder,
)
from taming.data.helper_types import WHOLE, Annotation, mirrored
from taming.data.seeding import SeededDataset
from taming.errors import UserError, absence, shorten
from taming.sampling.windows import Box
from taming.user_files import read_text

SceneBuilder = ObjectsCenterPointsConditionalBuilder  # or its subclass of boxes


@dataclass(frozen=True)
class Scene:
    """Objects in an image that is to be sampled."""

    name: str  # of the sample's files
    annotations: Sequence[Annotation]  # the objects, in the order of the tokens
    crop: Box = WHOLE  # what of the scene the image shows
    flipped: bool = False  # whether the image is mirrored

    def tokens(self, builder: SceneBuilder, window: Box = WHOLE) -> Tensor:
        """The condition int64 (n,) for a window of the image; by default for all of it."""
        x0, y0, width, height = mirrored(window) if self.flipped else window
        left, top, whole_width, whole_height = self.crop
        corner = (left + x0 * whole_width, top + y0 * whole_height)
        part = (*corner, width * whole_width, height * whole_height)
        return builder.build_in_order(self.annotations, part, self.flipped)


def builders_of(dataset: Dataset[Any]) -> Mapping[str, SceneBuilder]:
    """What turns scenes of a dataset into tokens, by condition; empty for datasets without."""
    if isinstance(dataset, AnnotatedObjectsDataset):
        return dataset.conditional_builders
    return {}


def builder_of(dataset: Dataset[Any], key: str) -> SceneBuilder:
    """What turns scenes of a dataset into tokens for the condition `key`, which it must have."""
    builders = builders_of(dataset)
    if key not in builders:
        hint = did_you_mean(key, builders)
        raise UserError(f"{type(dataset).__name__} has no condition '{key}'{hint}")
    return builders[key]


def condition_hash(scene: Scene, builder: SceneBuilder) -> str:
    """What tells the conditions of scenes apart, whatever their files are called."""
    return hashlib.sha256(scene.tokens(builder).contiguous().numpy().data).hexdigest()


def number_of_layout(condition: str) -> int:
    """Of a written layout, what scenes of data have their places for: its samples' random numbers.

    `condition` is its `condition_hash`: they are the same whichever layouts are sampled beside it.
    """
    return int(condition[:8], 16) >> 1  # 31 bits: with a sample's number, below 2^63


def scene_dataset(seeded: SeededDataset) -> AnnotatedObjectsDataset:
    """The dataset of scenes in a `SeededDataset`, as `builder_of` has checked."""
    assert isinstance(seeded.dataset, AnnotatedObjectsDataset)
    return seeded.dataset


def scene_name(number: int) -> str:
    """What the scene of that number of a dataset is called."""
    return f"{number:06}"


def read_scene(seeded: SeededDataset, number: int) -> tuple[Scene, Tensor]:
    """The scene of that number of a `SeededDataset` of scenes, and its image [1, H, W, 3].

    From then on, the dataset's items have what scenes need instead of tokens.
    """
    dataset = scene_dataset(seeded)
    dataset.keys = ["image", "crop_bbox", "flipped"]
    item, annotations = seeded[number], list(dataset.annotations(number))
    scene = Scene(scene_name(number), annotations, tuple(item["crop_bbox"]), item["flipped"])
    return scene, torch.from_numpy(item["image"])[None]


def layout_of(path: str, seeded: SeededDataset, key: str) -> tuple[Scene, SceneBuilder]:
    """The scene of `read_layout`, with a dataset's classes, and what turns it into tokens."""
    builder = builder_of(seeded.dataset, key)
    return read_layout(Path(path), scene_dataset(seeded), key), builder


def read_layout(path: Path, dataset: AnnotatedObjectsDataset, key: str) -> Scene:
    """A scene from a YAML or JSON file, a list of objects.

        - {class: person, box: [0.1, 0.2, 0.3, 0.7]}  # x0, y0, width, height, as shares

    For models whose classes tell them apart also `group: true`, `occluded`, `depiction`,
    `inside`.

    Raises:
        UserError: for a file that is no layout, an unknown class, or a box outside of the image.
    """
    if not path.is_file():
        raise UserError(absence("layout", path))
    content = load_yaml(path, lambda file: yaml.safe_load(read_text(file)), "neither YAML nor JSON")
    if not isinstance(content, list):
        raise UserError(f"{path} must be a list of objects, each with a class and a box")
    if not content:
        raise UserError(f"{path} has no objects; give at least one, with a class and a box")
    builder = builder_of(dataset, key)
    if len(content) > builder.no_max_objects:
        raise UserError(
            f"{path} has {len(content)} objects; this model knows {builder.no_max_objects} at most"
        )
    numbers = {
        category.name: dataset.category_number[category.id]
        for category in dataset.categories.values()
    }
    annotations = [
        _object(entry, numbers, f"{path}, object {n + 1}") for n, entry in enumerate(content)
    ]
    return Scene(path.stem, annotations)


FLAGS = {
    "group": "is_group_of",
    "occluded": "is_occluded",
    "depiction": "is_depiction",
    "inside": "is_inside",
}


def _object(entry: Any, numbers: dict[str, int], where: str) -> Annotation:
    known = {"class", "box", *FLAGS}
    if not isinstance(entry, dict) or not {"class", "box"} <= entry.keys() <= known:
        raise UserError(f"{where} must have a class and a box, and perhaps {', '.join(FLAGS)}")
    name, box = entry["class"], entry["box"]
    if not isinstance(name, str) or name not in numbers:
        raise UserError(
            f"{where}: there is no class {shorten(name)}{did_you_mean(str(name), numbers)}"
        )
    shares = (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, int | float) and 0 <= side <= 1 for side in box)
    )
    if not shares or not (box[2] and box[3]) or box[0] + box[2] > 1 or box[1] + box[3] > 1:
        raise UserError(
            f"{where}: the box is [x0, y0, width, height], as shares of the image and inside of "
            f"it, not {shorten(box)}"
        )
    flags = {FLAGS[flag]: bool(entry[flag]) for flag in FLAGS if flag in entry}
    place = tuple(float(side) for side in box)
    return Annotation(box[2] * box[3], "", place, numbers[name], "", **flags)  # type: ignore[arg-type]
