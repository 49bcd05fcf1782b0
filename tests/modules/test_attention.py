"""Attention in training, fused or written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from taming import kernel_choice
from taming.kernel_choice import TORCH
from taming.modules import attention as module
from taming.modules.attention import WRITTEN_OUT, attention, training_kernel, written_out


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_choice, "choices", {})


def parts(length: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (2, 3, length, 8)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize(("masked", "rows"), [(False, 256), (False, 32), (True, 32)])
def test_written_out_is_the_fused_kernels_attention(
    masked: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    q, k, v = parts(70, torch.float64)
    allowed = torch.ones(1, 1, 70, 70, dtype=torch.bool).tril() if masked else None
    if allowed is not None:
        allowed[..., :5, :5] = True
    fused = F.scaled_dot_product_attention(q, k, v, allowed, is_causal=not masked)
    torch.testing.assert_close(written_out(q, k, v, allowed), fused)
    dropped = written_out(q, k, v, allowed, dropout=0.5)
    assert not torch.equal(dropped, fused)


def test_the_faster_way_is_measured_where_there_is_a_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def slow_fused(length: int, size: int, dtype: torch.dtype) -> kernel_choice.Ways:
        asked.append((length, size, dtype))
        return {TORCH: lambda: torch.randn(500, 500) @ torch.randn(500, 500), WRITTEN_OUT: int}

    monkeypatch.setattr(module, "_ways", slow_fused)
    q, k, v = parts(70)
    assert training_kernel(q) == WRITTEN_OUT and asked == [(128, 8, torch.bfloat16)]
    assert torch.equal(attention(q, k, v), written_out(q, k, v))
    for other in (q.detach(), q.half(), q.double(), parts(63)[0], parts(513)[0]):
        assert training_kernel(other) == TORCH
    with torch.no_grad():
        assert training_kernel(q) == TORCH
    assert len(asked) == 1
    assert training_kernel(q.float()) == WRITTEN_OUT and asked[1:] == [(128, 8, torch.float32)]


def test_scores_of_later_keys_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    attend = module._attend
    monkeypatch.setattr(module, "ROWS", 32)
    monkeypatch.setattr(module, "_attend", lambda *a: shapes.append(a[3].shape) or attend(*a))
    written_out(*parts(70))
    assert shapes == [(32, 32), (32, 64), (6, 70)]


def test_a_measurement_leaves_activation_checkpointing_alone() -> None:
    q, k, v = parts(70)
    gradients = [
        torch.autograd.grad(y.sum(), (q, k, v))
        for y in (checkpoint(attention, q, k, v, use_reentrant=False), attention(q, k, v))
    ]
    assert all(map(torch.equal, *gradients))
    [task] = kernel_choice.choices
    assert task == "attention, training, bfloat16, 128 positions, 8 channels a head"
