"""Samples evaluated by a classifier of the run's own training data.

Its distances have the names of Inception's, and nothing else in common with them: they compare
samples of this dataset with one another. The same numbers of real images that the classifier has
not seen stand beside them: they are the best that samples can reach.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taming.errors import UserError
from taming.evaluation.metrics.accuracy import (
    ClassificationAccuracy,
    ClassifiedImages,
    LabeledImages,
)
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.set_metrics import metric_settings
from taming.evaluation.metrics.small_classifier import (
    SmallClassifier,
    register_small_classifier,
    train_small_classifier,
)
from taming.evaluation.runner import Cache, Runner
from taming.evaluation.sources.images import ImageSource
from taming.evaluation.tasks.fidelity import FidelityEvaluator, FidelitySettings

BY = "a small classifier of this run's own training data: comparable within this dataset alone"
SEED = 0
WEIGHTS = "classifier.pt"
ACCURACY_BATCH = 64
FEWEST = 8  # images of a set for precision and recall, and for two halves of a kernel distance

log = logging.getLogger(__name__)


@dataclass
class ClassifierReport:
    """The numbers by the classifier, as JSON values.

    Attributes:
        sets: descriptions of the sets and of the reference.
        classes: accuracies of every class of the samples.
    """

    metrics: dict[str, Any] = field(default_factory=dict)  # of every set
    protocol: dict[str, Any] = field(default_factory=dict)  # how they were made
    sets: dict[str, Any] = field(default_factory=dict)
    classes: dict[int, dict[str, Any]] = field(default_factory=dict)


def evaluate_by_own_classifier(
    sets: Mapping[str, ImageSource], training: ImageSource, labeled: LabeledImages, folder: Path
) -> ClassifierReport:
    """Train a classifier, keep its weights in `folder`, and evaluate the sets against `training`.

    Args:
        sets: "samples", and others to compare them with.
        labeled: the training images and their classes (-1 for none).

    Returns:
        An empty report, with a warning, if the training images have no classes, or there are too
        few images.
    """
    smallest = min(map(len, (*sets.values(), training)))
    if smallest < FEWEST or len(np.unique(labeled[1])) < 2 or labeled[1].min() < 0:
        log.warning(
            "without classes, or with fewer than %d images, there is no classifier of the run's "
            "own, and no distances by it",
            FEWEST,
        )
        return ClassifierReport()
    images, labels = map(torch.from_numpy, labeled)
    images = images.permute(0, 3, 1, 2).contiguous()
    classifier = train_small_classifier(images, labels.long(), SEED)
    classifier.save(folder / WEIGHTS)
    extractor = Extractor(register_small_classifier(), weights=folder / WEIGHTS)
    # Weights are new with every report: what is cached of them would not be found again.
    runner = Runner(cache=Cache(enabled=False))
    evaluator = FidelityEvaluator(training, extractor, _settings(smallest), runner=runner)
    report = ClassifierReport({"by": BY}, {"trained_on": "reference", "training_seed": SEED})
    for name, source in sets.items():
        evaluation = evaluator(source)
        assert evaluation is not None  # there is one process
        accuracy = _accuracy(classifier, source)
        if accuracy is not None and name == "samples":
            report.classes = accuracy.by_class()
        top = {} if accuracy is None else accuracy.compute()
        top.pop("images", None)
        report.metrics[name] = _flat(evaluation.metrics) | top
        report.protocol |= evaluation.protocol
        report.sets[name] = evaluation.sets["samples"]
        report.sets["reference"] = evaluation.sets["reference"]
    return report


def _settings(smallest: int) -> FidelitySettings:
    of_metrics = metric_settings(
        isc_splits=10 if smallest >= 100 else 1, kid_subset_size=min(1000, smallest // 2)
    )
    return FidelitySettings(("fid", "isc", "kid", "prc"), of_metrics=of_metrics)


def _accuracy(classifier: SmallClassifier, images: ImageSource) -> ClassificationAccuracy | None:
    """None, with a warning, for images of no class, or of one that the training data lack."""
    runner = Runner(ACCURACY_BATCH, Cache(enabled=False))
    make = partial(ClassifiedImages, classifier.probabilities)
    try:
        return runner.run(images, make, "accuracy", "images")[1]
    except UserError as error:
        log.warning("%s", error)
        return None


def _flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Precision and recall beside the others, as in tables."""
    precision = metrics["prc"]
    rest = {name: value for name, value in metrics.items() if name != "prc"}
    return rest | {name: precision[name] for name in ("precision", "recall")}
