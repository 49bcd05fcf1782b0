"""CLIP (arXiv 2103.00020) for features, from the published file of weights, which is not run.

torch-fidelity loads that file as the TorchScript program that it is, which could run code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model

from taming.evaluation.metrics.own_extractor import OwnExtractor


class Clip(OwnExtractor, FeatureExtractorCLIP):
    """torch-fidelity's network and features to the bit, of tensors under the published names."""

    # CLIP's, of images in [0, 1].
    MEAN = tuple(255 * value for value in (0.48145466, 0.4578275, 0.40821073))
    DEVIATION = tuple(255 * value for value in (0.26862954, 0.26130258, 0.27577711))

    def built(self, weights: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
        network = build_model(weights, torch.float32).visual
        return network, network.input_resolution
