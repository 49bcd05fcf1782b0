"""Resizing by products of matrices, which have a deterministic gradient, against torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from taming.modules import resizing
from taming.modules.resizing import resized


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    ("mode", "antialias", "before", "after"),
    [
        ("bicubic", False, (3, 4), (16, 13)),
        ("bicubic", False, (1, 1), (5, 5)),
        ("area", False, (16, 13), (5, 4)),
        ("bilinear", True, (40, 32), (22, 24)),
        ("bilinear", True, (10, 12), (22, 24)),
    ],
)
def test_equals_interpolation(
    mode: str,
    antialias: bool,
    before: tuple[int, int],
    after: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(2, 3, *before, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.interpolate(x, size=after, mode=mode, antialias=antialias)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.equal(resized(x.detach(), after, mode, antialias), expected)  # nothing to train
    made = F.interpolate

    def without_gradient(given: torch.Tensor, **options: object) -> torch.Tensor:
        assert not torch.is_grad_enabled()  # whose gradient would be refused on a GPU
        return made(given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(resizing.F, "interpolate", without_gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = resized(x, after, mode, antialias)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    (own,) = torch.autograd.grad(actual.square().sum(), x, create_graph=True)
    torch.testing.assert_close(own, gradient, rtol=1e-5, atol=1e-5)
    assert own.requires_grad  # as R1 and gradient penalties need
