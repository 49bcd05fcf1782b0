"""How many samples of classes a classifier finds to be of their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from taming.evaluation.cache import State, key_of
from taming.evaluation.metrics.accuracy import (
    ClassificationAccuracy,
    LoadedClassifier,
    Probabilities,
)
from taming.evaluation.runner import Runner
from taming.evaluation.sources.base import ImageSource
from taming.evaluation.sources.image import Manifest, SourceImage, labels_of, stack_pixels


class ClassifiedImages:
    """Classifies images and counts the accuracy: an `ImageAccumulator`."""

    def __init__(self, probabilities: Probabilities) -> None:
        self.probabilities, self.accuracy = probabilities, ClassificationAccuracy()

    def update(self, images: Sequence[SourceImage]) -> None:
        self.accuracy.update(self.probabilities(stack_pixels(images)), labels_of(images))

    def compute(self) -> ClassificationAccuracy:
        return self.accuracy

    def state_dict(self) -> State:
        return self.accuracy.state_dict()

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.accuracy.merge_state(state)


def evaluate_accuracy(
    images: ImageSource, classifier: LoadedClassifier, runner: Runner
) -> tuple[Manifest, ClassificationAccuracy]:
    """The accuracy of a set of images; complete in the process of rank 0 alone.

    Raises:
        UserError: for images without a class, or of one that the classifier does not know.
    """
    key = runner.key_for(images, accuracy=key_of(**classifier.description))
    manifest, counted = runner.run(
        images, lambda: ClassifiedImages(classifier.probabilities), key, "images"
    )
    return manifest, counted.compute()
