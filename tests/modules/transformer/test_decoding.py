from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from taming.errors import UserError
from taming.kernel_choice import KERNELS
from taming.modules.transformer import decoding
from taming.modules.transformer.decoding import (
    CachedDecoder,
    filter_logits,
    generate,
    known_or,
    sample_token,
)
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import quantize_in_place
from taming.modules.transformer.own_methods import one_pass_logits
from tests.modules.transformer.test_mingpt import TENSORS, golden_gpt
from tests.support import assert_close


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("name", "prompt"), [("gpt", 1), ("gpt", 9), ("gpt_unmasked", 6), ("gpt_unmasked", 9)]
)
def test_logits_of_the_forward_pass(name: str, prompt: int, static: bool, kernel: str) -> None:
    model, idx = golden_gpt(name).requires_grad_(False), TENSORS[f"{name}.idx"]
    expected = model(idx)[0]
    decoder = CachedDecoder(model, len(idx), idx.shape[1], static=static, kernel=kernel)
    close(decoder.prefill(idx[:, :prompt]), expected[:, prompt - 1])
    for n in range(prompt, idx.shape[1]):
        close(decoder.extend(idx[:, n, None]), expected[:, n])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("static", [False, True])
def test_a_decoder_serves_several_batches(static: bool, kernel: str) -> None:
    model, c = golden_gpt().train().requires_grad_(False), TENSORS["greedy.c"]
    decoder = CachedDecoder(model, 3, 20, static=static, kernel=kernel)
    for rows in (3, 2, 3, 1):
        tokens = generate(decoder, c[:rows], 20, lambda logits, n: sample_token(logits))
        assert torch.equal(tokens, TENSORS["greedy.out"][:rows])


@pytest.mark.parametrize("kernel", KERNELS)
def test_bf16_is_near(kernel: str) -> None:
    model, idx = golden_gpt(), TENSORS["gpt.idx"]
    decoder = CachedDecoder(model, 3, 22, dtype=torch.bfloat16, kernel=kernel)
    decoder.prefill(idx[:, :21])
    logits = decoder.extend(idx[:, 21, None])
    expected = TENSORS["gpt.logits"][:, 21]
    assert logits.dtype == torch.float32
    assert (logits - expected).norm() < 0.05 * expected.norm()
    assert model.pos_emb.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_near(dtype: torch.dtype) -> None:
    model, idx = golden_gpt().requires_grad_(False), TENSORS["gpt.idx"]
    quantize_in_place(model)
    decoder = CachedDecoder(model, 3, 22, dtype)
    decoder.prefill(idx[:, :21])
    logits, expected = decoder.extend(idx[:, 21, None]), TENSORS["gpt.logits"][:, 21]
    assert 0.001 * expected.norm() < (logits - expected).norm() < 0.05 * expected.norm()
    assert (model(idx)[0][:, 21] - expected).norm() < 0.05 * expected.norm()


def test_results_are_ordinary_tensors() -> None:
    tokens = generate(
        CachedDecoder(golden_gpt(), 3, 4), TENSORS["greedy.c"], 4, lambda x, n: sample_token(x)
    )
    assert not tokens.is_inference()


@pytest.mark.slow
def test_compiled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMING_KERNEL", "packed")
    decoder = CachedDecoder(golden_gpt(), 3, 20, compiled=True)
    tokens = generate(decoder, TENSORS["greedy.c"], 20, lambda logits, n: sample_token(logits))
    assert torch.equal(tokens, TENSORS["greedy.out"])


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_recorded_as_a_graph(compiled: bool) -> None:
    decoder = CachedDecoder(golden_gpt().cuda(), 3, 20, compiled=compiled)
    assert decoder.static
    for rows in (3, 2, 3):
        c = TENSORS["greedy.c"][:rows].cuda()
        tokens = generate(decoder, c, 20, lambda logits, n: sample_token(logits))
        assert torch.equal(tokens.cpu(), TENSORS["greedy.out"][:rows])


@pytest.mark.gpu
def test_a_graph_is_recorded_while_another_thread_uses_cuda() -> None:
    done = threading.Event()

    def pin() -> None:  # as a loader's thread does
        while not done.is_set():
            torch.empty(2**20).pin_memory()
            torch.cuda.Event().query()

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        for _ in range(5):
            decoder = CachedDecoder(golden_gpt().cuda(), 3, 20)
            c = TENSORS["greedy.c"].cuda()
            tokens = generate(decoder, c, 20, lambda logits, n: sample_token(logits))
            assert torch.equal(tokens.cpu(), TENSORS["greedy.out"])
    finally:
        done.set()
        thread.join()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_graphs_on_a_gpu_that_is_not_the_current_one() -> None:
    for device in ("cuda:0", "cuda:1"):
        decoder = CachedDecoder(golden_gpt().to(device), 3, 20)
        c = TENSORS["greedy.c"].to(device)
        tokens = generate(decoder, c, 20, lambda logits, n: sample_token(logits))
        assert torch.equal(tokens.cpu(), TENSORS["greedy.out"])


@contextmanager
def noted(notes: list[Any], *what: Any) -> Iterator[None]:
    """Notes that a context began, and that it ended."""
    notes.append(what)
    yield
    notes.append(("end", *what))


