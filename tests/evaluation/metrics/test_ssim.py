"""SSIM and MS-SSIM against scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from taming.evaluation.metrics.ssim import SCALES, SMALLEST_MS_SSIM, SMALLEST_SSIM, ms_ssim, ssim


def pair(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two smooth images [2, C, H, W] of 0..255, and noisy ones."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, channels, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 255
    noise = torch.randn(images.shape, generator=generator) * torch.tensor([4, 30]).view(2, 1, 1, 1)
    return images.byte(), (images + noise).clamp(0, 255).byte()


def reference(first: Tensor, second: Tensor, **options: Any) -> float:
    """scikit-image's value of two images [C, H, W], with the window of the paper."""
    arrays = [image.permute(1, 2, 0).double().numpy() for image in (first, second)]
    return structural_similarity(
        *arrays,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
        **options,
    )


@pytest.mark.parametrize("shape", [(3, 40, 33), (1, 64, 64), (3, 11, 12)])
def test_ssim_is_scikit_images(shape: tuple[int, int, int]) -> None:
    first, second = pair(*shape)
    values = ssim(first, second).tolist()
    expected = [reference(*images) for images in zip(first, second, strict=True)]
    assert values == pytest.approx(expected, abs=1e-9)
    assert values[0] > values[1]
    assert ssim(first, first).tolist() == pytest.approx([1, 1])


def test_ms_ssim_is_composed_of_scikit_images() -> None:
    """A huge K1 leaves the contrast term alone, which the coarser scales are without luminance."""
    side = SMALLEST_MS_SSIM
    first, second = pair(3, side + 5, side)
    expected = np.ones(2)
    scaled = [first.double(), second.double()]
    for scale, exponent in enumerate(SCALES, 1):
        options = {} if scale == len(SCALES) else {"K1": 1e8}
        values = [reference(a, b, **options) for a, b in zip(*scaled, strict=True)]
        expected *= np.array(values) ** exponent
        scaled = [torch.nn.functional.avg_pool2d(images, 2) for images in scaled]
    assert ms_ssim(first, second).tolist() == pytest.approx(expected.tolist(), abs=1e-9)


def test_ms_ssim_is_near_that_of_torchmetrics() -> None:
    """Whose window reaches over the border."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    first, second = pair(3, 256, 256)
    theirs = multiscale_structural_similarity_index_measure(
        second.float(), first.float(), data_range=255.0, reduction="none"
    )
    assert ms_ssim(first, second).tolist() == pytest.approx(theirs.tolist(), abs=0.01)


def test_unlike_images_are_not_negative() -> None:
    first, _ = pair(1, SMALLEST_MS_SSIM, SMALLEST_MS_SSIM)
    assert ssim(first, 255 - first).max() < 0
    assert ms_ssim(first, 255 - first).tolist() == [0, 0]
    assert SMALLEST_SSIM == 11 and SMALLEST_MS_SSIM == 176
    assert SCALES == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the paper
