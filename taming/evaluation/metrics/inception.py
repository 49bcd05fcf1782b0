"""The Inception of TensorFlow's graph of 2015, with the layers of all evaluators in one pass."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from taming.evaluation.metrics.extractor_files import SPATIAL

SPATIAL_CHANNELS = 7
SPATIAL_PART = "Mixed_6d"  # TensorFlow's mixed_6
POOLED = {"MaxPool_1": "64", "MaxPool_2": "192", "Mixed_6e": "768", "AvgPool": "2048"}


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's network and weights, and its features to the bit, with one layer more.

    "spatial" is what sFID compares: of the 1 x 1 convolution of TensorFlow's mixed_6 (with its
    normalization and ReLU), the first 7 channels at all 17 x 17 places, in TensorFlow's order
    (row, column, channel), 2023 numbers. Images may also be float of 0 to 255; those of 299 x 299
    are not changed by the resize.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] -> float32 [B, D] for every name of `features_list`."""
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        x = images.to(self.feature_extractor_internal_dtype)
        if x.shape[-2:] != size:
            x = interpolate_bilinear_2d_like_tensorflow1x(x, size=size, align_corners=False)
        x = (x - 128) / 128
        found: dict[str, Tensor] = {}
        for name, part in self.named_children():  # they are registered in the order of the graph
            if found.keys() >= set(self.features_list):
                break
            if name == "fc":
                found |= self._logits(x)
                break
            if name == SPATIAL_PART and SPATIAL in self.features_list:
                maps = part.branch1x1(x)[:, :SPATIAL_CHANNELS]  # (B, 7, 17, 17)
                found[SPATIAL] = maps.permute(0, 2, 3, 1).flatten(1)
            x = part(x)
            if name == "AvgPool":
                x = x.flatten(1)
                found[POOLED[name]] = x
            elif POOLED.get(name) in self.features_list:
                found[POOLED[name]] = F.adaptive_avg_pool2d(x, output_size=(1, 1)).flatten(1)
        return tuple(found[layer].float() for layer in self.features_list)

    def _logits(self, x: Tensor) -> dict[str, Tensor]:
        if "logits_unbiased" not in self.features_list:
            return {"logits": self.fc(x)}
        unbiased = x.mm(self.fc.weight.T)
        return {"logits_unbiased": unbiased, "logits": unbiased + self.fc.bias}

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (*FeatureExtractorInceptionV3.get_provided_features_list(), SPATIAL)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        if metric == "sfid":
            return SPATIAL
        layer: str = FeatureExtractorInceptionV3.get_default_feature_layer_for_metric(metric)
        return layer
