"""The 1,797 handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from taming.config_values import Range
from taming.data.base import Item
from taming.data.files.find import split_off
from taming.errors import UserError
from taming.pictures import to_values_array
from taming.shipped import extra

VALIDATION_FRACTION = 297 / 1797


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Gray values 0..16 (1797, 8, 8) and labels (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            f"the digits come with scikit-learn, which is not installed; run: {extra('data')}"
        ) from None
    digits = load_digits()
    return digits.images, digits.target


def _validation_mask(labels: np.ndarray) -> np.ndarray:
    """Which digits are for validation, bool (N,): the same share of each class."""
    mask = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        names = [str(index) for index in np.flatnonzero(labels == digit)]
        mask[[int(name) for name in split_off(names, VALIDATION_FRACTION, 0, str(digit))]] = True
    return mask


class DigitsTrain(Dataset[Item]):
    """Items: `image` float32 (size, size, 3) in [-1, 1], `class_label` 0..9, `human_label`.

    About 1,500 digits are for training and 300 for validation, always the same ones of each class.
    Raises `UserError` if scikit-learn is not installed.
    """

    training: ClassVar[bool] = True

    def __init__(self, size: Annotated[int, Range(1, 1024)] = 32) -> None:
        images, labels = _load()
        chosen = _validation_mask(labels) != self.training
        self.labels = labels[chosen]
        pixels = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
        small = (Image.fromarray(image) for image in pixels)
        large = (image.resize((size, size), Image.Resampling.BICUBIC) for image in small)
        self.images = np.stack([np.asarray(image) for image in large])  # (N, H, W)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        gray, label = self.images[index], int(self.labels[index])
        image = to_values_array(np.repeat(gray[:, :, None], 3, axis=2))
        return {"image": image, "class_label": label, "human_label": str(label)}


class DigitsValidation(DigitsTrain):
    """The digits for validation."""

    training = False
