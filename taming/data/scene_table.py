"""The objects of many images in flat memory: fifteen million boxes fit, and workers share them."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from taming.data.helper_types import Annotation, AnnotationList, BoundingBox
from taming.errors import UserError

log = logging.getLogger(__name__)
FLAGS = ("is_group_of", "is_truncated", "is_occluded", "is_depiction", "is_inside")
COLUMNS = ("box", "category", "id", "confidence", "flags", "source")
OVERHANG = 0.02  # share of the image by which annotators' boxes may stick out; it is cut off


@dataclass(frozen=True)
class Limits:
    """Which objects and images are used."""

    min_object_area: float
    min_objects_per_image: int
    max_objects_per_image: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_objects_per_image <= self.max_objects_per_image:
            raise UserError(
                f"min_objects_per_image {self.min_objects_per_image} and max_objects_per_image "
                f"{self.max_objects_per_image} leave no number of objects; give 0 <= min <= max"
            )


class SceneTable:
    """Objects grouped by image; built by `SceneCollector`."""

    def __init__(
        self,
        starts: np.ndarray,
        columns: dict[str, np.ndarray],
        sources: list[str],
        flags_known: tuple[str, ...],
    ) -> None:
        self._starts = torch.from_numpy(starts)
        self._columns: dict[str, Tensor] = {k: torch.from_numpy(v) for k, v in columns.items()}
        self._sources, self._flags_known = sources, flags_known

    def annotations(self, image: int, image_id: str, category_ids: Sequence[str]) -> AnnotationList:
        """The objects of image number `image`."""
        start, end = self._starts[image : image + 2].tolist()
        rows = zip(*(self._columns[name][start:end].tolist() for name in COLUMNS), strict=True)
        return AnnotationList(
            Annotation(
                area=box[2] * box[3],
                image_id=image_id,
                bbox=tuple(box),
                category_no=number,
                category_id=category_ids[number],
                id=identity,
                source=self._sources[source] or None,
                confidence=confidence,
                **{name: bool(flags >> FLAGS.index(name) & 1) for name in self._flags_known},
            )
            for box, number, identity, confidence, flags, source in rows
        )


def _cut_off(box: BoundingBox) -> BoundingBox:
    """What of the box lies in the image; a box that lies in it wholly keeps its exact numbers."""
    x0, y0, width, height = box
    if x0 < 0 or x0 + width > 1:
        x0, width = max(x0, 0.0), min(x0 + width, 1.0) - max(x0, 0.0)
    if y0 < 0 or y0 + height > 1:
        y0, height = max(y0, 0.0), min(y0 + height, 1.0) - max(y0, 0.0)
    return x0, y0, width, height


class SceneCollector:
    """Takes objects one by one, leaves out what the limits exclude, and groups them by image.

    Args:
        flags_known: which of `FLAGS` the data have.
        on_error: "raise", or "skip" objects that cannot be right, counting them.
    """

    def __init__(
        self,
        limits: Limits,
        flags_known: tuple[str, ...],
        on_error: Literal["raise", "skip"],
        dataset: str,
    ) -> None:
        self._limits, self._flags_known = limits, flags_known
        self._on_error, self._dataset = on_error, dataset
        self._images, self._boxes, self._categories = array("q"), array("d"), array("i")
        self._ids, self._confidences = array("q"), array("f")
        self._flags, self._source_codes = array("B"), array("B")
        self._sources: dict[str, int] = {}
        self._skipped: list[str] = []

    def reject(self, what: str) -> None:
        """An object that cannot be right: `what` says why and where."""
        if self._on_error == "raise":
            raise UserError(
                f"{self._dataset}: {what}; repair the file, or set on_error: skip to leave such "
                "objects out"
            )
        self._skipped.append(what)

    def add(
        self,
        image: int,
        box: BoundingBox,
        category_no: int,
        number: int,
        place: Callable[[], str],
        source: str = "",
        confidence: float = 1.0,
        flags: int = 0,
    ) -> None:
        """An object of image number `image`; bit i of `flags` is `FLAGS[i]`.

        `place` says where in which file it is, and is asked only if something is wrong with it.
        """
        x0, y0, width, height = box
        left, right = -OVERHANG <= x0, x0 + width <= 1 + OVERHANG
        if not (
            left
            and right
            and -OVERHANG <= y0
            and y0 + height <= 1 + OVERHANG
            and width >= 0
            and height >= 0
        ):
            shown = ", ".join(f"{value:.3g}" for value in box)
            self.reject(f"{place()} has a box outside its image (x, y, width, height: {shown})")
            return
        if width * height <= self._limits.min_object_area:
            return
        self._images.append(image)
        self._boxes.extend(_cut_off(box))
        self._categories.append(category_no)
        self._ids.append(number)
        self._confidences.append(confidence)
        self._flags.append(flags)
        self._source_codes.append(self._sources.setdefault(source, len(self._sources)))

    def table(self, image_count: int) -> tuple[SceneTable, np.ndarray]:
        """The table of the images that stay, and their numbers."""
        if self._skipped:
            log.warning(
                "%s: left out %d objects, the first because %s",
                self._dataset,
                len(self._skipped),
                self._skipped[0],
            )
        images = np.array(self._images, dtype=np.int64)
        counts = np.bincount(images, minlength=image_count)
        limits = self._limits
        stays = (counts >= limits.min_objects_per_image) & (counts <= limits.max_objects_per_image)
        kept = np.flatnonzero(stays[images])
        order = kept[np.argsort(images[kept], kind="stable")]
        starts = np.concatenate(([0], np.cumsum(counts[stays])))
        values = (
            np.array(self._boxes).reshape(-1, 4),
            np.array(self._categories),
            np.array(self._ids),
            np.array(self._confidences),
            np.array(self._flags),
            np.array(self._source_codes),
        )
        ordered = {name: value[order] for name, value in zip(COLUMNS, values, strict=True)}
        table = SceneTable(starts, ordered, list(self._sources), self._flags_known)
        return table, np.flatnonzero(stays)
