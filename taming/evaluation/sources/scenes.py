"""Scenes as sets of images: those of the data, and those that a run samples for their layouts.

Every image has the boxes of its objects, so that they can be cut out of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.helper_types import BoundingBox, in_crop, touches
from taming.data.scene_crops import SceneCrop
from taming.data.seeding import SeededDataset
from taming.data.whole_images import has_whole_images, whole_image
from taming.devices import dtype_name
from taming.errors import DamagedImage, UserError, sentence
from taming.evaluation.sources.images import (
    ALONE,
    Batches,
    ImageSource,
    Share,
    SourceImage,
    by_size,
    key_of,
    pixel_digest,
)
from taming.evaluation.sources.resize import AS_IT_IS, NONE, PILLOW, Resizing
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.plain import device_of
from taming.pictures import to_rgb_pixels
from taming.sampling import Request, SampleSettings, requests_for_scene, sample_images
from taming.sampling.engine import rounds_by_batch
from taming.sampling.estimate import announced
from taming.sampling.scenes import Scene, builder_of, read_scene, scene_dataset
from taming.sampling.sizes import trained_shape

Boxes = tuple[BoundingBox, ...]
SIDE = 224  # of cut out objects: arXiv 2003.07449
ROUNDING = 1e-6  # of a pixel: a box that ends at a pixel's edge does not touch the next one


@dataclass(frozen=True)
class SceneImage(SourceImage):
    """An image with the boxes of its objects, as shares of it."""

    boxes: Boxes = ()


def visible_boxes(scene: Scene) -> Boxes:
    """What of the objects' boxes the image shows, as shares of it: after its crop and flip."""
    boxes = (annotation.bbox for annotation in scene.annotations)
    return tuple(
        in_crop(box, scene.crop, scene.flipped) for box in boxes if touches(box, scene.crop)
    )


def cut_objects(
    pixels: Tensor, boxes: Sequence[BoundingBox], min_side: float, side: int = SIDE
) -> Tensor:
    """The objects of an image uint8 (3, H, W), resized: uint8 (N, 3, side, side).

    A crop has all pixels that its box touches, and is resized as an image of its own: nothing
    around it shines in. Boxes of less than `min_side` pixels in either way are left out.
    """
    height, width = pixels.shape[1:]
    crops = []
    for x0, y0, wide, high in boxes:
        if min(wide * width, high * height) < min_side:
            continue
        columns, rows = _touched(x0, wide, width), _touched(y0, high, height)
        image = Image.fromarray(pixels[:, rows, columns].permute(1, 2, 0).numpy())
        crop = image.resize((side, side), Image.Resampling.BILINEAR)
        crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(crops) if crops else torch.zeros(0, 3, side, side, dtype=torch.uint8)


def _touched(start: float, share: float, pixels: int) -> slice:
    first = math.floor(start * pixels + ROUNDING)
    return slice(max(first, 0), min(math.ceil((start + share) * pixels - ROUNDING), pixels))


