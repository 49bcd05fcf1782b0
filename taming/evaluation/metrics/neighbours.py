"""Whether class-conditional samples look like their class, by a classifier of real images."""

from __future__ import annotations

import numpy as np

from taming.errors import UserError

Labelled = tuple[np.ndarray, np.ndarray]


def neighbour_accuracy(real: Labelled, samples: Labelled, neighbours: int = 5) -> float:
    """Share of samples that the vote of their nearest real images gives the right class.

    Images are uint8 [N, H, W, C] of one size, compared pixel by pixel in L2; labels are ints [N].
    """
    try:
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError:
        raise UserError(
            "the nearest-neighbour classifier needs scikit-learn: pip install scikit-learn"
        ) from None
    if real[0].shape[1:] != samples[0].shape[1:]:
        raise UserError(
            f"the samples are {samples[0].shape[1:3]} and the real images {real[0].shape[1:3]} "
            "pixels; neighbours need images of one size"
        )
    flat = [images.reshape(len(images), -1).astype(np.float32) for images, _ in (real, samples)]
    classifier = KNeighborsClassifier(neighbours).fit(flat[0], real[1])
    return float((classifier.predict(flat[1]) == samples[1]).mean())