def test_a_graph_is_recorded_on_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, on a made-up GPU that is not the current one."""
    notes: list[Any] = []
    side, cuda = Mock(name="side"), torch.cuda
    graph = Mock(replay=lambda: notes.append("replay"))

    def record(*args: Any, **options: Any) -> Any:
        assert args == (graph,)
        return noted(notes, "record", options["stream"], options["capture_error_mode"])

    monkeypatch.setattr(cuda, "device", lambda device: noted(notes, device))
    monkeypatch.setattr(cuda, "Stream", lambda: notes.append("new stream") or side)
    monkeypatch.setattr(cuda, "stream", lambda stream: noted(notes, stream))
    monkeypatch.setattr(cuda, "current_stream", Mock())
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(cuda, "graph", record)
    with FakeTensorMode(), (device := torch.device("cuda:1")):
        decoder = CachedDecoder(GPT(50, 24, 1, 2, 8).eval(), 2, 4)
        decoder.prefill(torch.zeros(2, 1, dtype=torch.long))
        for _ in range(2):
            decoder.extend(torch.zeros(2, 1, dtype=torch.long))
    recording = ("record", side, "thread_local")
    warm_up = [(side,), ("end", side)]
    recorded = [(device,), "new stream", *warm_up, recording, ("end", *recording), ("end", device)]
    assert notes == [*recorded, "replay", "replay"]


@pytest.mark.parametrize("static", [False, True])
def test_known_tokens_are_fed_together(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = golden_gpt(), TENSORS["greedy.out"]
    known = torch.full_like(out, -1)
    known[:, :4], known[:, 9:12], known[1, 15] = out[:, :4], out[:, 9:12], out[1, 15]
    picked: list[int] = []
    told: list[int] = []

    def pick(logits: Tensor, n: int) -> Tensor:
        picked.append(n)
        return sample_token(logits)

    decoder = CachedDecoder(model, 3, 20, static=static)
    prefill = Mock(wraps=decoder.prefill)
    monkeypatch.setattr(decoder, "prefill", prefill)
    tokens = generate(
        decoder, TENSORS["greedy.c"], 20, pick, lambda _, n: told.append(n), known=known
    )
    assert torch.equal(tokens, out)
    generate(decoder, TENSORS["greedy.c"], 20, lambda logits, n: sample_token(logits))
    assert prefill.call_count == 2  # every position is read once
    assert picked == [n for n in range(20) if n >= 4 and n not in (9, 10, 11)]
    assert told == list(range(20))


def test_known_tokens_are_kept_whatever_they_are() -> None:
    """The first one has the number 0."""
    model, prompt = golden_gpt(), TENSORS["greedy.c"]
    known = torch.tensor([[0, -1, 49, -1]]).repeat(3, 1)
    decoder = CachedDecoder(model, 3, 5)
    tokens = generate(decoder, prompt, 4, lambda logits, n: sample_token(logits), known=known)
    assert torch.equal(tokens[:, [0, 2]], known[:, [0, 2]])
    of_one = known_or(torch.tensor([5, 6]), torch.tensor([[0], [-1]]), 0)
    assert of_one.tolist() == [0, 6]
    for n in (1, 3):
        logits = model(torch.cat((prompt, tokens[:, :n]), dim=1))[0][:, -1]
        assert torch.equal(tokens[:, n], logits.argmax(dim=1))


@pytest.mark.parametrize("name", ["gpt", "gpt_unmasked"])
def test_several_tokens_at_once_see_those_before_them(name: str) -> None:
    model, idx = golden_gpt(name), TENSORS[f"{name}.idx"]
    decoder, expected = CachedDecoder(model, len(idx), idx.shape[1]), model(idx)[0]
    decoder.prefill(idx[:, :7])
    close(decoder.extend(idx[:, 7:12]), expected[:, 11])
    close(decoder.extend(idx[:, 12:13]), expected[:, 12])


def test_prompts_that_go_on_alike() -> None:
    model, c = golden_gpt(), TENSORS["greedy.c"]
    prompt = torch.cat((c, c.flip(0)))
    tokens = generate(
        CachedDecoder(model, 6, 5), prompt, 5, lambda x, n: sample_token(x[:3]), copies=2
    )
    assert torch.equal(tokens, TENSORS["greedy.out"][:, :5])


def test_limits() -> None:
    with pytest.raises(UserError, match="block_size is 24"):
        CachedDecoder(golden_gpt(), 1, 25)
    assert CachedDecoder(golden_gpt(), 1, 24).max_length == 24
    decoder = CachedDecoder(golden_gpt("gpt_unmasked"), 1, 8)
    decoder.prefill(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(UserError, match="first 6 positions"):
        decoder.extend(torch.zeros(1, 1, dtype=torch.long))
    full = CachedDecoder(golden_gpt(), 1, 1, static=True)
    full.prefill(torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="cache of 1 tokens is full"):
        full.extend(torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="cache of 8"):
        decoder.prefill(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("steps", [3, 7, 18])
def test_one_pass_needs_the_condition_alone(steps: int) -> None:
    model, c = golden_gpt(), TENSORS["gpt.idx"][:, :5]
    logits = one_pass_logits(model, c, steps)
    assert logits.shape == (3, steps, 50)
    close(logits[:, 0], model(c)[0][:, -1])


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_low_precision_give_logits_in_float32(dtype: torch.dtype) -> None:
    model, c = golden_gpt().to(dtype), TENSORS["greedy.c"]
    assert one_pass_logits(model, c, 3).dtype == torch.float32
    seen: list[torch.dtype] = []

    def pick(logits: Tensor, n: int) -> Tensor:
        seen.append(logits.dtype)
        return sample_token(logits)

    generate(CachedDecoder(model, 3, 4), c, 4, pick)
    assert seen == [torch.float32] * 4


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
    sums = decoding._exact_running_sum(shares)
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
