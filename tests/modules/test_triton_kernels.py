"""The kernels of GPUs by Triton's interpreter; in tests that are marked gpu they run for real."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taming.kernel_choice import TORCH, TRITON
from taming.modules import gpu_kernels, linear, linear_kernels
from taming.modules.gpu_kernels import runs_triton
from taming.modules.linear_kernels import FewRowsLinear
from taming.modules.transformer import decoding
from taming.modules.transformer.decoding import CachedDecoder, generate
from taming.modules.transformer.token_choice import sample_token
from tests.kit.interpreted import interpreted
from tests.modules.transformer.test_decoding import TENSORS, golden_gpt

NAME = "taming.modules.triton_kernels"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
    with interpreted(NAME) as [module]:
        yield module


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float32).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 24, 40), (2, 600, 9), (3, 96, 50)])
def test_a_few_rows_times_a_matrix(
    kernels: Any, rows: int, inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    """Sizes that no part of a program divides; with all that is taken along, and without."""
    torch.manual_seed(0)
    x, other = normal(rows, inputs, dtype=dtype), normal(rows, outputs, dtype=dtype)
    weight, bias = normal(outputs, inputs, dtype=dtype), normal(outputs, dtype=dtype)
    norm = normal(inputs, dtype=dtype), normal(inputs, dtype=dtype)
    weight /= inputs**0.5
    plain = kernels.few_rows(x, weight)
    full = kernels.few_rows(x, weight, bias, norm=norm, other=other, gelu=True)
    expected = F.gelu(F.linear(F.layer_norm(x, (inputs,), *norm), weight, bias)) + other
    for one, true in ((plain, F.linear(x, weight)), (full, expected)):
        assert one.dtype == dtype
        torch.testing.assert_close(one, true, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("position", [0, 1, 31, 32, 36])
def test_one_token_attends_to_the_cache_and_is_added_to_it(kernels: Any, position: int) -> None:
    """Heads of 24 channels; a cache for more sequences; what is behind the position is not read."""
    torch.manual_seed(0)
    batch, heads, length, size = 3, 2, 37, 24
    cache = torch.randn(2, 4, heads, length, size)
    cache[:, :, :, position:] = torch.nan
    qkv, before = torch.randn(batch, 3 * heads * size), cache.clone()
    kernels.TILES, tiles = (32 * 32, 32 * 32), kernels.TILES  # several parts
    try:
        y = kernels.attend_to_cache(qkv, cache, torch.tensor([position]))
    finally:
        kernels.TILES = tiles
    query, key, value = qkv.view(batch, 3, heads, 1, size).unbind(1)
    before[:, :batch, :, position] = torch.stack((key, value))[..., 0, :]
    assert torch.equal(cache.nan_to_num(7.0), before.nan_to_num(7.0))
    keys, values = before[:, :batch, :, : position + 1]
    expected = F.scaled_dot_product_attention(query, keys, values)  # (B, heads, 1, size)
    torch.testing.assert_close(y, expected.flatten(1))


@pytest.fixture
def on_a_made_up_gpu(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders choose as they would on a GPU."""
    for module in (linear_kernels, decoding):
        monkeypatch.setattr(module, "is_real", lambda _: True)
    monkeypatch.setattr(decoding, "runs_triton", lambda device, kernel: kernel in (None, TRITON))
    monkeypatch.setattr(linear, "sampling_kernel_of_gpu", lambda *_: TRITON)
    monkeypatch.setattr(kernels, "PARTS", ((128, 64, 4),) * 3)  # few programs, one after the other


@pytest.mark.usefixtures("on_a_made_up_gpu")
@pytest.mark.parametrize("rows", [1, 3])
def test_a_decoder_by_them_gives_the_golden_tokens(rows: int) -> None:
    """With one row all layers are theirs, with three only attention is."""
    decoder, steps = CachedDecoder(golden_gpt(), rows, 8, static=True, kernel=TRITON), 8
    assert isinstance(decoder._weights.layers[0].proj, FewRowsLinear)
    c = TENSORS["greedy.c"][:rows]
    tokens = generate(decoder, c, steps, lambda logits, n: sample_token(logits))
    assert torch.equal(tokens, TENSORS["greedy.out"][:rows, :steps])


def test_where_triton_does_not_run_torch_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not runs_triton(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setitem(sys.modules, NAME, None)  # an import of it fails
    gpu_kernels._works.cache_clear()
    gpu = torch.device("cuda", 7)
    assert not runs_triton(gpu, TORCH) and not caplog.text
    assert not runs_triton(gpu) and not runs_triton(gpu)
    assert caplog.text.count("sampling goes on with torch's kernels") == 1
    monkeypatch.setattr(gpu_kernels, "_works", lambda index, task: (index, task) == (7, "sampling"))
    assert runs_triton(gpu) and not runs_triton(gpu, task="normalization")
    monkeypatch.setenv("TAMING_KERNEL", TORCH)
    assert not runs_triton(gpu)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_kernels_are_tried_with_their_backward_pass_in_any_mode(
    mode: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first batch of a run is one of validation: what it finds is kept for training."""
    from taming.modules.diffusionmodules import fused

    def stand_in(x: Any, bias: None, gain: Any, shift: Any, settings: Any) -> Any:
        return F.group_norm(x, settings.groups, gain, shift, settings.epsilon), x

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(fused, "normalized", stand_in)
    on_cpu = functools.partial(gpu_kernels._try_normalization, torch.device("cpu"))
    monkeypatch.setitem(gpu_kernels.TRIALS, "normalization", lambda _: on_cpu())
    gpu_kernels._works.cache_clear()
    with mode():
        assert gpu_kernels._works(0, "normalization"), caplog.text
    gpu_kernels._works.cache_clear()
