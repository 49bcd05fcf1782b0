"""How well segmentations are reconstructed: accuracy of pixels, and mean IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.sources.images import State


class SegmentationAccumulator:
    """Counts which labels become which: a confusion matrix.

    - pixel_accuracy: share of the pixels that keep their label.
    - mean_iou: intersection over union of each label over all images, averaged over the labels
      that occur.
    """

    def __init__(self, n_labels: int) -> None:
        self.n_labels, self.images = n_labels, 0
        self.confusion = np.zeros((n_labels, n_labels), np.int64)  # (true, reconstructed)

    def update(
        self,
        indices: Sequence[int] | Tensor,
        images: Tensor,
        reconstructions: Tensor,
        labels: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Compare label maps [B, 1, H, W], integers; indices and classes do not matter.

        Raises:
            UserError: if the two differ in size.
        """
        if images.shape != reconstructions.shape:
            raise UserError(
                f"segmentations of {tuple(images.shape[2:])} and reconstructions of "
                f"{tuple(reconstructions.shape[2:])} pixels cannot be compared"
            )
        pairs = images.long().flatten() * self.n_labels + reconstructions.long().flatten()
        counts = torch.bincount(pairs.cpu(), minlength=self.n_labels**2)
        self.confusion += counts.reshape(self.n_labels, self.n_labels).numpy()
        self.images += len(images)

    def state_dict(self) -> State:
        return {"confusion": self.confusion, "images": np.array(self.images)}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.confusion = self.confusion + state["confusion"]
        self.images += int(state["images"])

    def compute(self) -> dict[str, Any]:
        """`images`, `pixel_accuracy` and `mean_iou`; UserError if no pairs were added."""
        if not self.images:
            raise UserError("there are no images to evaluate")
        right = np.diagonal(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - right
        occurs = union > 0
        return {
            "images": self.images,
            "pixel_accuracy": float(right.sum() / self.confusion.sum()),
            "mean_iou": float((right[occurs] / union[occurs]).mean()),
        }

    def left_out(self) -> dict[str, str]:
        """Nothing: both numbers exist for any size."""
        return {}

    def per_label(self) -> dict[int, dict[str, Any]]:
        """Nothing: values are not kept by image."""
        return {}

    def values(self) -> State:
        """Nothing: values are not kept by image."""
        return {}
