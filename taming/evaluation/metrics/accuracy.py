"""Whether a classifier of real images finds samples to be of the class they were drawn for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.metrics.base import CountedTally
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.evaluation.runner import Reading
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.sources.picture import Picture
from taming.sampling.rejection import Classifier, require_known

Probabilities = Callable[[Tensor], Tensor]
"""uint8 (B, 3, H, W) -> probabilities (B, classes)."""

Labelled = Iterable[tuple[Tensor, Tensor]]
"""uint8 (B, 3, H, W) with labels int64 (B,)."""


class ClassificationAccuracy:
    """Counts, by class, of images whose class is the likeliest, or one of the five likeliest.

    Integers: neither batches, nor their order, nor processes make a difference.
    """

    def __init__(self) -> None:
        self.counts: dict[int, np.ndarray] = {}  # label -> images, top 1, top 5

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch: probabilities [B, K] and labels [B].

        Raises:
            UserError: for images without a class, or of one that the classifier does not know.
        """
        labels = labels.to(probabilities.device)
        if int(labels.min()) < 0:
            raise UserError(
                "a classifier's accuracy is of samples of classes, and these have none; draw them "
                "into a folder per class, as scripts/sample_fast.py does"
            )
        require_known(int(labels.max()), probabilities)
        best = probabilities.topk(min(5, probabilities.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        rows = torch.stack([torch.ones_like(labels), hits[:, 0], hits.any(1)], dim=1).cpu().numpy()
        for label, row in zip(labels.tolist(), rows, strict=True):
            self.counts[label] = self.counts.get(label, 0) + row

    def merge(self, other: ClassificationAccuracy) -> None:
        """Add what `other` has seen, of other images."""
        for label, row in other.counts.items():
            self.counts[label] = self.counts.get(label, 0) + row

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for other processes and for files."""
        labels = sorted(self.counts)
        rows = [self.counts[label] for label in labels]
        return {"labels": np.array(labels, np.int64), "rows": np.array(rows).reshape(-1, 3)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> ClassificationAccuracy:
        """What `state` was taken of."""
        new = cls()
        new.counts = dict(zip(state["labels"].tolist(), state["rows"], strict=True))
        return new

    def scores(self) -> dict[str, Any]:
        """`images`, `top_1` and `top_5`, shares of the images.

        Raises:
            UserError: where there were no images.
        """
        if not self.counts:
            raise UserError("there are no samples to classify")
        return _shares(np.sum(list(self.counts.values()), axis=0))

    def by_class(self) -> dict[int, dict[str, Any]]:
        """The scores of every class."""
        return {label: _shares(row) for label, row in sorted(self.counts.items())}


def _shares(row: np.ndarray) -> dict[str, Any]:
    images, first, five = row.tolist()
    return {"images": images, "top_1": first / images, "top_5": five / images}


def measure_accuracy(classify: Probabilities, batches: Labelled) -> ClassificationAccuracy:
    """The classifier's accuracy on labelled images, which are samples or real ones."""
    accuracy = ClassificationAccuracy()
    for images, labels in batches:
        accuracy.add(classify(images), labels)
    return accuracy


class AccuracyTally(CountedTally):
    """Accuracies of a set of images; see `taming.evaluation.metrics.base.Tally`.

    Args:
        classify: gives the probabilities.
        images: number of images of the set.
    """

    def __init__(self, classify: Probabilities, images: int) -> None:
        self.classify = classify
        super().__init__(images, ClassificationAccuracy())

    def add(self, pictures: Sequence[Picture]) -> None:
        """Classify pictures of one size."""
        labels = [-1 if picture.label is None else picture.label for picture in pictures]
        images = torch.stack([picture.pixels for picture in pictures])
        self.counted.add(self.classify(images), torch.tensor(labels))
        self.content.add(pictures)


def evaluate_accuracy(
    images: ImageSource, classify: Probabilities, identity: str, reading: Reading
) -> AccuracyTally:
    """The accuracies of a set of images; complete in the process of rank 0 alone.

    Args:
        identity: hash of what decides the classifier.
    """
    return reading.count(
        images, "images", lambda: AccuracyTally(classify, len(images)), accuracy=identity
    )


@dataclass(frozen=True)
class Judge:
    """A classifier with its description, JSON values that decide what it says."""

    classify: Probabilities
    about: dict[str, Any]


def load_judge(name: str, device: torch.device) -> Judge:
    """`resnet101`, or any torchvision classifier; `resnet18:FILE` with weights of one's own; or
    `small:FILE`, a `SmallClassifier`, as scripts/report.py leaves one.

    Raises:
        UserError: for an unknown name, or weights that are not there or do not fit.
    """
    kind, _, file = name.partition(":")
    about: dict[str, Any] = {"classifier": kind}
    classify: Probabilities
    if kind == "small":
        if not file:
            raise UserError("small needs the file of its weights, as small:report/classifier.pt")
        small = SmallClassifier.load(file).to(device)
        classify, preprocessing = small.probabilities, small.resize
    else:
        classify, preprocessing = torchvision_classifier(name, device)
    if file:
        about |= {"weights": file, "weights_sha256": file_hash(file)}
    return Judge(classify, about | {"preprocessing": preprocessing})


def torchvision_classifier(name: str, device: torch.device) -> tuple[Probabilities, str]:
    """A torchvision classifier, `resnet101` or `resnet18:FILE`, and what it does to images."""
    classifier = Classifier(name, device)

    def classify(images: Tensor) -> Tensor:
        return classifier.probabilities(images.to(device) / 127.5 - 1)

    return classify, " ".join(str(classifier.transform).split())