class Layouts:
    """The first `count` scenes of an `AnnotatedObjectsDataset`, each decided by its index alone.

    `condition` is "objects_bbox" or "objects_center_points"; UserError if the data have none.
    """

    def __init__(self, seeded: SeededDataset, count: int | None, condition: str) -> None:
        self.builder = builder_of(seeded.dataset, condition)
        self.seeded, self.condition = seeded, condition
        self.numbers: Sequence[int] = range(min(len(seeded), count or len(seeded)))

    def __len__(self) -> int:
        return len(self.numbers)

    def leave_out_damaged(self) -> list[str]:
        """Read all images, and leave out what is damaged; returns a sentence for each."""
        sentences, whole = [], []
        for number in tqdm(self.numbers, desc="checking layouts", delay=2, leave=False):
            try:
                read_scene(self.seeded, number)
                whole.append(number)
            except DamagedImage as error:
                sentences.append(sentence(error))
        if sentences and not whole:
            raise UserError(f"none of the layouts can be used; {sentences[0]}")
        self.numbers = whole if sentences else self.numbers
        return sentences

    def __getitem__(self, number: int) -> tuple[Scene, Tensor]:
        """The scene and its image, uint8 (3, H, W)."""
        scene, images = read_scene(self.seeded, self.numbers[number])
        return scene, to_rgb_pixels(images[0].permute(2, 0, 1))

    @cached_property
    def key(self) -> str:
        """SHA-256 of the images, the objects' boxes and the conditions."""
        digest = hashlib.sha256()
        numbers = range(len(self))
        for number in tqdm(numbers, desc="hashing layouts", delay=2, leave=False):
            scene, pixels = self[number]
            boxes, tokens = visible_boxes(scene), scene.tokens(self.builder).tolist()
            digest.update(pixel_digest(pixels.numpy()) + f"{boxes} {tokens};".encode())
        return digest.hexdigest()

    @property
    def dataset(self) -> AnnotatedObjectsDataset:
        return scene_dataset(self.seeded)

    @property
    def resizing(self) -> dict[str, Any]:
        """How the data resize and crop their images, as sets of images describe it."""
        transforms = self.dataset.transform_functions
        crops = [one for one in transforms if isinstance(one, SceneCrop)]
        if len(crops) != 1 or len(transforms) != 1:
            return {"resize": "by the dataset", "crop": "by the dataset", "size": None}
        side = crops[0].crop_size
        return {"resize": PILLOW, "crop": crops[0].method, "size": [side, side]}

    def describe(self) -> dict[str, Any]:
        return {"layouts": len(self), "condition": self.condition}


class RealScenes(ImageSource):
    """The images that the layouts were taken of, by the crop and flip of each.

    With a `resizing`, they are read from their files once more and resized by it, whatever its
    `crop`: boxes belong to the layout's own.
    """

    def __init__(self, layouts: Layouts, resizing: Resizing = AS_IT_IS) -> None:
        self.layouts, self.resizing = layouts, resizing
        if not resizing.changes_nothing and not has_whole_images(layouts.dataset):
            raise UserError(
                f"the images of {type(layouts.dataset).__name__} are no files that could be read "
                "whole; leave out --reference_resize and --reference_size"
            )

    def __len__(self) -> int:
        return len(self.layouts)

    def describe(self) -> dict[str, Any]:
        about = {"kind": "images of layouts", **self.layouts.describe()}
        own = self.layouts.resizing if self.resizing.changes_nothing else self.resizing.describe()
        return {**about, **own, "crop": self.layouts.resizing["crop"]}

    def content_key(self) -> str:
        resizing = self.resizing.key()
        return key_of(layouts=self.layouts.key, **resizing) if resizing else self.layouts.key

    def images(self, indices: Sequence[int], batch_size: int) -> Iterator[SourceImage]:
        for number in indices:
            scene, pixels = self.layouts[number]
            if self.resizing.size is not None:
                pixels = self._resized(number, scene)
            name = f"layout {self.layouts.numbers[number]}"
            yield _scene_image(number, pixels, name, visible_boxes(scene))

    def _resized(self, number: int, scene: Scene) -> Tensor:
        """What the layout shows of its file, uint8 (3, H, W); edges are at whole pixels."""
        whole, _ = whole_image(self.layouts.dataset, self.layouts.numbers[number])
        left, top, wide, high = scene.crop
        height, width = whole.shape[:2]
        h, w = (max(1, round(share * side)) for share, side in ((high, height), (wide, width)))
        y, x = (math.floor(n * m + ROUNDING) for n, m in ((top, height), (left, width)))
        shown = np.ascontiguousarray(whole[y : y + h, x : x + w])
        resized = replace(self.resizing, crop=NONE)(shown)
        return torch.from_numpy(np.ascontiguousarray(_mirrored(resized, scene)).transpose(2, 0, 1))


