from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.transformer.blocks import Block, CausalSelfAttention
from taming.modules.transformer.gpt import GPT, parameter_groups
from taming.modules.transformer.inference import quantize_in_place
from taming.modules.transformer.mingpt import sample, sample_with_past
from taming.modules.transformer.own_methods import OwnMethods, decoder_for, one_pass_logits
from taming.modules.transformer.plain import is_plain
from taming.sampling import sample_sliding_window
from tests.support import fill_by_name

SIZES = {"vocab_size": 12, "block_size": 20, "n_layer": 2, "n_head": 2, "n_embd": 16}
IDX = torch.arange(6).reshape(2, 3)


class Rolled(GPT):
    """Gives the logits of token k to token k + 1, as `rolled` does to a head's rows."""

    def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def, override]
        logits, loss = super().forward(idx, embeddings, targets)
        return logits.roll(1, -1), loss


class RolledPast(GPT):
    calls = 0

    def forward_with_past(  # type: ignore[no-untyped-def, override]
        self, idx, embeddings=None, targets=None, past=None, past_length=None
    ):
        if past is not None:  # as the original's body reads them
            assert past_length == torch.cat(past, dim=-2).shape[-2]
        type(self).calls += 1
        logits, loss, present = super().forward_with_past(
            idx, embeddings, targets, past, past_length
        )
        return logits.roll(1, -1), loss, present


class Inverse(CausalSelfAttention):
    def forward(self, x, layer_past=None):  # type: ignore[no-untyped-def, override]
        y, present = super().forward(x, layer_past)
        return -y, present


class Alone(CausalSelfAttention):
    """Returns no keys and values, as in other projects."""

    def forward(self, x, layer_past=None):  # type: ignore[no-untyped-def, override]
        return -super().forward(x, layer_past)[0]


class Doubled(Block):
    """The published signature and body, but for a factor."""

    def forward(self, x, layer_past=None, return_present=False):  # type: ignore[no-untyped-def, override]
        attn, present = self.attn(self.ln1(x), layer_past)
        x = x + 2 * attn
        x = x + self.mlp(self.ln2(x))
        return (x, present) if layer_past is not None or return_present else x


def with_block(gpt: GPT) -> None:
    gpt.blocks[1] = Doubled(gpt.config)


def with_attention(gpt: GPT, kind: type[CausalSelfAttention] = Inverse) -> None:
    block = gpt.blocks[0]
    assert isinstance(block, Block)
    block.attn = kind(gpt.config)


def with_relu(gpt: GPT) -> None:
    gpt.get_submodule("blocks.0.mlp")[1] = nn.ReLU()  # type: ignore[index]


def with_norm(gpt: GPT) -> None:
    gpt.ln_f = nn.LayerNorm(16, eps=0.1)


def with_hook(gpt: GPT) -> None:
    gpt.blocks[0].register_forward_hook(lambda _, args, output: 2 * output)


def with_method(gpt: GPT) -> None:
    forward = gpt.forward
    gpt.forward = lambda idx: (forward(idx)[0].roll(1, -1), None)  # type: ignore[assignment, method-assign]


CHANGES: list[Callable[[GPT], None]] = [
    with_block,
    with_attention,
    lambda gpt: with_attention(gpt, Alone),
    with_relu,
    with_norm,
    with_hook,
    with_method,
]


def make(kind: type[GPT] = GPT, change: Callable[[GPT], None] = lambda gpt: None) -> GPT:
    gpt = kind(**SIZES)  # type: ignore[arg-type]
    change(gpt)
    fill_by_name(gpt)
    return gpt.eval()


def rolled() -> GPT:
    gpt = make()
    gpt.head.weight.data = gpt.head.weight.data.roll(1, 0)
    return gpt


