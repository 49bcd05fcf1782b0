"""The objects of many images in flat memory: fifteen million boxes fit, and workers share them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.data.checks import SKIP
from taming.data.helper_types import Annotation, AnnotationList
from taming.data.options import OnError
from taming.errors import UserError, shorten

Row = tuple[int, Sequence[Any]]
"""The number of a row or entry in its file, and its fields: ids of image and category, others."""
log = logging.getLogger(__name__)
FLAGS = ("is_group_of", "is_truncated", "is_occluded", "is_depiction", "is_inside")
TYPES = {"image": np.int64, "box": np.float64, "category": np.int32, "id": np.int64}
TYPES |= {"confidence": np.float32, "flags": np.uint8, "source": np.uint8}
OVERHANG = 0.02  # share of the image by which annotators' boxes may stick out; it is cut off


@dataclass(frozen=True)
class Limits:
    """Which objects and images are used; areas are shares of the image's area."""

    min_object_area: float
    min_objects_per_image: int
    max_objects_per_image: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_objects_per_image <= self.max_objects_per_image:
            raise UserError(
                f"min_objects_per_image {self.min_objects_per_image} and max_objects_per_image "
                f"{self.max_objects_per_image} leave no number of objects; give 0 <= min <= max"
            )


@dataclass(frozen=True)
class SceneTable:
    """Objects, those of image i in the rows [starts[i], starts[i + 1]) of `columns`."""

    starts: Tensor
    columns: dict[str, Tensor]  # in the order of TYPES, without the image
    sources: list[str]
    flags_known: tuple[str, ...]
    flag_type: type[int] = bool

    def annotations(self, image: int, image_id: str, category_ids: Sequence[str]) -> AnnotationList:
        """The objects of image number `image`."""
        start, end = self.starts[image : image + 2].tolist()
        rows = zip(*(values[start:end].tolist() for values in self.columns.values()), strict=True)
        return AnnotationList(
            Annotation(
                area=box[2] * box[3],
                image_id=image_id,
                bbox=tuple(box),
                category_no=number,
                category_id=category_ids[number],
                id=identity,
                source=self.sources[source] or None,
                confidence=confidence,
                **self._flags(flags),
            )
            for box, number, identity, confidence, flags, source in rows
        )

    def _flags(self, bits: int) -> dict[str, Any]:
        return {name: self.flag_type(bits >> FLAGS.index(name) & 1) for name in self.flags_known}


@dataclass(frozen=True)
class SceneLists:
    """The same for objects that a subclass of a dataset has chosen itself."""

    objects: Sequence[Sequence[Annotation]]

    def annotations(self, image: int, image_id: str, category_ids: Sequence[str]) -> AnnotationList:
        return AnnotationList(self.objects[image])


def _cut_off(boxes: np.ndarray) -> np.ndarray:
    """The parts of the boxes (n, 4) in the image; boxes wholly in it keep their exact numbers."""
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    over = (starts < 0) | (ends > 1)
    inside = np.maximum(starts, 0.0)
    sizes = np.where(over, np.minimum(ends, 1.0) - inside, boxes[:, 2:])
    return np.concatenate((np.where(over, inside, starts), sizes), axis=1)


def _outside(boxes: np.ndarray) -> np.ndarray:
    """Which boxes (n, 4) are outside the image or impossible, NaNs included: bool (n,)."""
    ends = boxes[:, :2] + boxes[:, 2:]
    good = (boxes[:, :2] >= -OVERHANG) & (ends <= 1 + OVERHANG) & (boxes[:, 2:] >= 0)
    return ~good.all(axis=1)


@dataclass(frozen=True)
class Objects:
    """Columns of n objects; `images` and `categories` are numbers, not ids."""

    images: Sequence[int] | np.ndarray
    boxes: np.ndarray  # float (n, 4): x0, y0, width and height as shares of the image
    categories: Sequence[int] | np.ndarray
    ids: Sequence[int] | np.ndarray
    confidences: Sequence[float] | np.ndarray
    flags: Sequence[int] | np.ndarray  # bit i is FLAGS[i]
    sources: Sequence[str]  # who made the annotation, "" if that is not known
    place: Callable[[int], str]  # where in which file object i is, for error messages


