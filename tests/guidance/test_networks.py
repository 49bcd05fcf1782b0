from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from taming.errors import UserError
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.guidance import GuideSettings, Objective, guide
from taming.guidance.cutouts import CutSettings
from taming.guidance.networks import (
    LpipsFeatures,
    NetworkFeatures,
    load_classifier_guide,
    load_features,
)
from taming.guidance.objective import image_target
from taming.pictures import to_uint8
from tests.kit.guidance import random_lpips, small_guide
from tests.kit.models import build, first_stage_config

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_small_classifier_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SmallClassifier(6, 16, 8).eval()
    network.save(tmp_path / "classifier.pt")
    pixels = to_uint8(IMAGES[:, :, :16, :16] * 2 - 1)
    logits = network(pixels)[1]
    for name in (f"small:{tmp_path / 'classifier.pt'}", str(tmp_path / "classifier.pt")):
        guide_ = load_classifier_guide(name, CPU)
        assert (guide_.size, guide_.n_classes) == (16, 6)
        embeddings = guide_.encode_images(pixels / 255)
        torch.testing.assert_close(embeddings, logits - logits.mean(1, keepdim=True))
    with pytest.raises(UserError, match="small needs the file of its weights"):
        load_classifier_guide("small", CPU)
    with pytest.raises(UserError, match="torchvision has no classifier 'resnet'"):
        load_classifier_guide("resnet", CPU)


def test_features_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no features 'lpipz'; did you mean 'lpips'"):
        load_features("lpipz", CPU)
    with pytest.raises(UserError) as refusal:
        load_features(f"lpips-alex:{tmp_path}/none.pth", CPU)
    assert str(refusal.value).startswith("--features lpips-alex:FILE: there is no file")
    assert "train without" not in str(refusal.value)
    write_weights("squeezenet1_1", tmp_path / "weights.pth")
    with pytest.raises(UserError, match="SqueezeNet has no linear layer that reads features"):
        load_features(f"squeezenet1_1:{tmp_path / 'weights.pth'}", CPU)


def write_weights(name: str, path: Path) -> nn.Module:
    from torchvision.models import get_model

    torch.manual_seed(0)
    network: nn.Module = get_model(name, num_classes=5).eval()
    torch.save(network.state_dict(), path)
    return network


def test_networks_of_torchvision_from_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    network = write_weights("squeezenet1_0", path)
    classifier = load_classifier_guide(f"squeezenet1_0:{path}", CPU)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (classifier.mean, classifier.std))
    logits = network((IMAGES - mean) / std)
    expected = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(classifier.encode_images(IMAGES), expected)
    assert classifier.n_classes == 5 and classifier.size == 224


def test_features_are_what_the_last_layer_reads(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    network = write_weights("resnet18", path)
    features = load_features(f"resnet18:{path}", CPU)
    assert isinstance(features, NetworkFeatures)
    assert not any(p.requires_grad for p in features.network.parameters())
    embeddings = features.encode_images(IMAGES)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (features.mean, features.std))
    assert isinstance(network.fc, nn.Linear)
    torch.testing.assert_close(network.fc(embeddings), network((IMAGES - mean) / std))
    assert torch.equal(embeddings, features.encode_images(IMAGES))


def test_distances_of_lpips() -> None:
    lpips = random_lpips()
    encoder = LpipsFeatures(lpips, CPU)
    first, second = encoder.encode_images(IMAGES)
    expected = lpips(IMAGES[:1] * 2 - 1, IMAGES[1:] * 2 - 1).item()
    assert float((first - second).square().sum()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("start", ["features", "lpips"])
def test_image_prompts_lower_the_distance_of_random_vgg_features(start: str) -> None:
    """With LPIPS's positions, and with the mean of VGG's last features."""

    class Pooled(LpipsFeatures):
        by_position = False

        def encode_images(self, images: torch.Tensor) -> torch.Tensor:
            layers = self.lpips.features(images * 2 - 1)
            return torch.cat([maps.mean((2, 3)) for maps in layers], dim=1)

    encoder = (LpipsFeatures if start == "lpips" else Pooled)(random_lpips(), CPU, 32)
    stage = build(first_stage_config()).eval().requires_grad_(False)
    # What the first stage can draw: the image of other codes.
    with torch.no_grad():
        codes = torch.randint(12, (1, 8, 8), generator=torch.Generator().manual_seed(5))
        goal = (stage.decode_indices(codes) + 1) / 2
    cuts = CutSettings(cutouts=2, cut_min=0.9, cut_flip=0, cut_degrees=0, cut_jitter=0, cut_noise=0)
    objective = Objective(encoder, [image_target(encoder, goal)], cuts)
    losses = guide(stage, objective, GuideSettings(steps=6, unquantized=True, lr=0.5)).losses
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])


def test_gradients_go_to_images_alone() -> None:
    encoder = small_guide()
    images = IMAGES[:, :, :16, :16].clone().requires_grad_()
    encoder.encode_images(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
