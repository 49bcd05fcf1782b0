"""Whether samples look like the class that they are of, by a classifier of real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.metrics.base import CountsByClass
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.evaluation.sources.images import SourceImage, State, indices_and_labels, stack_pixels
from taming.pictures import to_values
from taming.sampling.rejection import Classifier, require_known
from taming.shipped import extra, script
from taming.user_files import name_and_file

Probabilities = Callable[[Tensor], Tensor]
"""uint8 (B, 3, H, W) -> probabilities (B, classes)."""

LabeledImages = tuple[np.ndarray, np.ndarray]
"""uint8 [N, H, W, C] of one size, and their classes, ints [N]."""


class ClassificationAccuracy:
    """Counts, by class, of images whose class is the likeliest, or one of the five likeliest.

    Integers: neither batches, nor their order, nor processes make a difference.
    """

    def __init__(self) -> None:
        self.counts = CountsByClass()  # images, top 1, top 5

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch: probabilities [B, K] and labels [B].

        Raises UserError for images without a class, or of one that the classifier does not know.
        """
        labels = labels.to(probabilities.device)
        if int(labels.min()) < 0:
            raise UserError(
                "a classifier's accuracy is of samples of classes, and these have none; sample "
                f"into a folder per class, as {script('sample_fast')} does"
            )
        require_known(int(labels.max()), probabilities)
        best = probabilities.topk(min(5, probabilities.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        rows = torch.stack([torch.ones_like(labels), hits[:, 0], hits.any(1)], dim=1).cpu().numpy()
        self.counts.add(labels.tolist(), rows)

    def state_dict(self) -> State:
        return self.counts.state_dict()

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.counts.merge_state(state)

    def compute(self) -> dict[str, Any]:
        """`images`, and the shares `top_1` and `top_5`; UserError if there were no images."""
        if not self.counts:
            raise UserError("there are no samples to classify")
        return _shares(np.sum(list(self.counts.values()), axis=0))

    def by_class(self) -> dict[int, dict[str, Any]]:
        """`compute` of every class."""
        return {label: _shares(row) for label, row in sorted(self.counts.items())}


class ClassifiedImages(ClassificationAccuracy):
    """Classifies images and counts the accuracy."""

    def __init__(self, probabilities: Probabilities) -> None:
        super().__init__()
        self.probabilities = probabilities

    def update(self, images: Sequence[SourceImage]) -> None:
        _, labels = indices_and_labels(images)
        self.add(self.probabilities(stack_pixels(images)), labels)


def _shares(row: np.ndarray) -> dict[str, Any]:
    images, first, five = row.tolist()
    return {"images": images, "top_1": first / images, "top_5": five / images}


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier with its description, JSON values that decide what it says."""

    probabilities: Probabilities
    description: dict[str, Any]


def load_classifier(name: str, device: torch.device) -> LoadedClassifier:
    """`resnet101`, or any torchvision classifier, see `Classifier`; `resnet18:FILE` with weights of
    one's own; or `small:FILE`, a `SmallClassifier`, as scripts/report.py leaves one.

    Raises UserError for an unknown name, or weights that are not there or do not fit.
    """
    kind, file = name_and_file(name)
    description: dict[str, Any] = {"classifier": kind}
    if kind != "small":
        probabilities, preprocessing = _torchvision_classifier(name, device)
    elif file:
        small = SmallClassifier.load(file).to(device)
        probabilities, preprocessing = small.probabilities, small.resize
    else:
        raise UserError("small needs the file of its weights, as small:report/classifier.pt")
    if file:
        description |= {"weights": file, "weights_sha256": file_hash(file)}
    return LoadedClassifier(probabilities, description | {"preprocessing": preprocessing})


def _torchvision_classifier(name: str, device: torch.device) -> tuple[Probabilities, str]:
    """A torchvision classifier, and what it does to images."""
    classifier = Classifier(name, device)

    def probabilities(images: Tensor) -> Tensor:
        return classifier.probabilities(to_values(images.to(device)))

    return probabilities, " ".join(str(classifier.transform).split())


def neighbor_accuracy(real: LabeledImages, samples: LabeledImages, neighbors: int = 5) -> float:
    """Share of samples that the vote of their nearest real images gives the right class.

    Images are compared pixel by pixel in L2.

    Raises UserError for samples of another size than the real images'.
    """
    try:
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError:
        raise UserError(
            f"the nearest-neighbor classifier needs scikit-learn: {extra('eval')}"
        ) from None
    if real[0].shape[1:] != samples[0].shape[1:]:
        raise UserError(
            f"the samples are {samples[0].shape[1:3]} and the real images {real[0].shape[1:3]} "
            "pixels; neighbors need images of one size"
        )
    flat = [images.reshape(len(images), -1).astype(np.float32) for images, _ in (real, samples)]
    classifier = KNeighborsClassifier(neighbors).fit(flat[0], real[1])
    return float((classifier.predict(flat[1]) == samples[1]).mean())
