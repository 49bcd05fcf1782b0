from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from taming.data.digits import DigitsTrain, DigitsValidation
from taming.errors import UserError


def test_items() -> None:
    item = DigitsTrain(size=32)[0]
    assert item["image"].shape == (32, 32, 3) and item["image"].dtype == np.float32
    assert item["image"].min() >= -1 and item["image"].max() <= 1
    assert item["human_label"] == str(item["class_label"])
    assert (item["image"][..., 0] == item["image"][..., 2]).all()
    small = Image.fromarray(DigitsTrain(size=8).images[0])
    large = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(item["image"][..., 0], large / 127.5 - 1, atol=1e-6)


def test_split_is_complete_disjoint_and_stratified() -> None:
    train, validation = DigitsTrain(8), DigitsValidation(8)
    assert (len(train), len(validation)) == (1500, 297)
    together = {image.tobytes() for split in (train, validation) for image in split.images}
    assert len(together) == len({image.tobytes() for image in load_digits().images})
    shares = np.bincount(validation.labels) / np.bincount(load_digits().target)
    assert shares.min() > 0.15 and shares.max() < 0.18


def test_digits_are_the_real_ones_with_their_labels() -> None:
    """At their own size nothing is resampled."""
    digits = load_digits()
    known = {
        np.round(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    validation = DigitsValidation(8)
    for image, label in zip(validation.images, validation.labels, strict=True):
        assert known[image.tobytes()] == label


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[data\]'"):
        DigitsTrain()
