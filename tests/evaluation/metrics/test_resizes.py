"""Resizes of evaluators against Pillow and clean-fid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from PIL import Image

from taming.evaluation.metrics.resizes import CLEAN, CMMD, DGM_EVAL, Resize
from tests.kit.images import noise

SIZES = ((40, 40), (31, 52), (400, 333), (52, 31))


def images(height: int, width: int) -> np.ndarray:
    """uint8 [2, 3, H, W]."""
    return np.stack([noise(height, width, seed) for seed in (5, 250)]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_clean_is_clean_fids(size: tuple[int, int]) -> None:
    pixels = images(*size)
    found = CLEAN(torch.from_numpy(pixels))
    expected = [build_resizer("clean")(image.transpose(1, 2, 0)) for image in pixels]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    assert found.frac().any()  # not rounded


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [DGM_EVAL, CMMD])
def test_others_are_pillows(resize: Resize, size: tuple[int, int]) -> None:
    pixels = images(*size)
    found = resize(torch.from_numpy(pixels))
    assert found.dtype == torch.uint8 and found.shape == (2, 3, resize.side, resize.side)
    for image, one in zip(pixels, found, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        if resize.center:
            width, height = picture.size
            side = min(picture.size)
            left, top = (width - side) // 2, (height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
        picture = picture.resize((resize.side,) * 2, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(one.numpy(), np.asarray(picture).transpose(2, 0, 1))


def test_names_tell_them_apart() -> None:
    names = [resize.name for resize in (CLEAN, DGM_EVAL, CMMD)]
    assert names == [
        "pillow-bicubic-float 299",
        "pillow-bicubic 224",
        "center-crop pillow-bicubic 336",
    ]
