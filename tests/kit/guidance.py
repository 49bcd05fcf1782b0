"""Small guides with random weights, and CLIP of a few thousand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.guidance.networks import ClassifierGuide
from taming.modules.losses.lpips import LPIPS

CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
}


class Colors:
    """Embeddings are the mean color of an image, less gray; of a text those of its color."""

    size, mean, std = 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def encode_images(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return images.mean(dim=(2, 3)) - 0.5

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        names = ("red", "green", "blue")
        return torch.stack(
            [torch.tensor([float(name in t) for name in names]) - 0.3 for t in texts]
        )


def small_guide(classes: int = 4, side: int = 16) -> ClassifierGuide:
    """A classifier with random weights."""
    torch.manual_seed(1)
    return ClassifierGuide.of_small(SmallClassifier(classes, side, 8))


def random_lpips() -> LPIPS:
    """LPIPS whose VGG16 has random weights that keep the variance, and whose layers count alike."""
    lpips, generator = LPIPS(), torch.Generator().manual_seed(0)
    for name, parameter in lpips.named_parameters():
        if name.startswith("lin"):
            parameter.data.fill_(1.0)
        elif parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * (2 / parameter[0].numel()) ** 0.5
    return lpips


def write_clip(folder: Path, weights: bool = True) -> tuple[Path, nn.Module]:
    """A folder as open_clip reads it, of a tiny model with random weights; and the model."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG))
    torch.manual_seed(0)
    model: nn.Module = open_clip.create_model(f"local-dir:{folder}").eval()
    if weights:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
    return folder, model
