"""Kernels of encoder and decoder by Triton's interpreter; tests/test_gpu.py runs them for real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.modules.diffusionmodules import layers, rows_norm
from taming.modules.diffusionmodules.model import Decoder, Encoder, ResnetBlock

PACKAGE = "taming.modules.diffusionmodules"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
NETWORK = {
    "ch": 8,
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "in_channels": 3,
    "resolution": 8,
    "z_channels": 4,
    "double_z": False,
    "norm_groups": 4,
}


@pytest.fixture(scope="module")
def fused() -> Iterator[ModuleType]:
    """Small tiles, so that images have many, and parts that are smaller than others."""
    from tests.kit.interpreted import interpreted

    pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
    names = [f"{PACKAGE}.{name}" for name in ("map_kernels", "norm_kernels", "fused")]
    with interpreted(*names) as [*_, module]:
        module.TILE, module.PROGRAMS = 256, 7  # type: ignore[attr-defined]
        yield module


@pytest.fixture
def on_a_made_up_gpu(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "is_real", lambda _: True)
    monkeypatch.setattr(layers, "runs_triton", lambda _, task: task == "normalization")
    fused.TILE = 2048  # type: ignore[attr-defined]  # fewer programs, one after the other


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Around 2, so that means count; images have channels last."""
    x = (torch.randn(shape) + 2).to(dtype)
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def relative(one: Tensor, other: Tensor) -> float:
    other = other.double()
    return float(((one.double() - other).norm() / other.norm()).detach())


def gradients(y: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(y, inputs, torch.randn(y.shape).to(y), retain_graph=True)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("swish", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(2, 24, 5, 7), (3, 48, 9, 4), (1, 48, 1, 1)])
def test_normalization_equals_torchs(
    fused: Any, shape: tuple[int, ...], biased: bool, swish: bool, dtype: torch.dtype
) -> None:
    """With its gradients, and those of what goes past it; sizes that no tile divides."""
    torch.manual_seed(0)
    fused.TILE = 256
    x, past = normal(*shape, dtype=dtype).requires_grad_(), normal(*shape, dtype=dtype)
    gain, shift, bias = (normal(shape[1]).requires_grad_() for _ in range(3))
    inputs = [x, gain, shift, *([bias] if biased else [])]
    settings = fused.Settings(6, 1e-6, swish, dtype)
    y, same = fused.normalized(x, bias if biased else None, gain, shift, settings)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    summed = exact[0] + exact[3][:, None, None] if biased else exact[0]
    expected = F.group_norm(summed, 6, exact[1], exact[2], 1e-6)
    expected = F.silu(expected) if swish else expected
    assert relative(y, expected) < TOLERANCES[dtype] and torch.equal(same, x)
    for weight in (0, 1):  # of what goes past it
        found = gradients(y.double() + (weight * same * past).double(), inputs)
        true = gradients(expected + weight * exact[0] * past.double(), exact)
        for one, other in zip(found, true, strict=True):
            if float(other.detach().norm()) > 1e-6:
                assert relative(one, other) < TOLERANCES[dtype]


def test_what_is_only_used_past_a_normalization_has_that_gradient(fused: Any) -> None:
    x, ones = normal(1, 8, 2, 2).requires_grad_(), torch.ones(8)
    _, same = fused.normalized(x, None, ones, ones, fused.Settings(4, 1e-6, True, x.dtype))
    assert torch.equal(torch.autograd.grad(same.sum(), x)[0], torch.ones_like(x))


def test_means_that_are_far_from_zero_cost_no_digits(fused: Any) -> None:
    torch.manual_seed(0)
    x = (torch.randn(1, 8, 40, 40) + 300).to(memory_format=torch.channels_last)
    ones = torch.ones(8)
    y, _ = fused.normalized(x, None, ones, 0 * ones, fused.Settings(4, 1e-6, False, x.dtype))
    assert relative(y, F.group_norm(x.double(), 4, eps=1e-6)) < 5e-5


