"""The copies of each image of a dataset that are encoded: random crops, and mirrored ones."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from taming.config_values import CountOrZero
from taming.data.augmentations import Augmentations
from taming.data.cropped_images import CroppedImageFiles
from taming.data.image_transforms import RandomHorizontalFlipReturn
from taming.data.scene_crops import SceneCrop
from taming.data.seeding import Position, SeededDataset
from taming.data.transforms import JointTransform
from taming.data.wrapping import held_by
from taming.errors import UserError

LOOKED_AT = 4  # items, to see whether anything in them is random
log = logging.getLogger(__name__)


class Copies(Dataset[Any]):
    """Items of a dataset, `draws` of each one after another: number = index * draws + draw.

    Draw k is the item as epoch k would have it, with a random crop if `crops` are asked for.
    Whatever else is random in it, such as the order of a scene's objects, differs as well. With
    `flips`, of each crop there is a copy that is as it is, and a mirrored one. A dataset of scenes
    mirrors the boxes with the image, so these are two draws; images are mirrored after loading,
    `mirrored_later`. The dataset's own random flips are switched off.

    Args:
        dataset: it is changed.
        crops: how many of each image; 0: the one that the dataset makes.
        seed: decides each draw, together with its number.

    Raises:
        UserError: if nothing is cropped, and nothing else is random either.
    """

    def __init__(
        self, dataset: Dataset[Any], crops: CountOrZero, flips: bool, seed: CountOrZero
    ) -> None:
        self._transforms = held_by(dataset, JointTransform)
        self._scene_crops = held_by(dataset, SceneCrop)
        self._scene_flips = held_by(dataset, RandomHorizontalFlipReturn)
        self._mirrors_itself = flips and bool(held_by(dataset, CroppedImageFiles))
        self.mirrored_later = flips and not self._mirrors_itself
        self._crops, self._flips = crops, flips
        self._augmentations: list[Any] = held_by(dataset, Augmentations)
        self.draws = max(crops, 1) * (2 if self._mirrors_itself else 1)
        self.copies = max(crops, 1) * (2 if flips else 1)
        self.images: int = len(dataset)  # type: ignore[arg-type]
        self.name = type(dataset).__name__
        self._seeded = SeededDataset(dataset, seed)
        if self._mirrors_itself and not (self._scene_crops or self._scene_flips):
            raise UserError(
                f"--flips: the setup_transform of {self.name} has nothing that mirrors scenes; "
                "leave --flips out"
            )
        if flips:
            self._flip(0.0)
        if crops:
            self._crop_at_random()
            self._require_differences(crops)

    def _flip(self, share: float) -> None:
        """Have the dataset mirror this share of its scenes, and of other images none."""
        for transform in self._transforms:
            transform.random_flip = False
        for crop in self._scene_crops:
            crop.flip_share = share
        for flip in self._scene_flips:
            flip.p = share

    def _crop_at_random(self) -> None:
        for transform in self._transforms:
            transform.random_crop = transform.crop_size > 0
        for crop in self._scene_crops:
            crop.method = "random-1d" if crop.method == "center" else crop.method

    def _require_differences(self, crops: int) -> None:
        crops_anything = any(transform.random_crop for transform in self._transforms)
        if crops == 1 or crops_anything:
            return
        for index in range(min(self.images, LOOKED_AT)):
            first, second = (self._seeded[Position(epoch, index)] for epoch in (0, 1))
            if any(not np.array_equal(first[key], second[key]) for key in first):
                return
        raise UserError(
            f"--crops {crops}: {self.name} crops nothing, so that all {crops} copies would be the "
            "same; leave --crops out, or give the dataset a crop_size or crop_method"
        )

    def say_what_is_fixed(self, split: str) -> None:
        """Warn, in one line, of random crops, augmentations and flips that are made once and
        for all."""
        random: dict[str, list[Any]] = {
            "crops": [t.random_crop and t.crop_size for t in self._transforms]
            + [crop.method.startswith("random") for crop in self._scene_crops],
            "augmentations": [t.augmentations for t in self._transforms] + self._augmentations,
            "flips": [t.random_flip for t in self._transforms]
            + [crop.flip_share > 0 for crop in self._scene_crops]
            + [flip.p > 0 for flip in self._scene_flips],
        }
        one_draw = self._crops <= 1
        once = {"crops": one_draw, "augmentations": one_draw, "flips": not self._flips}
        if fixed := [name for name, found in random.items() if once[name] and any(found)]:
            flags = {"crops": "--crops K", "augmentations": "--crops K", "flips": "--flips"}
            log.warning(
                "the random %s of data.params.%s are made once, and are the same in every epoch; "
                "for several copies of each image add %s",
                " and ".join(fixed),
                split,
                " ".join(dict.fromkeys(flags[name] for name in fixed)),
            )

    def __len__(self) -> int:
        return self.images * self.draws

    def __getitem__(self, number: int) -> Any:
        index, draw = divmod(number, self.draws)
        if self._mirrors_itself:
            draw, mirrored = divmod(draw, 2)
            self._flip(float(mirrored))
        return self._seeded[Position(draw, index)]
