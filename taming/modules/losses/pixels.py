"""Distances of images by their pixels, and what a decoder gives for them."""

from __future__ import annotations

import math

from torch import Tensor

from taming.modules.dalle import map_pixels, unmap_pixels


class AbsoluteDifference:
    """|x - y|, the published distance; the decoder gives images."""

    distribution = False  # whether the decoder gives one for every pixel, in twice the channels

    def __call__(self, images: Tensor, outputs: Tensor) -> Tensor:
        """The mean distance of images [B, C, H, W] and what a decoder made of them."""
        return (images - outputs).abs().mean()


class SquaredDifference(AbsoluteDifference):
    """|x - y|^2."""

    def __call__(self, images: Tensor, outputs: Tensor) -> Tensor:
        return (images - outputs).square().mean()


class LogitLaplace(AbsoluteDifference):
    """-log of the logit-Laplace density (DALL-E, arXiv 2102.12092, appendix A.3), in nats.

    The decoder gives mu and ln b, [B, 2 C, H, W]. With x mapped to [0.1, 0.9], it is

        ln(2 b) + ln(x (1 - x)) + |logit(x) - mu| / b.
    """

    distribution = True

    def __call__(self, images: Tensor, outputs: Tensor) -> Tensor:
        mu, log_b = outputs.chunk(2, dim=1)
        x = map_pixels(images)
        density_of_logit = math.log(2) + log_b + (x.logit() - mu).abs() * (-log_b).exp()
        return (density_of_logit + (x * (1 - x)).log()).mean()


PIXEL_LOSSES = {"l1": AbsoluteDifference, "l2": SquaredDifference, "logit_laplace": LogitLaplace}


def images_of(outputs: Tensor, channels: int) -> Tensor:
    """A decoder's outputs [B, C, H, W] as images: of a distribution, [B, 2 C, H, W], the median."""
    if outputs.shape[1] != 2 * channels:
        return outputs
    return unmap_pixels(outputs[:, :channels].sigmoid())
