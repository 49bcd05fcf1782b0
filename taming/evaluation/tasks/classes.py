"""How many samples of classes a classifier finds to be of their class."""

from __future__ import annotations

from collections.abc import Sequence

from taming.evaluation.metrics.accuracy import (
    ClassificationAccuracy,
    LoadedClassifier,
    Probabilities,
)
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import (
    ImageSource,
    Manifest,
    SourceImage,
    indices_and_labels,
    key_of,
    stack_pixels,
)


class ClassifiedImages(ClassificationAccuracy):
    """Classifies images and counts the accuracy."""

    def __init__(self, probabilities: Probabilities) -> None:
        super().__init__()
        self.probabilities = probabilities

    def update(self, images: Sequence[SourceImage]) -> None:
        _, labels = indices_and_labels(images)
        self.add(self.probabilities(stack_pixels(images)), labels)


def evaluate_accuracy(
    images: ImageSource, classifier: LoadedClassifier, runner: Runner
) -> tuple[Manifest, ClassificationAccuracy]:
    """The accuracy of a set of images; complete in the process of rank 0 alone.

    Raises:
        UserError: for images without a class, or of one that the classifier does not know.
    """
    key = runner.key_for(images, accuracy=key_of(**classifier.description))
    return runner.run(images, lambda: ClassifiedImages(classifier.probabilities), key, "images")
