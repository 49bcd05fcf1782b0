"""The distance by a classifier's logits, with a network like torchvision's of random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from taming.errors import UserError
from taming.modules.losses import features
from taming.modules.losses.features import LogitDistance, as_imagenet
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator


class Classifier(nn.Module):
    """Takes the place of torchvision's networks, which are too large for a test."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 16, stride=16), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.conv(x).square().mean(dim=(2, 3)))
        return logits


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "resnet50.pth"
    torch.save(Classifier().state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = features.NETWORKS["resnet50"]._replace(digest=digest[:8])
    monkeypatch.setitem(features.NETWORKS, "resnet50", known)
    monkeypatch.setattr("torchvision.models.get_model", lambda name: Classifier())
    return path


def test_equals_the_written_out_distance(weights: Path) -> None:
    images, others = (torch.rand(2, 3, 224, 224) * 2 - 1 for _ in range(2))
    distance = LogitDistance("resnet50")
    distance.prepare(str(weights))
    network = Classifier()
    network.load_state_dict(torch.load(weights))
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    first, second = (network(((x + 1) / 2 - mean) / deviation) for x in (images, others))
    torch.testing.assert_close(distance(images, others), (first - second).square().mean(dim=1))
    assert as_imagenet(images[:, :1, :32, :48], 224).shape == (2, 3, 224, 224)
    assert not distance.state_dict() and not list(distance.parameters())


def test_a_loss_trains_by_it_and_takes_checkpoints_with_lpips(weights: Path) -> None:
    options = {"disc_start": 0, "disc_num_layers": 1, "disc_ndf": 4}
    chosen = {"perceptual_net": "resnet50", "perceptual_path": str(weights)}
    loss = VQLPIPSWithDiscriminator(**options, **chosen, perceptual_weight=2.0)
    loss.prepare()
    x = torch.rand(1, 3, 16, 16)
    y = (0.5 * x).requires_grad_()
    total, terms = loss.eval().generator_loss(x, y, torch.zeros(()), 0)
    expected = LogitDistance("resnet50")
    expected.prepare(str(weights))
    torch.testing.assert_close(terms["p_loss"], expected(x, y).mean())
    torch.testing.assert_close(terms["nll_loss"], (x - y).abs().mean() + 2 * terms["p_loss"])
    (gradient,) = torch.autograd.grad(total, y)
    assert gradient.abs().sum() > 0
    loss.load_state_dict(VQLPIPSWithDiscriminator(**options).state_dict())


def test_what_is_wrong_with_the_file_is_said(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="perceptual_path: there is no file /nowhere.*ResNet50"):
        LogitDistance("resnet50").prepare("/nowhere/x.pth")
    other = tmp_path / "other.pth"
    other.write_bytes(b"x")
    with pytest.raises(UserError, match="is not torchvision's ResNet50.*perceptual_weight=0"):
        LogitDistance("resnet50").prepare(str(other))
    with pytest.raises(UserError, match="perceptual_path has no effect with perceptual_net: lpips"):
        VQLPIPSWithDiscriminator(0, perceptual_path="x")
    with pytest.raises(UserError, match="vgg_path has no effect with perceptual_net: resnet50"):
        VQLPIPSWithDiscriminator(0, perceptual_net="resnet50", vgg_path="x")
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        LogitDistance("resnet50")(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))


def test_without_a_connection_it_is_said_where_the_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("TAMING_CONVNEXT_SMALL", raising=False)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        LogitDistance("convnext_small").prepare()
    message = str(caught.value)
    assert "ConvNeXt_Small's weights" in message and "convnext_small-0c510722.pth" in message
    assert "perceptual_path or TAMING_CONVNEXT_SMALL" in message and "no network" in message
