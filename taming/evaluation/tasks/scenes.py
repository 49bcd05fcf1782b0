"""Scenes: samples against the images whose layouts they were made for, as a whole and by object.

SceneFID (arXiv 2003.07449, also in 2105.06458) is the Fréchet distance between the objects of
samples and of real images, cut out by the boxes of the layout. Here every object that the
dataset's own limits let through is one crop; it is cut off at the image's border, left out if it
has less than `min_side` pixels a side there, and resized to 224 x 224.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.devices import own_share
from taming.errors import UserError
from taming.evaluation.metrics.base import SEED, FeatureAccumulator
from taming.evaluation.metrics.features import Extractor, FeatureRequest, Layers
from taming.evaluation.metrics.fid import Moments, frechet_distance
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import SourceImage, indices_and_labels, key_of
from taming.evaluation.sources.resize import AS_IT_IS, Resizing
from taming.evaluation.sources.scenes import (
    SIDE,
    RealScenes,
    SampledScenes,
    SceneImage,
    cut_objects,
)
from taming.evaluation.tasks.fidelity import FidelitySettings, describe_set

RESIZE = f"bilinear with antialiasing, {SIDE} x {SIDE}"


@dataclass(frozen=True)
class SceneRequest(FeatureRequest):
    """Features of the `number`-th images of all layouts, or of the objects in them.

    These are the images with index % of == number, all of them if `number` is None; with `min_side`
    the features are those of the objects that have so many pixels a side.
    """

    number: int | None = None
    of: int = 1
    min_side: float | None = None

    def key(self, content_key: str) -> str:
        crops = None if self.min_side is None else [self.min_side, SIDE]
        return key_of(request=super().key(content_key), part=[self.number, self.of], crops=crops)

    def make(self, images: int) -> FeatureAccumulator:
        return super().make(images if self.number is None else images // self.of)

    def update(
        self, accumulator: FeatureAccumulator, images: Sequence[SourceImage], features: Layers
    ) -> None:
        (indices, labels), batch = indices_and_labels(images), len(images)
        if self.number is not None:
            chosen = (indices % self.of == self.number).nonzero()[:, 0]
            indices, labels = indices[chosen] // self.of, labels[chosen]
            images = [images[n] for n in chosen.tolist()]
            features = {layer: rows[chosen] for layer, rows in features.items()}
        if self.min_side is not None:
            scenes = [image for image in images if isinstance(image, SceneImage)]
            crops = [cut_objects(image.pixels, image.boxes, self.min_side) for image in scenes]
            self._update_objects(accumulator, crops, batch)
        elif images:
            accumulator.update(indices, features[self.layer], labels)

    def _update_objects(
        self, accumulator: FeatureAccumulator, crops: list[Tensor], batch: int
    ) -> None:
        for part in torch.cat(crops).split(batch) if crops else ():
            if len(part):
                accumulator.update(torch.arange(len(part)), self.extractor(part)[self.layer])


@dataclass(frozen=True)
class SceneEvaluation:
    """Numbers, as JSON values: see `evaluate_scenes`."""

    metrics: dict[str, Any]
    protocol: dict[str, Any]
    sets: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]


def evaluate_scenes(
    samples: SampledScenes,
    extractor: Extractor,
    runner: Runner,
    settings: FidelitySettings | None = None,
    min_side: float = 1.0,
    *,
    resizing: Resizing = AS_IT_IS,
) -> SceneEvaluation | None:
    """FID, SceneFID and Inception Score of sampled scenes; None in ranks above 0.

    Each is given over all images (`fid`, `scene_fid`, `isc`), and for every set that has one image
    of each layout, as mean and standard deviation over these sets (`one_per_layout`): publications
    do not say which of the two they give. `resizing` is that of the real images, see `RealScenes`.

    Raises UserError for fewer than two layouts or objects (of `min_side` pixels), or fewer layouts
    than splits.
    """
    settings = settings or FidelitySettings(("fid", "isc"))
    _require_enough(len(samples.layouts), settings)
    count, scenes = samples.per_layout, RealScenes(samples.layouts, resizing)

    def request(metric: str, **part: Any) -> SceneRequest:
        of_set = settings.request(metric, extractor)
        return SceneRequest(of_set.accumulator, extractor, of_set.layer, of_set.options, **part)

    of_real = {"images": request("fid", number=0)}
    of_real["objects"] = request("fid", number=0, min_side=min_side)
    wanted = {"isc": request("isc")}
    for k in range(count):
        wanted[f"images {k}"] = request("fid", number=k, of=count)
        wanted[f"objects {k}"] = request("fid", number=k, of=count, min_side=min_side)
        wanted[f"isc {k}"] = request("isc", number=k, of=count)
    reference = runner.features(scenes, list(of_real.values()), "real images", keep=True)
    sampled = runner.features(samples, list(wanted.values()), "sampled images")
    if own_share()[0] > 0:
        return None
    parts: dict[str, Any] = {name: sampled.parts[wanted[name]] for name in wanted}
    real: dict[str, Any] = {name: reference.parts[of_real[name]] for name in of_real}
    if min(real["objects"].count, parts["objects 0"].count) < 2:
        raise UserError(
            f"the layouts have {real['objects'].count} objects of {min_side:g} pixels or more; "
            "SceneFID needs two or more: give more layouts or a smaller --min_object_side"
        )
    rows = [_row(k, parts, real) for k in range(count)]
    protocol = {
        "layers": {name: settings.layer(name, extractor.name) for name in ("fid", "isc")},
        **settings.describe("isc"),
        "seed": SEED,
        "objects": RESIZE,
        "min_object_side": min_side,
        "extractor": extractor.describe(),
    }
    sets = {"samples": describe_set(samples, sampled), "reference": describe_set(scenes, reference)}
    sets["samples"]["objects"] = sum(row["objects"] for row in rows)
    sets["reference"]["objects"] = real["objects"].count
    return SceneEvaluation(_metrics(rows, parts, real), protocol, sets, rows)


def _require_enough(layouts: int, settings: FidelitySettings) -> None:
    splits = settings.smallest_set("isc")
    for least, what in ((2, "FID"), (splits, "the Inception Score (--isc_splits)")):
        if layouts < least:
            raise UserError(
                f"{what} needs at least {least} layouts, and there are {layouts}; give more data "
                "or a larger --num_layouts"
            )


def _row(number: int, parts: Mapping[str, Any], real: Mapping[str, Moments]) -> dict[str, Any]:
    objects = parts[f"objects {number}"]
    return {
        "sample": number,
        "fid": frechet_distance(parts[f"images {number}"], real["images"]),
        "scene_fid": frechet_distance(objects, real["objects"]),
        "isc": parts[f"isc {number}"].compute()[0],
        "objects": objects.count,
    }


def _metrics(
    rows: Sequence[Mapping[str, Any]], parts: Mapping[str, Any], real: Mapping[str, Moments]
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
        "fid": frechet_distance(whole["images"], real["images"]),
        "scene_fid": frechet_distance(whole["objects"], real["objects"]),
        "isc": dict(zip(("mean", "std"), parts["isc"].compute(), strict=True)),
        "one_per_layout": spread,
    }