def by_forward(gpt: nn.Module, idx: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        idx = torch.cat((idx, gpt(idx)[0][:, -1:].argmax(-1)), dim=1)
    return idx


def samples_of(gpt: GPT) -> list[Tensor]:
    """Greedy ones by each way that there is."""
    cond = IDX[:, :1]
    settings: dict[str, Any] = {"temperature": 0, "seed": 1}
    known = torch.full((2, 5, 6), -1)
    known[:, 1, :4] = 3
    return [
        sample_with_past(IDX, gpt, 9, sample_logits=False),
        sample(gpt, IDX, 30),
        sample_sliding_window(gpt, cond, (5, 6), 4, **settings),
        sample_sliding_window(gpt, cond, (5, 6), 4, known=known, **settings),
        sample_sliding_window(gpt, cond, (4, 5), (4, 4), dtype=torch.float64, **settings),
        one_pass_logits(gpt, IDX, 5).argmax(-1),
    ]


@pytest.mark.parametrize("kind", [Rolled, RolledPast])
def test_methods_of_a_subclass_are_heard_in_every_way(kind: type[GPT]) -> None:
    own, reference = make(kind), rolled()
    assert not is_plain(own) and is_plain(reference)
    for mine, expected in zip(samples_of(own), samples_of(reference), strict=True):
        assert torch.equal(mine, expected)
    assert not torch.equal(samples_of(make())[0], samples_of(own)[0])


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_parts_of_ones_own_are_heard(change: Callable[[GPT], None]) -> None:
    own = make(change=change)
    assert not is_plain(own)
    expected = by_forward(own, IDX, 9)
    assert torch.equal(sample(own, IDX, 9), expected)
    assert torch.equal(sample_with_past(IDX, own, 9, sample_logits=False), expected[:, 3:])
    assert not torch.equal(own(expected)[0], make()(expected)[0])


def test_attention_may_return_its_output_alone() -> None:
    first, second = (
        make(change=lambda gpt, k=kind: with_attention(gpt, k)) for kind in (Inverse, Alone)
    )  # type: ignore[misc]
    assert torch.equal(first(IDX)[0], second(IDX)[0])


def test_what_changes_nothing_stays_fast() -> None:
    class Larger(GPT):
        def __init__(self, **sizes: Any) -> None:
            super().__init__(**sizes)
            self.extra = nn.Bilinear(2, 2, 2)

    assert is_plain(make(Larger))
    variants: dict[str, Any] = {"qk_norm": True, "norm": "rms", "mlp": "swiglu", "n_unmasked": 3}
    assert is_plain(GPT(**SIZES, **variants))
    assert is_plain(GPT(**SIZES, adaln_classes=3))  # type: ignore[arg-type]


def test_a_token_is_a_call(caplog: pytest.LogCaptureFixture) -> None:
    own, RolledPast.calls = make(RolledPast).train(), 0
    for _ in range(2):
        sample_with_past(IDX[:, :1], own, 5)
    assert RolledPast.calls == 10
    assert own.training and own.drop.training
    (line,) = [r.getMessage() for r in caplog.records if "is sampled through" in r.getMessage()]
    assert line.startswith("tests.modules.transformer.test_own_methods.RolledPast is sampled ")
    assert "forward_with_past" in line


def test_several_known_tokens_are_read_one_by_one() -> None:
    own, plain = make(RolledPast), rolled()
    first, second = (decoder_for(gpt, 2, 8) for gpt in (own, plain))
    torch.testing.assert_close(first.prefill(IDX), second.prefill(IDX))
    for length, calls in ((2, 2), (1, 1)):
        RolledPast.calls = 0
        tokens = IDX[:, :length]
        torch.testing.assert_close(first.extend(tokens), second.extend(tokens))
        assert RolledPast.calls == calls
    torch.testing.assert_close(first.prefill(IDX), second.prefill(IDX))  # afresh


def test_dropout_is_off_and_other_precisions_are_copies() -> None:
    own = Rolled(**SIZES, embd_pdrop=0.9).train()  # type: ignore[arg-type]
    fill_by_name(own)
    half = OwnMethods(own, torch.bfloat16)
    assert half.transformer is not own and own.head.weight.dtype == torch.float32
    assert half.read(IDX).dtype == torch.float32
    expected = rolled()(IDX)[0]
    torch.testing.assert_close(OwnMethods(own).read(IDX), expected)
    torch.testing.assert_close(half.read(IDX), expected, rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------- modules that are no GPT


class Recurrent(nn.Module):
    """Has what any transformer needs."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(torch.zeros(16))
        self.table, self.norm = nn.Embedding(vocab_size, 16), nn.LayerNorm(16)
        self.cell, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, vocab_size)
        self.block_size = block_size

    def get_block_size(self) -> int:
        return self.block_size

    def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def]
        return self.head(self.norm(self.cell(self.table(idx) + self.pos_emb)[0])), None


@torch.no_grad()
def test_a_module_of_ones_own_is_sampled() -> None:
    own = Recurrent(12, 20)
    fill_by_name(own)
    expected = by_forward(own, IDX, 9)
    assert torch.equal(sample_with_past(IDX, own, 9, sample_logits=False), expected[:, 3:])  # type: ignore[arg-type]
    assert torch.equal(sample(own, IDX, 9), expected)  # type: ignore[arg-type]
    grid = sample_sliding_window(own, IDX[:, :1], (5, 6), 4, temperature=0)  # type: ignore[arg-type]
    assert torch.equal(grid[:, 0, 0], by_forward(own, IDX[:, :1], 1)[:, 1])


def test_weights_of_linear_layers_decay_alone() -> None:
    own = Recurrent(12, 20)
    decayed, others = parameter_groups(own, 0.25)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    assert [p is own.head.weight for p in decayed["params"]] == [True]
    assert len(others["params"]) == len(list(own.parameters())) - 1
    (weight,) = parameter_groups(nn.Linear(2, 2, bias=False))[0]["params"]
    assert weight.shape == (2, 2)


class Keeps(Recurrent):
    """Makes a table at first use."""

    made: Tensor | None = None

    def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def]
        if self.made is None:
            self.made = torch.ones(12)
        return super().forward(idx)[0] * self.made, None


def test_what_a_method_keeps_can_be_trained_with() -> None:
    own = Keeps(12, 20)
    sample_sliding_window(own, IDX[:, :1], (5, 5), 4)  # type: ignore[arg-type]
    own(IDX)[0].sum().backward()
    assert own.made is not None and own.head.weight.grad is not None


class Returns(Recurrent):
    def __init__(self, result: Any) -> None:
        super().__init__(12, 20)
        self.result = result

    def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def]
        return self.result


@pytest.mark.parametrize(
    "result", [torch.zeros(2, 3, 12), None, (torch.zeros(2, 12), None), (torch.zeros(1, 3, 12),)]
)
def test_wrong_results_are_refused(result: Any) -> None:
    with pytest.raises(UserError, match=r"Returns.forward must return \(logits \[2, 3, 'vocab_si"):
        sample(Returns(result), IDX, 1)  # type: ignore[arg-type]


def test_what_only_gpts_can_do_is_refused() -> None:
    with pytest.raises(UserError, match=r"Rolled is sampled through .* leave --compile out"):
        decoder_for(make(Rolled), 1, 4, compiled=True)
    with pytest.raises(UserError, match="make a sequence of 21 tokens"):
        decoder_for(make(Rolled), 1, 21)
    with pytest.raises(UserError, match=r"int8 is for GPTs of this project, and .*\.GPT has"):
        quantize_in_place(make(change=with_block))


# ---------------------------------------------------------------------- published arguments


def test_keys_and_values_are_given_and_taken() -> None:
    gpt = make()
    block, x = gpt.blocks[0], torch.randn(2, 5, 16)
    whole, present = block(x, return_present=True)
    assert present.shape == (2, 2, 2, 5, 8)
    assert torch.equal(block(x), whole)
    for past in (present[..., :3, :], tuple(present[..., :3, :])):
        rest, more = block(x[:, 3:], layer_past=past)
        torch.testing.assert_close(rest, whole[:, 3:])
        torch.testing.assert_close(more, present[..., 3:, :])
    assert isinstance(block, Block)
    y, present = block.attn(x)
    torch.testing.assert_close(block.attn(x[:, 4:], present[..., :4, :])[0], y[:, 4:])


def test_bodies_of_the_original_run() -> None:
    class Copied(GPT):
        def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def, override]
            x = self.tok_emb(idx)
            assert x.shape[1] <= self.block_size
            x = self.blocks(self.drop(x + self.pos_emb[:, : x.shape[1]]))
            return self.head(self.ln_f(x)), None

    torch.testing.assert_close(make(Copied)(IDX)[0], make()(IDX)[0])
    blocks = GPT(**SIZES, attn_pdrop=0.25).blocks  # type: ignore[arg-type]
    assert all(isinstance(b, Block) and b.attn.attn_drop.p == 0.25 for b in blocks)


@pytest.mark.parametrize("kind", [Rolled, RolledPast])
def test_own_blocks_train_with_a_condition_that_sees_itself(kind: type[GPT]) -> None:
    gpt = kind(**SIZES, n_unmasked=3, gradient_checkpointing=True)  # type: ignore[arg-type]
    with_block(gpt)
    with_attention(gpt)
    fill_by_name(gpt)
    gpt(IDX, targets=IDX)[1].backward()
    assert all(p.grad is not None for p in gpt.parameters())
    logits, _, past = gpt.forward_with_past(IDX)
    expected = gpt(IDX)[0].detach()
    shifts = {Rolled: (1, 0), RolledPast: (0, 1)}[kind]
    torch.testing.assert_close(logits.roll(shifts[0], -1), expected.roll(shifts[1], -1))
    assert past.shape[-2] == 3
