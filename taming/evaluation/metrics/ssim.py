"""SSIM and MS-SSIM as they were published: a Gaussian window that stays inside the image.

Libraries that let the window reach over the border average over more, padded pixels, and their
values differ in the third digit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE = 255.0
RADIUS, SIGMA = 5, 1.5  # 11 x 11 pixels
STABILITY = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
# Exponents of the five scales (Wang, Simoncelli, Bovik: Multiscale structural similarity, 2003).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST_SSIM = 2 * RADIUS + 1  # pixels a side
SMALLEST_MS_SSIM = SMALLEST_SSIM * 2 ** (len(SCALES) - 1)

_weights = [math.exp(-((k / SIGMA) ** 2) / 2) for k in range(-RADIUS, RADIUS + 1)]
WINDOW = [weight / sum(_weights) for weight in _weights]


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Mean structural similarity [B] of images [B, C, H, W] of 0..255, float64.

    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, 2004; equations 13 to 17. Channels
    are averaged. Sides have at least `SMALLEST_SSIM` pixels.
    """
    luminance, contrast = _terms(first.double(), second.double())
    return (luminance * contrast).flatten(1).mean(dim=1)


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Multi-scale SSIM [B] (equation 7, with its weights); sides of at least `SMALLEST_MS_SSIM`.

    Between scales, images are averaged over 2 x 2 pixels. Negative factors count as zero.
    """
    first, second = first.double(), second.double()
    product = first.new_ones(len(first))
    for exponent in SCALES:
        luminance, contrast = _terms(first, second)
        last = exponent == SCALES[-1]
        similarity = (luminance * contrast if last else contrast).flatten(1).mean(dim=1)
        product = product * similarity.clamp_min(0) ** exponent
        if not last:
            first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return product


def _terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms [B, C, H - 10, W - 10]."""
    products = (first, second, first * first, second * second, first * second)
    m1, m2, square1, square2, cross = _smooth(torch.stack(products))
    mean1, mean2, both = m1 * m1, m2 * m2, m1 * m2
    c1, c2 = STABILITY
    luminance = (2 * both + c1) / (mean1 + mean2 + c1)
    contrast = (2 * (cross - both) + c2) / (square1 - mean1 + square2 - mean2 + c2)
    return luminance, contrast


def _smooth(x: Tensor) -> Tensor:
    """The window's mean around each pixel of [..., H, W] that is far enough from the border."""
    for dim in (-2, -1):
        length = x.shape[dim] - 2 * RADIUS
        total = torch.zeros_like(x.narrow(dim, 0, length))
        for offset, weight in enumerate(WINDOW):
            total.add_(x.narrow(dim, offset, length), alpha=weight)
        x = total
    return x
