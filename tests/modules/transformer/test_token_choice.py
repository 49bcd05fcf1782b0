"""Which token is sampled: filters of logits, and what a random number chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from taming.modules.transformer import token_choice
from taming.modules.transformer.token_choice import filter_logits, sample_token
from tests.modules.transformer.test_mingpt import TENSORS
from tests.support import assert_close


@pytest.mark.parametrize(("k", "p"), [(None, 0.7), (12, 0.9), (50, 0.3), (5, 1.0)])
def test_golden_filters(k: int | None, p: float) -> None:
    filtered = filter_logits(TENSORS["filter.logits"], top_k=k, top_p=p)
    assert_close(filtered, TENSORS[f"filter.k{k or 0}_p{p}"])


def test_filters_without_effect() -> None:
    logits = TENSORS["filter.logits"]
    assert torch.equal(filter_logits(logits), logits)
    assert torch.equal(filter_logits(logits, top_k=999, top_p=1.0), logits)
    assert torch.equal(filter_logits(logits, temperature=0.5), logits * 2)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 1 - 1e-9])
def test_every_row_has_its_own_k(top_p: float) -> None:
    logits = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    logits[0, :32] = logits[0, 0]  # equals, beyond the k-th of which nothing counts for p
    for k in (1, 5, 64, 99):
        equal = torch.full((4,), k)
        scalar = filter_logits(logits, 0.7, k, top_p)
        assert torch.equal(filter_logits(logits, 0.7, equal, top_p, most_k=k), scalar)
    ks = torch.tensor([5, 64, 1, 20])
    rows = [filter_logits(logits[n], 0.7, int(k), top_p) for n, k in enumerate(ks)]
    kept = torch.stack(rows).isfinite()
    for most in (64, 99, None):
        assert torch.equal(filter_logits(logits, 0.7, ks, top_p, most_k=most).isfinite(), kept)
    assert filter_logits(logits, 0.7, ks, 1.0, most_k=64).isfinite().sum(1).tolist()[1:] == [
        64,
        1,
        20,
    ]


def test_ks_of_rows_need_not_be_read_by_the_host() -> None:
    """Under torch.compile with no break, and for tensors that have no values at all."""
    logits, ks = torch.empty(3, 40, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    assert filter_logits(logits, 1.0, ks, 0.9, most_k=20).shape == (3, 40)


def test_nucleus_is_taken_after_temperature() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert filter_logits(logits, top_p=0.5).isfinite().sum() == 1
    assert filter_logits(logits, temperature=100.0, top_p=0.5).isfinite().sum() == 2


def test_draw_inverts_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniform = torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75, 1 - 2**-24])
    tokens = sample_token(probabilities.log().expand(6, -1), uniform)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4]
    assert sample_token(probabilities.log()[None]).tolist() == [3]


def test_the_nucleus_has_just_above_its_share() -> None:
    logits = torch.tensor([[1, 0.75, 0.25]]).double().log()
    assert logits.softmax(-1)[0, 0] == 0.5
    kept = filter_logits(logits, top_p=0.5).isfinite()
    assert kept.tolist() == [[True, True, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_token_is_sampled_whatever_the_precision_of_its_logits(dtype: torch.dtype) -> None:
    """A sum of 1024 equal shares ends at a half in bfloat16: what comes behind was never seen."""
    logits = torch.zeros(4096, 1024, dtype=dtype)
    uniform = (torch.arange(4096) + 0.5) / 4096
    assert sample_token(logits, uniform).bincount(minlength=1024).tolist() == [4] * 1024
    filtered = filter_logits(torch.arange(1024, 0, -1).div(1024).log()[None].to(dtype), top_p=0.999)
    assert filtered.dtype == torch.float32
    share = filtered.softmax(-1).gather(1, filtered.argmin(-1, keepdim=True))
    exact = filter_logits(torch.arange(1024, 0, -1).div(1024).log()[None], top_p=0.999)
    assert abs(int(filtered.isfinite().sum()) - int(exact.isfinite().sum())) < 8 and share >= 0


class CumulativeSums(TorchDispatchMode):
    """Notes the dtypes of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.cumsum.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("deterministic", [False, True])
def test_gpus_add_integers_where_results_must_not_change(deterministic: bool) -> None:
    """CUDA has no deterministic way to add up floats; --deterministic true sets the switch."""
    sums = CumulativeSums()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with FakeTensorMode(), sums:
            logits = torch.randn(2, 50, device="cuda")
            sample_token(filter_logits(logits, top_p=0.9), torch.rand(2, device="cuda"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert sums.dtypes == [torch.int64 if deterministic else torch.float32] * 2


def test_sums_of_integers_are_those_of_floats() -> None:
    shares = torch.randn(8, 16_384, generator=torch.Generator().manual_seed(0)).mul(4).softmax(-1)
    sums = token_choice._exact_running_sum(shares)
    assert sums.dtype == torch.float32 and (sums.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(sums, shares.double().cumsum(-1).float(), rtol=2e-7, atol=1e-12)


@pytest.mark.gpu
def test_sampling_is_possible_where_results_must_not_change() -> None:
    logits, uniform = torch.randn(1, 16_384).cuda(), torch.rand(1).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        tokens = [sample_token(filter_logits(logits, top_p=0.9), uniform) for _ in range(20)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert len({int(token) for token in tokens}) == 1


def test_a_rounding_error_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum in parallel may rise where a probability is 0."""
    monkeypatch.setattr(Tensor, "cumsum", lambda *_: torch.tensor([[0.5, 0.6, 1.0]]))
    logits = torch.tensor([[0.5, 0, 0.5]]).log()
    assert sample_token(logits, torch.tensor([0.55])).tolist() == [2]
    monkeypatch.setattr(Tensor, "cumsum", lambda *_: torch.tensor([[0.5, 0.5, 0.99]]))
    assert sample_token(logits, torch.tensor([0.995])).tolist() == [2]


def test_draw_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, generator=generator)
    tokens = sample_token(logits.expand(20000, -1), torch.rand(20000, generator=generator))
    frequency = tokens.bincount(minlength=20) / 20000
    assert (frequency - logits.softmax(0)).abs().max() < 0.01
