"""How many samples of classes a classifier finds to be of their class."""

from __future__ import annotations

from collections.abc import Sequence

from taming.evaluation.cache import key_of
from taming.evaluation.metrics.accuracy import (
    ClassificationAccuracy,
    LoadedClassifier,
    Probabilities,
)
from taming.evaluation.metrics.base import DerivedAccumulator
from taming.evaluation.runner import Runner
from taming.evaluation.sources.base import ImageSource
from taming.evaluation.sources.image import Manifest, SourceImage, labels_of, stack_pixels


class ClassifiedImages(DerivedAccumulator[ClassificationAccuracy]):
    """Classifies images and counts the accuracy."""

    def __init__(self, probabilities: Probabilities) -> None:
        super().__init__(ClassificationAccuracy())
        self.probabilities = probabilities

    def update(self, images: Sequence[SourceImage]) -> None:
        self.counted.update(self.probabilities(stack_pixels(images)), labels_of(images))


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
