"""Quantizers that were trained under one recipe, side by side: numbers over seeds, and a table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.evaluation.cache import Cache
from taming.evaluation.metrics.accuracy import LabeledImages
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.small_classifier import (
    register_small_classifier,
    train_small_classifier,
)
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import ImageSource
from taming.evaluation.sources.prepared import model_input
from taming.evaluation.tasks.first_stage import FirstStageEvaluator, LoadedFirstStage
from taming.evaluation.tasks.report import SEED, WEIGHTS, read_labeled, similar_groups
from taming.models.codes import Size, codes_of, split_levels
from taming.modules.vqvae.codebook import CodeTable, SeveralLevels, index_count

BY = "FID by a small classifier of the training images: comparable within this data alone"
# Columns of the table: title and style by metric.
COLUMNS = {
    "rfid": ("FID", "{:.2f}"),
    "l1": ("L1", "{:.4f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "codebook_usage": ("codes used", "{:.1%}"),
    "codebook_perplexity": ("perplexity", "{:.1f}"),
    "steps_a_second": ("steps/s", "{:.2f}"),
}
Numbers = dict[str, float]


def classifier_extractor(training: ImageSource, folder: Path) -> Extractor:
    """A small classifier of the training images, whose weights are kept in `folder`.

    It is of their classes; without classes of groups of similar images. The same images give the
    same weights, and those that are there are used again, by a hash of the images in their name.
    """
    labeled = read_labeled(training, "training images")
    path = folder / "{0.stem}-{1}{0.suffix}".format(Path(WEIGHTS), hash_of(labeled))
    if not path.is_file():
        pixels, numbers = map(torch.from_numpy, labeled)
        images, labels = pixels.permute(0, 3, 1, 2).contiguous(), numbers.long()
        if len(labels.unique()) < 2 or labels.min() < 0:
            labels = similar_groups(images)
        folder.mkdir(parents=True, exist_ok=True)
        train_small_classifier(images, labels, SEED).save(path)
    return Extractor(register_small_classifier(), ["features"], weights=path)


def hash_of(images: LabeledImages) -> str:
    """The beginning of the SHA-256 of all pixels and labels."""
    digest = hashlib.sha256()
    for array in images:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def evaluator_with(extractor: Extractor) -> FirstStageEvaluator:
    """L1, PSNR, the use of codes, and the Fréchet distance of reconstructions by this network."""
    runner = Runner(cache=Cache(enabled=False))
    return FirstStageEvaluator(extractor=extractor, metrics=(), runner=runner)


@dataclass(frozen=True)
class Evaluated:
    """The numbers of one run, and what they are about."""

    numbers: Numbers
    bits_a_position: float
    bits_an_image: float
    description: Mapping[str, Any]  # of the reconstructions


@torch.no_grad()
def evaluate(
    evaluator: FirstStageEvaluator,
    stage: LoadedFirstStage,
    images: ImageSource,
    speed: float | None = None,
) -> Evaluated:
    """The numbers of a run's first stage, `speed` in steps a second among them; its bits are those
    of the first image."""
    result = evaluator(stage, images)
    assert result is not None  # there is one process
    numbers = {name: float(v) for name, v in result.metrics.items() if isinstance(v, float)}
    if speed is not None:
        numbers["steps_a_second"] = speed
    first = next(iter(images.batches(1)))[0]
    x = model_input(first.pixels[None], stage.model)
    quantizer, indices = stage.model.quantize, stage.model.encode_to_indices(x)
    _, _, height, width = codes_of(stage.model, x).shape
    bits = bits_of(quantizer, indices, (height, width))
    return Evaluated(numbers, bits / (height * width), bits, result.reconstructions)


def bits_of(quantizer: CodeTable, indices: Tensor, size: Size | None = None) -> float:
    """Bits that the indices [1, ...] of an image take, each as log2 of how many its level has.

    `size` is rows and columns of its codes; by default square.
    """
    if not isinstance(quantizer, SeveralLevels):
        return indices.numel() * math.log2(index_count(quantizer))
    sizes = quantizer.level_sizes
    levels = split_levels(quantizer, indices, size)
    return sum(level.numel() * math.log2(sizes[name]) for name, level in levels.items())


def over_seeds(runs: Sequence[Evaluated]) -> dict[str, dict[str, Any]]:
    """`mean`, `spread` (the standard deviation, None of one run) and `values` of every number."""
    names = dict.fromkeys(name for run in runs for name in run.numbers)
    gathered = {n: [run.numbers[n] for run in runs if n in run.numbers] for n in names}
    return {
        name: {
            "mean": mean(values),
            "spread": stdev(values) if len(values) > 1 else None,
            "values": values,
        }
        for name, values in gathered.items()
    }


def table_rows(results: Mapping[str, Sequence[Evaluated]]) -> list[dict[str, str]]:
    """A row per quantizer, the lowest mean FID first: means, with the deviation over seeds."""
    rows = []
    for name, runs in results.items():
        summary, first = over_seeds(runs), runs[0]
        cells = {title: cell(summary.get(key), style) for key, (title, style) in COLUMNS.items()}
        bits = {
            "bits a position": f"{first.bits_a_position:.4g}",
            "bits an image": f"{first.bits_an_image:.4g}",
        }
        order = summary.get("rfid", {"mean": float("inf")})["mean"]
        rows.append((order, {"quantizer": name, **bits, "seeds": str(len(runs)), **cells}))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def unequal_bits(results: Mapping[str, Sequence[Evaluated]]) -> list[str]:
    """A sentence if the bits of an image differ by more than 1 %; else none."""
    bits = [runs[0].bits_an_image for runs in results.values()]
    low, high = min(bits), max(bits)
    if high <= low * 1.01:
        return []
    return [f"Not at equal bits: an image takes from {low:.4g} to {high:.4g}, which FID follows."]


def cell(number: Mapping[str, Any] | None, style: str) -> str:
    """A number of `over_seeds` in a table."""
    if number is None:
        return "-"
    shown = style.format(number["mean"])
    return shown if number["spread"] is None else f"{shown} ± {style.format(number['spread'])}"


def described(results: Mapping[str, Sequence[Evaluated]], extractor: Extractor) -> dict[str, Any]:
    """What a result is of, as JSON values: its `metrics`, `protocol` and `sets`."""
    metrics = {
        name: {
            "bits_a_position": runs[0].bits_a_position,
            "bits_an_image": runs[0].bits_an_image,
            **over_seeds(runs),
        }
        for name, runs in results.items()
    }
    sets = {
        f"{name} {number}": dict(run.description)
        for name, runs in results.items()
        for number, run in enumerate(runs)
    }
    protocol = {"by": BY, "extractor": extractor.describe(), "torch": torch.__version__}
    return {"metrics": metrics, "protocol": protocol, "sets": sets}