def test_sums_and_twice_the_size(fused: Any) -> None:
    torch.manual_seed(0)
    fused.TILE = 256
    x, other = (normal(2, 24, 5, 7).requires_grad_() for _ in range(2))
    bias = normal(24).requires_grad_()
    for y, expected, inputs in (
        (fused.added(x, bias), x + bias[:, None, None], (x, bias)),
        (fused.added(x, bias, other), x + bias[:, None, None] + other, (x, bias, other)),
        (fused.doubled(x), F.interpolate(x, scale_factor=2.0), (x,)),
    ):
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous(memory_format=torch.channels_last)
        for one, true in zip(gradients(y, inputs), gradients(expected, inputs), strict=True):
            torch.testing.assert_close(one, true, rtol=1e-5, atol=1e-5)


def both_ways(network: nn.Module, x: Tensor) -> list[list[Tensor]]:
    """Outputs and all gradients: with the kernels, and without."""
    x = x.requires_grad_()
    found = []
    for laid_out in (torch.channels_last, torch.contiguous_format):
        y = network(x.contiguous(memory_format=laid_out))
        found.append([y, *gradients(y, [x, *network.parameters()])])
    return found


@pytest.mark.usefixtures("on_a_made_up_gpu")
@pytest.mark.parametrize(("network", "shape"), [(Encoder, (2, 3, 8, 4)), (Decoder, (2, 4, 4, 2))])
def test_networks_are_the_same_with_the_kernels(
    network: type[Encoder] | type[Decoder], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    made = network(**NETWORK)  # type: ignore[arg-type]
    for fused, plain in zip(*both_ways(made, normal(*shape)), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("on_a_made_up_gpu")
def test_embeddings_and_shortcuts_of_3x3_go_with_the_kernels() -> None:
    torch.manual_seed(0)
    sizes = {"in_channels": 8, "out_channels": 12, "temb_channels": 5}
    block = ResnetBlock(**sizes, conv_shortcut=True)  # type: ignore[arg-type]
    x, temb = normal(2, 8, 3, 3), normal(2, 5)
    expected = block(x.contiguous(), temb)
    torch.testing.assert_close(block(x, temb), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("on_a_made_up_gpu")
def test_hooks_see_what_layers_give() -> None:
    block, x, seen = ResnetBlock(in_channels=8), normal(1, 8, 3, 3), []
    for layer in (block.norm1, block.conv1, block.norm2, block.conv2):
        layer.register_forward_hook(lambda layer, _, y: seen.append((layer, y)))
    y = block(x)
    assert [layer for layer, _ in seen] == [block.norm1, block.conv1, block.norm2, block.conv2]
    torch.testing.assert_close(y, x + seen[3][1])
    torch.testing.assert_close(seen[1][1], block.conv1(F.silu(seen[0][1])))


@pytest.mark.parametrize("shape", [(2, 24, 5, 7), (1, 64, 9, 4)])
def test_half_precision_with_channels_last_has_a_backward_pass_of_its_own(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor, in several parts; as exact as torch's."""
    torch.manual_seed(0)
    monkeypatch.setattr(rows_norm, "PART", 200)
    norm = nn.GroupNorm(8, shape[1])
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = normal(*shape, dtype=torch.bfloat16).requires_grad_()
    inputs = [x, *norm.parameters()]
    y, _ = layers.normalized(norm, x, swish=False)
    assert type(y.grad_fn).__name__ == "_RowsNormBackward"
    exact = [one.detach().double().requires_grad_() for one in inputs]
    expected = F.group_norm(exact[0], 8, exact[1], exact[2], norm.eps)
    assert relative(y, expected) < TOLERANCES[x.dtype]
    for one, true in zip(gradients(y, inputs), gradients(expected, exact), strict=True):
        assert relative(one, true) < TOLERANCES[x.dtype]


def test_other_maps_have_torchs_backward_pass() -> None:
    norm, x = nn.GroupNorm(8, 24), normal(2, 24, 5, 7)
    for other in (x.requires_grad_(), x.detach().bfloat16().contiguous().requires_grad_()):
        y, _ = layers.normalized(norm, other, swish=False)
        assert type(y.grad_fn).__name__ == "NativeGroupNormBackward0"


def test_the_kernels_take_real_images_on_a_gpu_with_channels_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "is_real", lambda x: not x.is_meta)
    monkeypatch.setattr(layers, "runs_triton", lambda device, task: True)
    x = normal(2, 8, 3, 3)
    assert layers.fuses(x) and layers.fuses(x.bfloat16())
    for other in (x.contiguous(), x[0], x.double(), x.to("meta")):
        assert not layers.fuses(other)