def _mirrored(pixels: np.ndarray, scene: Scene) -> np.ndarray:
    return pixels[:, ::-1] if scene.flipped else pixels


def _scene_image(index: int, pixels: Tensor, name: str, boxes: Boxes) -> SceneImage:
    return SceneImage(index, pixels, None, name, pixel_digest(pixels.numpy()), boxes=boxes)


@dataclass(frozen=True)
class SampledScenes(ImageSource):
    """`per_layout` samples of every layout; sample k of layout n has the index n * per_layout + k.

    They equal those of scripts/make_scene_samples.py with the same settings; not in bf16, where
    samples depend on how many are computed at once, and are of several layouts here.

    `identity` are JSON values that decide the model: the checkpoint's hash, its config.
    """

    layouts: Layouts
    model: Net2NetTransformer
    identity: Mapping[str, Any]
    per_layout: int = 5
    settings: SampleSettings = SampleSettings(top_k=100)
    seed: int = 0
    shape: tuple[int, int] | None = None  # height and width in tokens; None as trained
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    batch_size: int = 50  # at once; samples depend on it where `rounds_by_batch`

    def __len__(self) -> int:
        return len(self.layouts) * self.per_layout

    def describe(self) -> dict[str, Any]:
        shape = list(self.shape or trained_shape(self.model))
        sampler = {"samples_per_layout": self.per_layout, "seed": self.seed, "tokens": shape}
        sampler |= {**self.settings.describe(), "precision": dtype_name(self.dtype)}
        if rounds_by_batch(self.dtype):
            sampler["batch_size"] = self.batch_size
        about = {"kind": "scenes of a run", **self.layouts.describe()}
        about |= self.resizing.describe()
        return about | {"sampler": sampler, **self.identity}

    def content_key(self) -> str:
        device = device_of(self.model.transformer).type
        left_out = {"path", *self.resizing.describe()}
        about = {name: value for name, value in self.describe().items() if name not in left_out}
        setting = {"torch": torch.__version__, "device": device}
        numbers = list(self.layouts.numbers)
        return key_of(scenes=about, layouts=self.layouts.key, numbers=numbers, **setting)

    def batches(self, batch_size: int, share: Share = ALONE, skip: Container[int] = ()) -> Batches:
        return by_size(self._images(batch_size, share, skip), batch_size)

    def _images(self, batch_size: int, share: Share, skip: Container[int]) -> Iterator[SourceImage]:
        boxes: dict[int, Boxes] = {}
        places = {number: place for place, number in enumerate(self.layouts.numbers)}
        model, settings, requests = self.model, self.settings, self._requests(share, skip, boxes)
        at_once = self.batch_size if rounds_by_batch(self.dtype) else batch_size
        batch_size = min(at_once, len(self))  # which would be filled up
        count = -(-(len(self) - sum(n in skip for n in range(len(self)))) // share[1])
        samples = sample_images(
            model,
            announced(model, requests, settings, batch_size, self.shape, count=count),
            settings,
            batch_size=batch_size,
            seed=self.seed,
            shape=self.shape,
            compiled=self.compiled,
            filled=rounds_by_batch(self.dtype),
        )
        for sample in samples:
            number = sample.label or 0  # the layout's, of the dataset
            index = places[number] * self.per_layout + sample.number
            name = f"layout {number}, sample {sample.number}"
            yield _scene_image(index, to_rgb_pixels(sample.image), name, boxes[number])

    def _requests(
        self, share: Share, skip: Container[int], boxes: dict[int, Boxes]
    ) -> Iterator[Request]:
        for layout in range(share[0], len(self.layouts), share[1]):
            first = layout * self.per_layout
            wanted = [n for n in range(self.per_layout) if first + n not in skip]
            if wanted:
                scene, _ = self.layouts[layout]
                number = self.layouts.numbers[layout]  # whatever was left out before it
                boxes[number] = visible_boxes(scene)
                yield from requests_for_scene(scene, self.layouts.builder, number, wanted)
