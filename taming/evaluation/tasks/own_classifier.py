"""Samples judged by a classifier of the run's own training data.

Its distances have the names of Inception's, and nothing else in common with them: they compare
samples of this data set with one another. What the numbers can be at best is said beside them, by
real images that the classifier has not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.cache import Cache
from taming.evaluation.metrics.accuracy import ClassificationAccuracy, measure_accuracy
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.neighbours import Labelled
from taming.evaluation.metrics.small_classifier import (
    SmallClassifier,
    register_small_classifier,
    train_small_classifier,
)
from taming.evaluation.runner import Reading
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.tasks.fidelity import FidelityEvaluator
from taming.evaluation.tasks.protocol import Protocol

BY = "a small classifier of this run's own training data: comparable within this data set alone"
SEED = 0
WEIGHTS = "classifier.pt"
FEWEST = 8  # images of a set for precision and recall, and for two halves of a kernel distance

log = logging.getLogger(__name__)


@dataclass
class Judgement:
    """What the classifier says, as JSON values.

    Attributes:
        metrics: for every set its numbers.
        protocol: how they were made.
        sets: descriptions of the sets and of the reference.
        classes: accuracies of every class of the samples.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)
    classes: dict[int, dict[str, Any]] = field(default_factory=dict)


def judge(
    sets: dict[str, ImageSource], training: ImageSource, labelled: Labelled, folder: Path
) -> Judgement | None:
    """Train a classifier, keep its weights in `folder`, and evaluate the sets against `training`.

    Args:
        sets: "samples", and others to compare them with.
        labelled: the training images uint8 [N, H, W, 3] and their classes.

    Returns:
        None where the training images have no classes, or there are too few images; it is said.
    """
    smallest = min(map(len, (*sets.values(), training)))
    if smallest < FEWEST or len(np.unique(labelled[1])) < 2 or labelled[1].min() < 0:
        log.warning(
            "without classes, or with fewer than %d images, there is no classifier of the run's "
            "own, and no distances by it",
            FEWEST,
        )
        return None
    classifier = train_small_classifier(_channels_first(labelled[0]), _long(labelled[1]), SEED)
    classifier.save(folder / WEIGHTS)
    extractor = Extractor(register_small_classifier(), weights=folder / WEIGHTS)
    protocol = Protocol(
        ("fid", "isc", "kid", "prc"),
        isc_splits=10 if smallest >= 100 else 1,
        kid_subset_size=min(1000, smallest // 2),
    )
    # Weights are new with every report: what is cached of them would not be found again.
    evaluator = FidelityEvaluator(
        training, extractor, protocol, reading=Reading(cache=Cache(enabled=False))
    )
    found = Judgement({"by": BY}, {"trained_on": "reference", "training_seed": SEED})
    for name, images in sets.items():
        evaluation = evaluator(images)
        assert evaluation is not None  # there is one process
        found.metrics[name] = _flat(evaluation.metrics) | _accuracy(found, classifier, name, images)
        found.protocol |= evaluation.protocol
        found.sets[name] = evaluation.sets["samples"]
        found.sets["reference"] = evaluation.sets["reference"]
    return found


def _accuracy(
    found: Judgement, classifier: SmallClassifier, name: str, images: ImageSource
) -> dict[str, Any]:
    try:
        accuracy: ClassificationAccuracy = measure_accuracy(
            classifier.probabilities, _batches(images)
        )
    except UserError as error:  # samples of no class, or of one that the training data lack
        log.warning("%s", error)
        return {}
    if name == "samples":
        found.classes = accuracy.by_class()
    return {key: value for key, value in accuracy.scores().items() if key != "images"}


def _batches(images: ImageSource) -> Iterator[tuple[Tensor, Tensor]]:
    for pictures in images.batches(64):
        labels = [-1 if picture.label is None else picture.label for picture in pictures]
        yield torch.stack([picture.pixels for picture in pictures]), torch.tensor(labels)


def _flat(metrics: dict[str, Any]) -> dict[str, Any]:
    """Precision and recall beside the others, as in tables."""
    precision = metrics["prc"]
    rest = {name: value for name, value in metrics.items() if name != "prc"}
    return rest | {name: precision[name] for name in ("precision", "recall")}


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _long(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
