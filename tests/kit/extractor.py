"""A tiny feature extractor, registered with torch-fidelity, for tests that need no Inception."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import CLIPVisual
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from taming.evaluation.metrics.clip import Clip
from taming.evaluation.metrics.dinov2 import DinoV2, VisionTransformer
from taming.evaluation.metrics.small_classifier import SmallClassifier, SmallClassifierExtractor

TINY = "tiny"


class TinyExtractor(FeatureExtractorBase):
    """16 features and 10 logits of 3 x H x W images, by fixed random weights or those of a file."""

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(16, 10)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.conv(images.float() / 127.5 - 1)).mean(dim=(2, 3))  # (B, 16)
        layers = {"16": x, "logits": self.fc(x)}
        return tuple(layers[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "16", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "16"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


class FatalExtractor(TinyExtractor):
    """Notes how many images it gets in the file of $TINY_LOG, and kills its process, as a full
    machine would, once there are $TINY_KILL_AT of them."""

    seen = 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with open(os.environ["TINY_LOG"], "a") as log:
            log.write(f"{len(images)}\n")
        self.seen += len(images)
        if self.seen > int(os.environ.get("TINY_KILL_AT", 10**9)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


def register_tiny() -> str:
    """Register the extractor once; returns its name."""
    if TINY not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(TINY, TinyExtractor)
    return TINY


def inception() -> Any:
    """Inception without its weights' file."""
    from torch_fidelity import feature_extractor_inceptionv3 as original

    from taming.evaluation.metrics.inception import Inception

    without_file = patch.object(original, "load_state_dict_from_url", return_value={})
    nothing_loaded = patch.object(nn.Module, "load_state_dict")
    as_it_is = patch.object(nn.Module, "to", lambda module, dtype: module)  # in float32
    with without_file, nothing_loaded, as_it_is:
        return Inception("inception-v3-compat", ["2048"])


def dinov2() -> DinoV2:
    """DINOv2 of one block, without its weights' file."""
    network = VisionTransformer(64, 1, positions=4**2)
    with (
        patch.object(VisionTransformer, "of_weights", return_value=network),
        patch.object(torch, "load", return_value={}),
    ):
        return DinoV2("dinov2-vit-s-14", ["dinov2"], "weights.pth")


def clip() -> Clip:
    """CLIP's image network of one block, without its weights' file."""
    with patch.object(torch, "load", return_value=clip_state(side=64, patch=16)):
        return Clip("clip-vit-b-16", ["clip"], "weights.pth")


def small_classifier_extractor() -> SmallClassifierExtractor:
    """The extractor of a classifier of one's own, without its weights' file."""
    network = SmallClassifier(3, side=16, width=8)
    with patch.object(SmallClassifier, "load", return_value=network):
        return SmallClassifierExtractor("own", ["features", "logits"], "weights.pt")


def write_inception_weights(path: Path, seed: int = 0) -> Path:
    """Write random weights of torch-fidelity's Inception, which keep the images' variance."""
    module = inception()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * (2 / parameter[0].numel()) ** 0.5
    torch.save(module.state_dict(), path)
    return path


def write_dinov2_weights(path: Path, width: int = 64, depth: int = 2, grid: int = 37) -> Path:
    """Write random weights of a DINOv2 of that size, under the published names."""
    torch.manual_seed(1)
    network = VisionTransformer(width, depth, positions=grid**2)
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) / 5
    torch.save(network.state_dict(), path)
    return path


def write_clip_weights(
    path: Path, width: int = 64, layers: int = 1, patch: int = 112, side: int = 336
) -> Path:
    """Write random weights of CLIP's image network, as TorchScript like the published ones."""
    torch.jit.script(_tree(clip_state(width, layers, patch, side))).save(str(path))
    return path


def clip_state(
    width: int = 64, layers: int = 1, patch: int = 112, side: int = 336
) -> dict[str, Tensor]:
    """Random weights of CLIP's image network under the published names."""
    torch.manual_seed(2)
    module = CLIPVisual(16, side, layers, width, patch)
    return module.state_dict() | {"text_projection": torch.zeros(16, 16)}


class _Node(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def _tree(state: dict[str, Tensor]) -> nn.Module:
    """A module with these tensors under their dotted names."""
    root = _Node()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if parent not in node._modules:
                node.add_module(parent, _Node())
            node = node.get_submodule(parent)
        node.register_buffer(last, tensor)
    return root
