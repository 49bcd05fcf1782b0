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

from taming.errors import UserError
from taming.kernel_choice import KERNELS
from taming.modules.transformer.decoding import CachedDecoder, generate, known_or
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import quantize_in_place
from taming.modules.transformer.own_methods import one_pass_logits
from taming.modules.transformer.token_choice import sample_token
from tests.modules.transformer.test_mingpt import TENSORS, golden_gpt
from tests.support import require_onednn


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
    require_onednn(torch.bfloat16, kernel)
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
@pytest.mark.parametrize("most", [1, 3])  # one row has kernels of its own
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_recorded_as_a_graph(compiled: bool, most: int) -> None:
    decoder = CachedDecoder(golden_gpt().cuda(), most, 20, compiled=compiled)
    assert decoder.static
    for rows in (most, (most + 1) // 2, most):
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
