from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from taming import kernel_choice
from taming.kernel_choice import KERNELS, ONEDNN, PACKED, TORCH, Ways
from taming.modules import linear as module
from taming.modules.linear import Linear, sampling_kernel, training_kernel, training_linear
from taming.modules.linear_kernels import (
    OneDNNLinear,
    TorchLinear,
    gelu,
    linear,
    sampling_linear,
)
from taming.modules.packed_weight import Quantized, quantized_in_place
from tests.support import require_onednn

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_choice, "choices", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def layers(*sizes: tuple[int, int], bias: bool = True) -> list[nn.Linear]:
    """Frozen layers with positive weights: sums in which parts cancel are mostly rounding."""
    made: list[nn.Linear] = [Linear(n, m, bias).requires_grad_(False) for n, m in sizes]
    for layer in made:
        for parameter in layer.parameters():
            torch.nn.init.uniform_(parameter)
    return made


# ---------------------------------------------------------------------- sampling


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 64, 65, 128, 129])
def test_products_of_any_number_of_rows(rows: int, dtype: torch.dtype) -> None:
    # Above 0, as the rounding of parts is large beside a sum in which they cancel.
    x, weight, bias = (torch.rand(*size).to(dtype) for size in ((rows, 8), (6, 8), (6,)))
    for added in (bias, None):
        torch.testing.assert_close(linear(x, weight, added), F.linear(x, weight, added))
    torch.testing.assert_close(gelu(x), F.gelu(x))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_kernels_agree(rows: int, dtype: torch.dtype, kernel: str) -> None:
    require_onednn(dtype, kernel)
    parts = layers((16, 24), (16, 24), (16, 24))
    x, other = torch.rand(rows, 16).to(dtype), torch.rand(rows, 72).to(dtype)
    expected = torch.cat([F.linear(x, p.weight.to(dtype), p.bias.to(dtype)) for p in parts], dim=1)
    layer = sampling_linear(parts, dtype, kernel)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.gelu(x), F.gelu(expected))
    torch.testing.assert_close(layer.plus(x, other), expected + other)
    (head,) = layers((16, 24), bias=False)
    expected = F.linear(x, head.weight.to(dtype))
    torch.testing.assert_close(sampling_linear([head], dtype, kernel)(x), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9])
def test_int8_weights(rows: int, dtype: torch.dtype, kernel: str) -> None:
    parts = layers((96, 24), (96, 24))
    whole = quantized_in_place(parts)
    x, other = torch.rand(rows, 96).to(dtype), torch.rand(rows, 48).to(dtype)
    bias = torch.cat([part.bias for part in parts]).to(dtype)
    expected = F.linear(x.bfloat16().float(), whole.matrix()).to(dtype) + bias
    layer = sampling_linear(parts, dtype, kernel)
    close = partial(torch.testing.assert_close, rtol=2**-7, atol=0.0)
    close(layer(x), expected)
    close(layer.gelu(x), F.gelu(expected))
    close(layer.plus(x, other), expected + other)
    assert isinstance(layer.weight, Quantized)


def test_a_kernel_after_another() -> None:
    """An earlier decoder may have packed what the next one wants as it is."""
    parts = layers((16, 24), (16, 24))
    weights = [part.weight.clone() for part in parts]
    for kernel in (PACKED, TORCH, PACKED, ONEDNN):
        layer = sampling_linear(parts, torch.float32, kernel)
        assert isinstance(layer, TorchLinear if kernel == TORCH else OneDNNLinear)
        assert isinstance(layer.weight, Tensor) == (kernel != PACKED)
        assert all(torch.equal(p.weight, w) for p, w in zip(parts, weights, strict=True))


def test_rows_do_not_depend_on_each_other_from_two_on() -> None:
    (layer,) = layers((96, 64))
    x = torch.randn(25, 96)
    for kernel in (ONEDNN, PACKED):
        product = sampling_linear([layer], torch.float32, kernel)
        assert torch.equal(product(x)[:2], product(x[:2]))


