"""Scenes: drawn images against those whose layouts they were drawn for, as a whole and by object.

SceneFID (arXiv 2003.07449, also in 2105.06458) is the Fréchet distance between the objects of
drawn and of real images, cut out by the boxes of the layout. Here every object that the data set's
own limits let through is one crop; it is cut off at the image's border, left out where it has less
than `min_side` pixels a side there, and resized to 224 x 224.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.distributed import own_share
from taming.errors import UserError
from taming.evaluation.cache import key_of
from taming.evaluation.metrics.features import Extractor, default_layer
from taming.evaluation.metrics.fidelity import InceptionScores, Moments, frechet_distance
from taming.evaluation.runner import Gathered, Need, Reading
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.sources.picture import Picture
from taming.evaluation.sources.scenes import (
    SIDE,
    DrawnScenes,
    RealScenes,
    ScenePicture,
    cut_objects,
)
from taming.evaluation.tasks.fidelity import describe

RESIZE = f"bilinear with antialiasing, {SIDE} x {SIDE}"


@dataclass(frozen=True)
class SceneNeed(Need):
    """What is wanted of the `number`-th images of all layouts.

    Attributes:
        number, of: None: of all images; otherwise of those with index % of == number.
        min_side: of the objects, whose features are wanted; None: those of the images.
    """

    number: int | None = None
    of: int = 1
    min_side: float | None = None

    def key(self, content_key: str) -> str:
        crops = None if self.min_side is None else [self.min_side, SIDE]
        return key_of(need=super().key(content_key), part=[self.number, self.of], crops=crops)

    def empty(self, images: int) -> Any:
        return super().empty(images if self.number is None else images // self.of)

    def add(
        self, accumulator: Any, pictures: Sequence[Picture], features: Mapping[str, Tensor]
    ) -> None:
        places = [
            n
            for n, picture in enumerate(pictures)
            if self.number in (None, picture.index % self.of)
        ]
        chosen = [pictures[n] for n in places]
        if self.min_side is not None:
            self._add_objects(accumulator, chosen, len(pictures))
        elif isinstance(accumulator, InceptionScores):
            step = 1 if self.number is None else self.of
            indices = torch.tensor([picture.index // step for picture in chosen], dtype=torch.int64)
            accumulator.add(indices, features[self.layer][places])
        elif places:
            accumulator.add(features[self.layer][places])

    def _add_objects(self, moments: Moments, pictures: Sequence[Picture], batch: int) -> None:
        assert self.min_side is not None
        crops = [
            cut_objects(picture.pixels, picture.boxes, self.min_side)
            for picture in pictures
            if isinstance(picture, ScenePicture)
        ]
        for part in torch.cat(crops).split(batch) if crops else ():
            if len(part):
                moments.add(self.extractor(part)[self.layer])


@dataclass(frozen=True)
class SceneEvaluation:
    """Numbers, as JSON values: see `evaluate_scenes`."""

    metrics: dict[str, Any]
    protocol: dict[str, Any]
    sets: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]


def evaluate_scenes(
    samples: DrawnScenes,
    extractor: Extractor,
    reading: Reading,
    layers: Mapping[str, str] | None = None,
    isc_splits: int = 10,
    min_side: float = 1.0,
) -> SceneEvaluation | None:
    """FID, SceneFID and Inception Score of drawn scenes; None in ranks above 0.

    Each is given over all images (`fid`, `scene_fid`, `isc`), and for every set that has one image
    of each layout, as mean and standard deviation over these sets (`one_per_layout`): publications
    do not say which of the two theirs are.

    Args:
        extractor: of the layers for FID and the Inception Score; `layers` has them, by default the
            extractor's own choice.
        min_side: of objects, in pixels.

    Raises:
        UserError: for fewer than two layouts or objects, or fewer layouts than splits.
    """
    chosen = {m: (layers or {}).get(m) or default_layer(extractor.name, m) for m in ("fid", "isc")}
    _require_enough(len(samples.layouts), isc_splits)
    of = samples.per_layout

    def need(kind: str, number: int | None, objects: bool = False, per: int = of) -> SceneNeed:
        scores = kind == "scores"
        layer, splits = chosen["isc" if scores else "fid"], isc_splits * scores
        side = min_side if objects else None
        return SceneNeed(kind, extractor, layer, splits, number, per, side)

    wanted = {"isc": need("scores", None)}
    for k in range(of):
        wanted[f"images {k}"] = need("moments", k)
        wanted[f"objects {k}"] = need("moments", k, True)
        wanted[f"isc {k}"] = need("scores", k)
    real = {name: need("moments", 0, name == "objects", 1) for name in ("images", "objects")}
    scenes = RealScenes(samples.layouts)
    reference = _gather(reading, scenes, real, "real images", keep=True)
    drawn = _gather(reading, samples, wanted, "drawn images")
    if own_share()[0] > 0:
        return None
    parts = {name: drawn.parts[wanted[name]] for name in wanted}
    truth = {name: reference.parts[real[name]] for name in real}
    if min(truth["objects"].count, parts["objects 0"].count) < 2:
        raise UserError(
            f"the layouts have {truth['objects'].count} objects of {min_side:g} pixels or more; "
            "SceneFID needs two or more: give more layouts or a smaller --min_object_side"
        )
    rows = [_row(k, parts, truth) for k in range(of)]
    protocol = {
        "layers": chosen,
        "isc_splits": isc_splits,
        "objects": RESIZE,
        "min_object_side": min_side,
        "extractor": {k: v for k, v in extractor.describe().items() if k != "layers"},
    }
    sets = {
        "samples": describe(samples, drawn) | {"objects": sum(row["objects"] for row in rows)},
        "reference": describe(scenes, reference) | {"objects": truth["objects"].count},
    }
    return SceneEvaluation(_metrics(rows, parts, truth), protocol, sets, rows)


def _require_enough(layouts: int, isc_splits: int) -> None:
    for least, what in ((2, "FID"), (isc_splits, "the Inception Score (--isc_splits)")):
        if layouts < least:
            raise UserError(
                f"{what} needs at least {least} layouts, and there are {layouts}; give more data "
                "or a larger --num_layouts"
            )


def _gather(
    reading: Reading,
    source: ImageSource,
    wanted: Mapping[str, Need],
    label: str,
    keep: bool = False,
) -> Gathered:
    return reading.gather(source, list(wanted.values()), label, keep)


def _row(number: int, parts: Mapping[str, Any], truth: Mapping[str, Moments]) -> dict[str, Any]:
    objects = parts[f"objects {number}"]
    return {
        "sample": number,
        "fid": frechet_distance(parts[f"images {number}"], truth["images"]),
        "scene_fid": frechet_distance(objects, truth["objects"]),
        "isc": parts[f"isc {number}"].result()[0],
        "objects": objects.count,
    }


def _metrics(
    rows: Sequence[Mapping[str, Any]], parts: Mapping[str, Any], truth: Mapping[str, Moments]
) -> dict[str, Any]:
    whole = {"images": Moments(), "objects": Moments()}
    for name, moments in whole.items():
        for number in range(len(rows)):
            moments.merge(parts[f"{name} {number}"])
    spread = {}
    for name in ("fid", "scene_fid", "isc"):
        values = [row[name] for row in rows]
        spread[name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return {
        "fid": frechet_distance(whole["images"], truth["images"]),
        "scene_fid": frechet_distance(whole["objects"], truth["objects"]),
        "isc": dict(zip(("mean", "std"), parts["isc"].result(), strict=True)),
        "one_per_layout": spread,
    }