@dataclass
class SceneCollector:
    """Takes objects, leaves out those that the limits exclude, and groups them by image."""

    limits: Limits
    flags_known: tuple[str, ...]  # those of FLAGS that the data have
    on_error: OnError  # "skip" leaves out objects that cannot be right, counting them
    dataset: str  # its name, for error messages
    flag_type: type[int] = bool  # of flags in annotations
    left_out: Container[str] = ()  # ids of the categories that are not used, and that data may name

    def __post_init__(self) -> None:
        self._parts: list[dict[str, np.ndarray]] = []
        self._sources: dict[str, int] = {}
        self._skipped, self._first_skipped = 0, ""
        self._unknown, self._first_unknown = 0, ""

    def add_rows(
        self,
        rows: list[Row],
        *,
        images: Container[Any],
        categories: Container[str],
        place: Callable[[int], str],
        convert: Callable[[list[Row]], Objects],
    ) -> None:
        """Add the objects of an annotation file, except those of other categories.

        Args:
            rows: their first two fields are the ids of the image and the category.
            images, categories: ids that are known; rows of other images are errors.
            place: from a row's number to where it is, for error messages.
            convert: from rows of known images and categories to objects; raises ValueError for
                rows that cannot be right.

        Raises:
            UserError: for rows that cannot be right, unless they are skipped.
        """
        used = [row for row in rows if row[1][0] in images and str(row[1][1]) in categories]
        if len(used) < len(rows):
            for number, (image, category, *_) in rows:
                if image not in images:
                    self._reject(f"{place(number)} is for image {image}, which is not listed")
                elif str(category) not in categories:
                    self._pass_over(category, place(number))
        self.add(self._converted(used, place, convert))

    def _pass_over(self, category: Any, place: str) -> None:
        """Count an object of a category that is not described; as published, it is not used."""
        if not isinstance(category, int | float | str):
            self._reject(f"{place} is of the category {shorten(category)}, which is no id")
        elif str(category) not in self.left_out:
            self._unknown += 1
            self._first_unknown = self._first_unknown or f"{place} is of {shorten(category)}"

    def _converted(
        self, rows: list[Row], place: Callable[[int], str], convert: Callable[[list[Row]], Objects]
    ) -> Objects:
        try:
            return convert(rows)
        except ValueError:  # look for the bad rows only then, as one by one takes long
            good = []
            for row in rows:
                try:
                    convert([row])
                except ValueError as error:
                    self._reject(f"{place(row[0])} cannot be read ({error})")
                else:
                    good.append(row)
            return convert(good)

    def _reject(self, problem: str) -> None:
        """Count an object that cannot be right, or raise `UserError`."""
        if self.on_error == "raise":
            raise UserError(
                f"{self.dataset}: {problem}; repair the file, or leave such objects out: {SKIP}"
            )
        self._skipped, self._first_skipped = self._skipped + 1, self._first_skipped or problem

    def add(self, objects: Objects) -> None:
        """Add those that are in their images and large enough."""
        boxes, outside = objects.boxes, _outside(objects.boxes)
        for row in np.flatnonzero(outside).tolist():
            box = f"x, y, width, height: {', '.join(f'{value:.3g}' for value in boxes[row])}"
            self._reject(f"{objects.place(row)} has a box outside its image ({box})")
        large = boxes[:, 2] * boxes[:, 3] > self.limits.min_object_area
        kept = np.flatnonzero(large & ~outside)
        columns: dict[str, Any] = {
            "image": objects.images,
            "box": _cut_off(boxes),
            "category": objects.categories,
            "id": objects.ids,
            "confidence": objects.confidences,
            "flags": objects.flags,
            "source": [self._sources.setdefault(s, len(self._sources)) for s in objects.sources],
        }
        self._parts.append({name: np.array(columns[name], TYPES[name])[kept] for name in TYPES})

    def table(self, image_count: int) -> tuple[SceneTable, np.ndarray]:
        """The table of the images that are used, and their numbers, int64 (n,), in order."""
        if self._skipped:
            message = "%s: left out %d objects, the first because %s"
            log.warning(message, self.dataset, self._skipped, self._first_skipped)
        if self._unknown:
            message = "%s: passed over %d objects of categories that are not listed; the first, %s"
            log.warning(message, self.dataset, self._unknown, self._first_unknown)
        columns = {
            name: np.concatenate([part[name] for part in self._parts] or [np.empty(0, dtype)])
            for name, dtype in TYPES.items()
        }
        images = columns.pop("image")
        counts = np.bincount(images, minlength=image_count)
        least, most = self.limits.min_objects_per_image, self.limits.max_objects_per_image
        used = (counts >= least) & (counts <= most)
        kept = np.flatnonzero(used[images])
        order = kept[np.argsort(images[kept], kind="stable")]  # within an image as in the file
        starts = np.concatenate(([0], np.cumsum(counts[used])))
        ordered = {name: torch.from_numpy(values[order]) for name, values in columns.items()}
        sources = list(self._sources)
        table = SceneTable(
            torch.from_numpy(starts), ordered, sources, self.flags_known, self.flag_type
        )
        return table, np.flatnonzero(used)
