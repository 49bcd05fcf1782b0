"""Guides that read no text: classifiers, features of torchvision's networks, and LPIPS."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.errors import UserError
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.guidance.encoders import Channels, ImageEncoder, normalized
from taming.modules.losses.lpips import LPIPS, backbone_file
from taming.pictures import IMAGENET_MEAN, IMAGENET_STD
from taming.sampling.rejection import Classifier
from taming.user_files import name_and_file

SMALL, LPIPS_NETWORKS = "small", {"lpips": "vgg", "lpips-alex": "alex"}
LPIPS_SIZE = 64  # pixels a side: its embeddings are of half a million numbers then
HALF: Channels = (0.5, 0.5, 0.5)


class ClassifierGuide:
    """A classifier: embeddings are its logits, less their mean.

    A class is where its own logit is above all others, and these are equal. Unlike that of the
    probability, the gradient of the angle does not vanish far from there.

    Args:
        logits: normalized images [N, 3, size, size] -> logits [N, K].
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        size: int,
        n_classes: int,
        device: torch.device,
        *,
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
    ) -> None:
        self.logits, self.size, self.n_classes = logits, size, n_classes
        self.device, self.mean, self.std = device, mean, std

    @classmethod
    def of_small(cls, network: SmallClassifier) -> ClassifierGuide:
        """Of a `SmallClassifier`, which is frozen."""
        network.eval().requires_grad_(False)
        weight = network.head.weight
        return cls(
            lambda values: network.of_values(values)[1],
            network.size[0],
            len(weight),
            weight.device,
            mean=HALF,
            std=HALF,
        )

    def encode_images(self, images: Tensor) -> Tensor:
        logits = self.logits(normalized(images.to(self.device), self))
        return logits - logits.mean(dim=1, keepdim=True)

    def encode_class(self, label: int) -> Tensor:
        return F.one_hot(torch.tensor(label), self.n_classes) - 1 / self.n_classes


class NetworkFeatures:
    """What enters the last linear layer of a network of torchvision's.

    Raises:
        UserError: for a network that has none, such as SqueezeNet.
    """

    def __init__(self, network: nn.Module, size: int, device: torch.device) -> None:
        self.network, self.size, self.device = network.eval().requires_grad_(False), size, device
        self.mean: Channels = IMAGENET_MEAN
        self.std: Channels = IMAGENET_STD
        self._seen: list[Tensor] = []
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise UserError(
                f"{type(network).__name__} has no linear layer that reads features; take another, "
                "such as resnet50"
            )
        layers[-1].register_forward_pre_hook(lambda module, inputs: self._seen.append(inputs[0]))

    def encode_images(self, images: Tensor) -> Tensor:
        self._seen.clear()
        self.network(normalized(images.to(self.device), self))
        return self._seen.pop().flatten(1)


class LpipsFeatures:
    """Calibrated features (arXiv 1801.03924) of every position.

    Those of two images have the squared distance that LPIPS gives them.
    """

    by_position = True
    mean: Channels = HALF
    std: Channels = HALF

    def __init__(self, lpips: LPIPS, device: torch.device, size: int = LPIPS_SIZE) -> None:
        self.lpips, self.device, self.size = lpips.to(device), device, size
        self._scales = [
            lpips.get_parameter(f"lin{n}.model.1.weight").detach().clamp_min(0).sqrt()
            for n in range(len(lpips.chns))
        ]

    def encode_images(self, images: Tensor) -> Tensor:
        layers = self.lpips.features(normalized(images.to(self.device), self))
        parts = [
            # (N, C, h, w) * (1, C, 1, 1), over the root of the positions that are averaged
            (maps * scale / maps[0, 0].numel() ** 0.5).flatten(1)
            for maps, scale in zip(layers, self._scales, strict=True)
        ]
        return torch.cat(parts, dim=1)


def load_classifier_guide(name: str, device: torch.device) -> ClassifierGuide:
    """`small:FILE` as scripts/report.py leaves one, or a torchvision classifier with its published
    weights, `resnet50`, or its own, `resnet18:FILE`.

    Raises:
        UserError: for an unknown name, or weights that are not there or do not fit.
    """
    kind, file = name_and_file(name)
    if kind == SMALL or Path(name).is_file():
        path = name if Path(name).is_file() else file
        if not path:
            raise UserError("small needs the file of its weights, as small:report/classifier.pt")
        return ClassifierGuide.of_small(SmallClassifier.load(path).to(device))
    network, size = _torchvision(name, device)
    with torch.no_grad():
        classes = network(torch.zeros(1, 3, size, size, device=device)).shape[1]
    return ClassifierGuide(network, size, classes, device)


def load_features(name: str, device: torch.device, path: str | None = None) -> ImageEncoder:
    """`lpips` or `lpips-alex`, or the features of a classifier as `load_classifier_guide` names
    them; `path` is the file of LPIPS's backbone.

    Raises:
        UserError: as that does.
    """
    kind, file = name_and_file(name)
    if kind not in LPIPS_NETWORKS:
        if close := difflib.get_close_matches(kind, LPIPS_NETWORKS, n=1):
            raise UserError(f"there are no features '{kind}'; did you mean '{close[0]}'?")
        return NetworkFeatures(*_torchvision(name, device), device)
    lpips = LPIPS(LPIPS_NETWORKS[kind])
    file_key = f"--features {kind}:FILE"
    lpips.prepare(str(backbone_file(lpips.backbone, path or file or None, file_key)))
    return LpipsFeatures(lpips, device)


def _torchvision(name: str, device: torch.device) -> tuple[nn.Module, int]:
    """A frozen network, and the side of the images that it was trained on."""
    classifier = Classifier(name, device)
    size = classifier.transform.crop_size
    return classifier.network.requires_grad_(False), int(size[0])