def test_processors_without_bfloat16_take_torchs_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onednn_takes", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(module, "fastest", lambda task, kernels, ways: kernels[-1])
    weight = torch.empty(1024, 512)
    for dtype, is_open in ((torch.float32, True), (torch.bfloat16, False)):
        assert (sampling_kernel(weight, dtype, 1) != TORCH) == is_open
        assert (training_kernel(weight, dtype, 64) != TORCH) == is_open


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sampling_kernel_is_measured(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_onednn(dtype)
    weight = torch.empty(1024, 512)
    called = []

    def first(task: str, kernels: Sequence[str], ways: Callable[[], Ways]) -> str:
        for way in ways().values():
            way()
        called.append((task, kernels, tuple(ways())))
        return PACKED

    monkeypatch.setattr(module, "fastest", first)
    monkeypatch.setattr(module, "MEASURED_BYTES", 1)
    assert sampling_kernel(weight, dtype, 27) == PACKED
    name = str(dtype).removeprefix("torch.")
    assert called == [(f"sampling, {name}, 1024 x 512, 16 rows", KERNELS, KERNELS)]
    assert sampling_kernel(torch.empty(8, 8), dtype, 27) == TORCH
    assert sampling_kernel(weight, torch.float64, 27) == TORCH
    assert sampling_kernel(torch.empty(1024, 512, device="meta"), dtype, 27) == TORCH
    with torch.autocast("cpu", torch.bfloat16):
        assert sampling_kernel(weight, dtype, 27) == TORCH
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert sampling_kernel(weight, dtype, 27) == TORCH
    assert len(called) == 1


def test_the_environment_decides_for_small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMING_KERNEL", "packed")
    assert sampling_kernel(torch.empty(8, 8), torch.float32, 1) == PACKED


# ---------------------------------------------------------------------- training


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """oneDNN for training steps, and what it is called with."""
    monkeypatch.setenv("TAMING_KERNEL", "onednn")
    calls = Mock(wraps=module.onednn_linear)
    monkeypatch.setattr(module, "onednn_linear", calls)
    return calls


def gradients(product: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    y = product(*inputs)
    return [y, *torch.autograd.grad((y * torch.arange(y.shape[-1])).sum(), inputs)]


def step_inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 40, 16), (24, 16), (24,))
    return [torch.rand(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_other_kernel(by_onednn: Mock, dtype: torch.dtype) -> None:
    require_onednn(dtype)
    inputs = step_inputs(dtype)
    expected = gradients(F.linear, *inputs)
    actual = gradients(training_linear, *inputs)
    assert by_onednn.call_count == 3
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
    x, weight, _ = inputs
    for one in gradients(lambda x, w: training_linear(x, w, None), x, weight):
        assert one.isfinite().all()
    (only,) = torch.autograd.grad(training_linear(x.detach(), *inputs[1:]).sum(), weight)
    assert only.shape == weight.shape


def test_autocast_computes_in_its_dtype(by_onednn: Mock) -> None:
    require_onednn(torch.bfloat16)
    inputs = step_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = gradients(F.linear, *inputs), gradients(training_linear, *inputs)
    assert by_onednn.call_count == 3
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


def test_second_derivatives(by_onednn: Mock) -> None:
    inputs = step_inputs()

    def penalty(product: Callable[..., Tensor]) -> Tensor:
        (by_x,) = torch.autograd.grad(product(*inputs).square().sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(by_x.square().sum(), inputs[1])[0]

    torch.testing.assert_close(penalty(training_linear), penalty(F.linear))


@pytest.mark.filterwarnings("ignore:.*jit.trace")
def test_where_torch_computes_whatever_is_chosen(
    by_onednn: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = step_inputs()
    with torch.no_grad():
        training_linear(x, weight, bias)  # an evaluation
    training_linear(x, weight.detach(), bias)  # a layer that is not trained
    training_linear(x[:, :20], weight, bias)  # 40 rows
    training_linear(*step_inputs(torch.float64))
    torch.jit.trace(training_linear, (x, weight, bias), check_trace=False)
    with FakeTensorMode():
        training_linear(*step_inputs())
        assert sampling_kernel(torch.empty(8, 8), torch.float32, 1) == TORCH
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    training_linear(x, weight, bias)
    assert not by_onednn.called


@pytest.mark.slow
def test_compiled_graphs_are_whole(by_onednn: Mock) -> None:
    inputs = step_inputs()
    y = torch.compile(training_linear, backend="eager", fullgraph=True)(*inputs)
    assert torch.equal(y, F.linear(*inputs))
    torch.export.export(Linear(16, 24), (torch.rand(80, 16),))
    assert not by_onednn.called


def test_the_training_kernel_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def first(task: str, kernels: Sequence[str], ways: Callable[[], Ways]) -> str:
        one, other = (ways()[kernel]() for kernel in kernels)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)
            assert not a.requires_grad
        called.append(task)
        return ONEDNN

    monkeypatch.setattr(module, "fastest", first)
    weight = torch.empty(1024, 512)
    assert training_kernel(weight, torch.float32, 1000) == ONEDNN
    assert training_kernel(weight, torch.float32, 63) == TORCH
    assert called == ["training, float32, 1024 x 512, 256 rows"]


def test_checkpointed_blocks_are_recomputed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement within them must not look like a part of the network."""
    monkeypatch.setattr(module, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(kernel_choice, "SHARE", 1e9)  # whatever is not the default, if any
    layer, x = Linear(16, 24), torch.rand(80, 16, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    y.sum().backward()
    assert list(kernel_choice.choices) == ["training, float32, 24 x 16, 64 rows"]
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()
