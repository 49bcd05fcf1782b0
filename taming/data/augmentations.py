"""Pipelines of albumentations from configs: `augmentations: [{target: ..., params: ...}, ...]`.

They work on images uint8 (H, W, 3) after resizing and cropping, and move what belongs to an image
with it: maps, whose values are never mixed but taken from the nearest pixel, and boxes.
"""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from taming.config import instantiate_from_config, plain
from taming.errors import UserError, described
from taming.shipped import extra

Corners = tuple[float, float, float, float]
"""x0, y0, x1 and y1 as shares of the image."""
Arrays = dict[str, np.ndarray]

TRIED = 4  # runs on made-up images at the start, with probabilities as given and with all of them 1
FREE_SIDE = 96  # pixels of these images where no option says how large images are


def _albumentations() -> ModuleType:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it looks for news when it is imported
    try:
        import albumentations
    except ImportError:
        raise UserError(
            "augmentations are made by albumentations, which is not installed; "
            f"run: {extra('data')}"
        ) from None
    return albumentations


class Augmentations:
    """A pipeline, drawn by Python's global generator as crops are.

    Args:
        described: transforms, each a mapping of `target` and `params`; compositions such as
            `albumentations.OneOf` have further ones in their `transforms`.
        maps: names of the maps beside the image; True for numbers such as depth.
        boxes: whether boxes are given as well.
        side: pixels of the square images; 0 if they may have any size.
        source: the dataset, for errors.

    Raises:
        UserError: naming the transform, for one that does not exist or has no such parameter, that
            cannot be applied to the maps or boxes, or after which images differ in size.
    """

    def __init__(
        self,
        described: Sequence[Mapping[str, Any]],
        maps: Mapping[str, bool] | None = None,
        *,
        boxes: bool = False,
        side: int = 0,
        source: str = "the dataset",
    ) -> None:
        self.maps, self.source, self.side = dict(maps or {}), source, side
        transforms = _built(plain(described), "augmentations")
        self._dual = any(_moves(transform) for transform in _leaves(transforms))
        self.boxes = boxes and self._dual
        for transform in _leaves(transforms):
            self._try_alone(transform)
        self._pipeline = self._composed(transforms)
        self._try_sizes()

    def _composed(self, transforms: Sequence[Any]) -> Any:
        library, options = _albumentations(), {}
        if self.boxes:
            options["bbox_params"] = library.BboxParams(
                "albumentations", ["numbers"], clip=True, filter_invalid_bboxes=True
            )
        targets = dict.fromkeys(self.maps, "mask")
        return library.Compose(transforms, additional_targets=targets, **options)

    def __call__(
        self, arrays: Arrays, boxes: Sequence[Corners] = ()
    ) -> tuple[Arrays, list[tuple[int, Corners]]]:
        """The image, called "image", and its maps; the boxes that are left, with their numbers.

        Arrays are uint8 (H, W, 3), and (H, W) or (H, W, C) of any type.
        """
        seed = int(random.random() * 2**32)
        return self._run(self._pipeline, arrays, boxes, seed)

    def _run(
        self, pipeline: Any, arrays: Arrays, boxes: Sequence[Corners], seed: int
    ) -> tuple[Arrays, list[tuple[int, Corners]]]:
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        given: dict[str, Any] = {name: _as_mask(values) for name, values in arrays.items()}
        if self.boxes:
            given |= {"bboxes": np.array(boxes).reshape(-1, 4), "numbers": np.arange(len(boxes))}
        try:
            made = pipeline(**given)
        except Exception as error:  # the library's transforms, and the user's, raise anything
            height, width = arrays["image"].shape[:2]
            raise UserError(
                f"{self.source}: the augmentations fail on an image of {width} x {height} pixels: "
                f"{_first_line(error)}"
            ) from error
        changed = {name: np.ascontiguousarray(made[name]) for name in arrays}
        for name in self.maps.keys() & arrays.keys():
            changed[name] = changed[name].astype(arrays[name].dtype, copy=False)
        if not self.boxes:
            return changed, list(enumerate(boxes))
        numbers = [int(number) for number in made["numbers"]]
        corners = [tuple(map(float, box)) for box in made["bboxes"]]
        return changed, list(zip(numbers, corners, strict=True))  # type: ignore[arg-type]

    # ------------------------------------------------------------------ checks at the start

    def _try_alone(self, transform: Any) -> None:
        """Apply one transform to made-up images; raises `UserError` for what it cannot do."""
        name, kinds = type(transform).__name__, [target.value for target in _targets(transform)]
        if self.boxes and _moves(transform) and "BBoxes" not in kinds:
            raise self._refusal(f"the augmentation {name} cannot move boxes; leave it out")
        if self.maps and _moves(transform) and "Mask" not in kinds:
            maps = " and ".join(self.maps)
            raise self._refusal(f"the augmentation {name} cannot change {maps}; leave it out")
        sure = copy.deepcopy(transform)
        sure.p = 1.0
        arrays, boxes = self._made_up()
        try:
            made, _ = self._run(self._composed([sure]), arrays, boxes, seed=0)
        except UserError as error:
            reason = _first_line(error.__cause__ or error)
            if isinstance(error.__cause__, KeyError):
                what = {"'bboxes'": "boxes", "'mask'": "a mask"}.get(reason, reason)
                reason = f"it needs {what}, which the items do not have; leave it out"
            raise self._refusal(f"the augmentation {name} cannot be used here: {reason}") from None
        image = made["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise self._refusal(
                f"the augmentation {name} makes {image.dtype} {image.shape} of an image, and uint8 "
                "(height, width, 3) is needed; leave it out"
            )

    def _try_sizes(self) -> None:
        """Refuse pipelines after which images have several sizes, or maps others than images."""
        rare = [t for t in _leaves(self._pipeline.transforms) if t.p < 1]
        changed = [self._pipeline]
        for p in (0.0, 1.0):
            pipeline = copy.deepcopy(self._pipeline)
            for transform in _leaves(pipeline.transforms):
                if transform.p < 1:
                    transform.p = p
            changed.append(pipeline)
        arrays, boxes = self._made_up()
        sizes: set[tuple[int, ...]] = set()
        for pipeline in changed if rare else changed[:1]:
            for seed in range(TRIED):
                made, _ = self._run(pipeline, arrays, boxes, seed)
                shapes = {values.shape[:2] for values in made.values()}
                if len(shapes) > 1:
                    raise self._refusal("augmented maps have another size than their images")
                sizes |= shapes
        if self.side and len(sizes) > 1:
            named = " and ".join(f"{width} x {height}" for height, width in sorted(sizes)[:2])
            raise self._refusal(
                f"augmented images have {named} pixels, which fit into no batch; end the "
                "augmentations with a transform to one size, such as albumentations.Resize"
            )

    def _refusal(self, what: str) -> UserError:
        return UserError(f"{self.source}: {what}")

    def _made_up(self) -> tuple[Arrays, list[Corners]]:
        """An image with its maps and boxes."""
        side = self.side or FREE_SIDE
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        maps = {
            name: image[..., 0].astype(np.float32) / 128 - 1 if smooth else image[..., 0] % 2
            for name, smooth in self.maps.items()
        }
        return {"image": image, **maps}, [(0.1, 0.1, 0.6, 0.5), (0.4, 0.3, 0.9, 0.9)]


