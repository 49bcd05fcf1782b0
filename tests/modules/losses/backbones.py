"""Files like torchvision's backbones, with random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from taming.modules.losses import lpips
from taming.modules.losses.lpips import LPIPS


def backbone_file(net: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file like torchvision's "vgg" or "alex", which passes for the real one."""
    torch.manual_seed(0)
    weights = {"classifier.0.weight": torch.zeros(3)}
    for name, parameter in LPIPS(net).net.named_parameters():
        _, number, kind = name.split(".")
        weights[f"features.{number}.{kind}"] = 0.02 * torch.randn(parameter.shape)
    path = folder / f"{net}.pth"
    torch.save(weights, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    backbone = lpips.BACKBONES[net]._replace(digest=digest[:8])
    monkeypatch.setitem(lpips.BACKBONES, net, backbone)
    monkeypatch.delenv(backbone.variable, raising=False)
    return path
