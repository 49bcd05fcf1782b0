"""A classifier of one's own images, trained in seconds, for images unlike those of ImageNet.

Inception has never seen digits, and offline its weights may not be there at all. This network
learns the classes of a labeled training set, and then is an extractor like any other of
torch-fidelity: its last layer's inputs are `features`, its outputs `logits`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from tqdm import tqdm

from taming.checkpoint import read_checkpoint, save_atomic
from taming.errors import UserError
from taming.pictures import to_values

NAME = "small-classifier"


class SmallClassifier(nn.Module):
    """Three strided convolutions of side x side pixels, their mean, and a linear layer."""

    def __init__(self, classes: int, side: int = 32, width: int = 64) -> None:
        super().__init__()
        self.size = (side, side)
        self.register_buffer("side", torch.tensor(side))  # for the file; reading it waits for a GPU
        widths = (3, width // 4, width // 2, width)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) -> features (B, width) and logits (B, classes)."""
        return self.of_values(to_values(images).to(self.head.weight.dtype))

    def of_values(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of values in [-1, 1], to which gradients lead back."""
        if tuple(values.shape[2:]) != self.size:
            values = F.interpolate(values, self.size, mode="bilinear", antialias=True)
        features = self.body(values).mean((2, 3))
        return features, self.head(features)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, classes)."""
        return self(images.to(self.head.weight.device))[1].softmax(1).cpu()

    @property
    def resize(self) -> str:
        """What is done to images of other sizes."""
        return f"bilinear with antialiasing {self.size[0]}"

    def save(self, path: Path) -> None:
        """Write the weights."""
        save_atomic(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> SmallClassifier:
        """The classifier that `save` wrote, in eval mode; UserError if there is none."""
        state = read_checkpoint(path)["state_dict"]
        if set(state) != set(cls(2).state_dict()):
            raise UserError(f"{path} holds no weights of a SmallClassifier; train one on your data")
        classes, width = state["head.weight"].shape
        new = cls(classes, int(state["side"]), width)
        new.load_state_dict(state)
        return new.eval()


def train_small_classifier(
    images: Tensor, labels: Tensor, seed: int = 0, epochs: int = 10, batch_size: int = 64
) -> SmallClassifier:
    """A `SmallClassifier` of labeled images, in eval mode; the same for the same arguments.

    `images` are uint8 (N, 3, H, W), `labels` int64 (N,), from 0 on, of two classes at least; else
    UserError.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    if classes < 2 or int(labels.min()) < 0:
        raise UserError(
            "a classifier of one's own needs images of two classes or more, labeled from 0 on"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and no GPU's, which nobody restores
        net = SmallClassifier(classes, side=min(max(images.shape[2:]), 64))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.01)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in tqdm(range(epochs), desc="own classifier", unit="epoch", leave=False):
        for chosen in torch.randperm(len(images), generator=generator).split(batch_size):
            loss = F.cross_entropy(net(images[chosen])[1], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


class SmallClassifierExtractor(FeatureExtractorBase):
    """A trained `SmallClassifier` for torch-fidelity; UserError without its weights' file."""

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise UserError(f"the extractor {name} needs the file of its weights: give --weights")
        self.classifier = SmallClassifier.load(feature_extractor_weights_path)
        self.resize = self.classifier.resize

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) -> the requested layers."""
        layers = dict(zip(self.get_provided_features_list(), self.classifier(images), strict=True))
        return tuple(layers[name].float() for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)


def register_small_classifier() -> str:
    """Make torch-fidelity know the extractor; returns its name."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, SmallClassifierExtractor)
    return NAME