def _as_mask(values: np.ndarray) -> np.ndarray:
    """OpenCV turns no int32, and float32 holds all numbers of labels."""
    return values.astype(np.float32) if values.dtype == np.int32 else values


def _targets(transform: Any) -> Sequence[Any]:
    try:
        targets = transform._targets
    except AttributeError:  # an abstract class, or the user's, which says nothing
        return ()
    return targets if isinstance(targets, tuple) else (targets,)


def _moves(transform: Any) -> bool:
    """Whether a transform changes more than the colors of an image."""
    return not isinstance(transform, _albumentations().ImageOnlyTransform)


def _leaves(transforms: Sequence[Any]) -> Iterator[Any]:
    """The transforms in a list and in its compositions."""
    for transform in transforms:
        if isinstance(transform, _albumentations().BaseCompose):
            yield from _leaves(transform.transforms)
        else:
            yield transform


# ---------------------------------------------------------------------- from configs


def _built(described: Any, place: str) -> list[Any]:
    if not isinstance(described, Sequence) or isinstance(described, str) or not described:
        raise UserError(f"{place} is a list of transforms, each with a target and its params")
    return [_transform(node, f"{place}[{number}]") for number, node in enumerate(described)]


def _transform(node: Any, place: str) -> Any:
    library = _albumentations()
    if not isinstance(node, Mapping) or not isinstance(node.get("params") or {}, Mapping):
        raise UserError(
            f"{place}: give a target such as albumentations.HorizontalFlip, and its params"
        )
    params = {name: _as_tuples(value) for name, value in (node.get("params") or {}).items()}
    for name in ("transforms", "first", "second"):
        if isinstance(value := (node.get("params") or {}).get(name), Sequence):
            params[name] = _built(value, f"{place}.{name}")
        elif isinstance(value, Mapping):
            params[name] = _transform(value, f"{place}.{name}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            made = instantiate_from_config({**node, "params": params}, place)
        except UserError as error:
            if not isinstance(error.__cause__, ValueError | TypeError | KeyError):
                raise
            raise UserError(f"{place}: {node.get('target')}: {_reason(error.__cause__)}") from None
    if wrong := [str(one.message) for one in caught if "not valid for" in str(one.message)]:
        raise UserError(f"{place}: {wrong[0]}")
    if not isinstance(made, library.BasicTransform | library.BaseCompose):
        raise UserError(f"{place}: {node.get('target')} is no transform of albumentations")
    return made


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _first_line(error: BaseException) -> str:
    """What an exception says; what it is, if it says nothing."""
    return next(iter(str(error).splitlines()), "") or described(error)


def _reason(error: Exception) -> str:
    """What is wrong with a value, in one line: pydantic takes several."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[1:3]).partition(" [type=")[0] if len(lines) > 2 else " ".join(lines)
