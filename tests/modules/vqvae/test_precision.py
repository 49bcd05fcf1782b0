"""What decides codes is computed in fp32: no convolution or product of it may drop bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from taming.modules.vqvae.convolution import PreciseConv2d, fp32_convolution
from tests.kit.parts import PARTS

QUANTIZERS = (
    *("VectorQuantizer2", "VectorQuantizer", "EMAVectorQuantizer", "GumbelQuantize"),
    *("GumbelQuantize, soft", "CosineQuantizer", "CosineQuantizer, clustering", "FSQ"),
    *("FSQ, symmetric", "LFQ", "BSQ", "IBQ", "SimVQ", "ResidualQuantizer", "GroupedQuantizer"),
    *("MultiScaleQuantizer", "MultiScaleQuantizer, by direction"),
)
# What TF32 and bf16 may be taken for.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution")
PRODUCTS += ("_convolution", "cudnn_convolution", "linear", "convolution_backward", "einsum")
Switches = tuple[bool, str]


def switches() -> Switches:
    """Whether cuDNN may take TF32, and the precision of products."""
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


class Watched(TorchDispatchMode):
    """Notes the switches at every product that is no operation of `taming`'s own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Switches] = {}
        self.own: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space == "taming":
            self.own.add(name)
        elif name in PRODUCTS:
            self.seen[name] = switches()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_products_of_quantizers_are_exact_ones(name: str, training: bool) -> None:
    torch.manual_seed(0)
    quantizer = PARTS[name].make().train(training)
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.backends.cudnn.flags(allow_tf32=True), Watched() as watched:
        quantizer(z)
        z_q, _, (_, _, indices) = quantizer(z)
        if name.startswith("MultiScale"):
            quantizer.get_codebook_entry(indices)
    assert not watched.seen and z_q.dtype == torch.float32
    searched = name.partition(",")[0] not in ("FSQ", "BSQ", "LFQ")
    assert not searched or watched.own


@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_are_exact_and_leave_the_switches_alone(
    monkeypatch: pytest.MonkeyPatch, padding: int
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3)
    own = [t.clone().requires_grad_() for t in (x, weight, torch.randn(4))]
    plain = [t.detach().clone().requires_grad_() for t in own]
    during: list[tuple[Switches, bool]] = []
    convolve = F.conv2d

    def conv2d(*args: Any, **options: Any) -> Tensor:
        during.append((switches(), torch.is_autocast_enabled("cpu")))
        return convolve(*args, **options)

    torch.set_float32_matmul_precision("medium")
    try:
        with torch.backends.cudnn.flags(allow_tf32=True):
            with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
                patch.setattr(F, "conv2d", conv2d)
                result = fp32_convolution(*own, (padding, padding))
            with Watched() as watched:
                (result * result.detach().cos()).sum().backward()
            assert switches() == (True, "medium")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert during == [((False, "highest"), False)]
    assert watched.seen["convolution_backward"] == (False, "highest")
    expected = convolve(*plain, padding=padding)
    (expected * expected.detach().cos()).sum().backward()
    torch.testing.assert_close(result, expected)
    for mine, other in zip(own, plain, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_precise_convolution_of_weights_of_fewer_bits() -> None:
    layer = PreciseConv2d(3, 4, 3, padding=1)
    half, x = PreciseConv2d(3, 4, 3, padding=1).bfloat16(), torch.randn(1, 3, 4, 4)
    half.load_state_dict(layer.state_dict())
    layer.load_state_dict({n: t.float() for n, t in half.state_dict().items()})
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half(x), layer(x)) and layer(x).dtype == torch.float32
    assert list(layer.state_dict()) == ["weight", "bias"]
