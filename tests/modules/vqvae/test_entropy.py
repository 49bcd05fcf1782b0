"""The entropy loss of codes, against its definition, and within bounds of memory."""

from __future__ import annotations

import math

import pytest
import torch

from taming.modules.vqvae import codebook
from taming.modules.vqvae.entropy import COPIES, entropies
from taming.modules.vqvae.quantize import EMAVectorQuantizer, VectorQuantizer2

Z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
CODES = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def entropy_loss(z: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    of_each, of_all = entropies(z, codes, temperature)
    return of_each - of_all


def written_out(z: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    p = (-torch.cdist(z, codes).square() / temperature).softmax(dim=1)
    mean = p.mean(dim=0)
    return -(p * p.log()).sum(dim=1).mean() + (mean * mean.log()).sum()


@pytest.mark.parametrize("rows", [6, 4])
def test_equals_its_definition(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """In one part, and in parts that are made again in the backward pass."""
    monkeypatch.setattr(codebook, "MAX_DISTANCES", rows * len(CODES) * COPIES)
    gradients = []
    for function in (entropy_loss, written_out):
        z, codes = Z.clone().requires_grad_(), CODES.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=function is entropy_loss):
            loss = function(z, codes, 0.5)
        loss.backward()
        gradients.append((loss, z.grad, codes.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_its_bounds() -> None:
    apart = torch.eye(4) * 9
    assert entropy_loss(apart, apart, 0.01) == pytest.approx(-math.log(4), abs=1e-6)
    assert entropy_loss(apart[:1].expand(5, -1), apart, 0.01) == pytest.approx(0, abs=1e-6)
    far = (apart * 1e3).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_loss(far, apart, 1e-4), far)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("cls", [VectorQuantizer2, EMAVectorQuantizer])
def test_quantizers_add_it_to_their_loss(cls: type) -> None:
    torch.manual_seed(0)
    plain = cls(4, 3, 0.25)
    on = cls(4, 3, 0.25, entropy_weight=0.5, entropy_temperature=2.0)
    on.load_state_dict(plain.state_dict())
    z = Z.t().reshape(1, 3, 2, 3).clone().requires_grad_()
    codes = plain.codes.detach().clone()  # averages move with the batch
    loss = on(z)[1]
    torch.testing.assert_close(loss, plain(z)[1] + 0.5 * written_out(Z, codes, 2.0))
    loss.backward()
    assert z.grad.abs().sum() > 0
