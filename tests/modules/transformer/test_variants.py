"""Options of later transformers: each is its formula, in training, in a cache, and in windows."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.transformer import gpt as gpt_module
from taming.modules.transformer.decoding import CachedDecoder, generate
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.mingpt import GPT, sample, sample_with_past
from taming.modules.transformer.token_choice import sample_token
from taming.modules.transformer.variants import rotations
from taming.sampling import sample_sliding_window
from tests.sampling.test_sliding_window import plain_loop
from tests.support import fill_by_name

ALL: dict[str, Any] = {
    "rope_grid": (3, 5),
    "qk_norm": True,
    "norm": "rms",
    "mlp": "swiglu",
    "adaln_classes": 6,
}
EACH = [{name: value} for name, value in ALL.items()]
MAP = {"rope_grid": (2, 4), "rope_condition": True}
VARIANTS = [*EACH, ALL, {**ALL, "n_unmasked": 1}, MAP]
IDS = [*ALL, "all", "all_unmasked", "map"]
IDX = torch.randint(20, (3, 15), generator=torch.Generator().manual_seed(2)) % 20
IDX[:, 0] = torch.tensor([0, 5, 19])  # two classes, and no class


def make(**options: Any) -> GPT:
    sizes = {"vocab_size": 20, "block_size": 15, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(**{**sizes, **options})
    fill_by_name(model)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=IDS)
def test_a_cache_has_the_logits_of_the_forward_pass(options: dict[str, Any], static: bool) -> None:
    model = make(**options)
    expected = model(IDX)[0]
    assert not torch.allclose(expected, make()(IDX)[0], atol=1e-2)
    decoder = CachedDecoder(model, len(IDX), 15, static=static)
    for rows in (slice(3), slice(1, 3)):  # a smaller batch, of other classes, after a larger one
        idx = IDX[rows]
        got = {1: decoder.prefill(idx[:, :1]), 4: decoder.extend(idx[:, 1:4])}
        for n in range(5, 16):
            got[n] = decoder.extend(idx[:, n - 1 : n]).clone()
        for n, logits in got.items():
            torch.testing.assert_close(logits, expected[rows, n - 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", VARIANTS[5:], ids=IDS[5:])
def test_tokens_are_those_of_a_sampler_without_a_cache(options: dict[str, Any]) -> None:
    model, prompt = make(**options), IDX[:, :1]
    greedy = sample_with_past(prompt, model, 15, sample_logits=False)
    assert torch.equal(greedy, sample(model, prompt, 15)[:, 1:])
    uniform = torch.rand(15, 3, generator=torch.Generator().manual_seed(1))
    decoder = CachedDecoder(model, 3, 15)
    tokens = generate(decoder, prompt, 15, lambda logits, n: sample_token(logits, uniform[n]))
    logits = model(torch.cat((prompt, tokens[:, :-1]), dim=1))[0]  # of each token by those before
    for n in range(15):
        assert torch.equal(sample_token(logits[:, n], uniform[n]), tokens[:, n])


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_recorded_as_a_graph(compiled: bool) -> None:
    """Of which the class's changes are an input, as another batch has other classes."""
    model, prompts = make(**ALL), (IDX[:, :1], IDX[:2, :1].flip(0))
    expected = [sample_with_past(prompt, model, 15, sample_logits=False) for prompt in prompts]
    decoder = CachedDecoder(model.cuda(), 3, 15, compiled=compiled)
    for prompt, tokens in zip(prompts, expected, strict=True):
        again = generate(decoder, prompt.cuda(), 15, lambda logits, n: sample_token(logits))
        assert torch.equal(again.cpu(), tokens)


@torch.no_grad()
def test_windows_on_a_larger_image_are_placed_as_trained() -> None:
    shape = (4, 5)
    model = make(**{**ALL, "rope_grid": (3, 3), "block_size": 9, "vocab_size": 30})
    classes = torch.tensor([[2], [5]])
    sampled = sample_sliding_window(model, classes, shape, 3, temperature=0)
    assert torch.equal(sampled, plain_loop(model, classes, shape, 3))


def test_codes_in_a_smaller_image_or_after_another_condition_are_refused() -> None:
    model, classes = make(rope_grid=(3, 5)), torch.tensor([[2]])
    with pytest.raises(UserError, match=r"is 3 x 4 codes, but the transformer's rope_grid is \[3"):
        sample_sliding_window(model, classes, (3, 4), (3, 5))
    with pytest.raises(UserError, match=r"has 2 tokens, .* make it 1; with 2, block_size is 16"):
        sample_sliding_window(make(rope_grid=(3, 5)), classes.expand(1, 2), (3, 5), (3, 5))


# ---------------------------------------------------------------------- the formulas


def test_rows_and_columns_turn_one_half_each() -> None:
    cos, sin = rotations((2, 3), 8, 8)  # two condition tokens, and 6 codes
    assert cos.shape == sin.shape == (8, 4)
    places = [(0, 0), (0, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    for position, (row, column) in enumerate(places):
        angles = torch.tensor([row, row / 100, column, column / 100], dtype=torch.float32)
        torch.testing.assert_close(cos[position], angles.cos())
        torch.testing.assert_close(sin[position], angles.sin())


def test_codes_of_a_map_turn_as_those_of_the_image_at_their_place() -> None:
    turned = rotations((2, 3), 12, 8, condition=True)
    assert torch.equal(turned[:, :6], turned[:, 6:])
    assert torch.equal(turned[:, 6:], rotations((2, 3), 12, 8)[:, 6:])


def test_a_condition_that_is_no_map_of_the_image_cannot_turn() -> None:
    with pytest.raises(UserError, match="goes with rope_grid"):
        make(rope_condition=True)
    with pytest.raises(UserError, match="make block_size 29, not 15"):
        make(rope_grid=(3, 5), rope_condition=True)


def test_attention_depends_on_how_far_apart_codes_are() -> None:
    """Equal tokens at equal distances, in a row or in a column, have equal logits of attention."""
    attention = make(rope_grid=(4, 4), block_size=16).blocks[0].attn
    rotation = rotations((4, 4), 17, 8)[:, :16]
    x = torch.randn(1, 1, 16).expand(1, 16, 16)
    q, k, _ = attention.project(x, rotation)
    logits = q @ k.transpose(2, 3)  # token 0 is the condition; code (r, c) is token 1 + 4 r + c
    torch.testing.assert_close(logits[..., 6, 1], logits[..., 11, 6])  # (1, 1) to (0, 0)
    torch.testing.assert_close(logits[..., 2, 1], logits[..., 8, 7])
    assert not torch.allclose(logits[..., 2, 1], logits[..., 5, 1])


def heads(x: Tensor, linear: nn.Linear) -> Tensor:
    return linear(x).unflatten(2, (2, 8)).transpose(1, 2)


def test_queries_and_keys_have_their_gains_lengths() -> None:
    attention = make(qk_norm=True).blocks[0].attn
    x = torch.randn(2, 4, 16)
    q, k, v = attention.project(x)
    raw, gain = heads(x, attention.query), attention.query_gain
    unit = raw / (raw.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(q, unit * gain)
    torch.testing.assert_close(attention.project(1000 * x)[1], k, rtol=0.2, atol=0.2)
    torch.testing.assert_close(v, heads(x, attention.value))


def test_blocks_with_rmsnorm_and_swiglu() -> None:
    block = make(norm="rms", mlp="swiglu").blocks[0]
    assert {name for name, _ in block.ln1.named_parameters()} == {"weight"}
    x = torch.randn(2, 4, 16)
    rms = (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block.ln2(x), x / rms * block.ln2.weight)
    gate, value = block.mlp[0](x).chunk(2, -1)
    expected = block.mlp[2](gate * torch.sigmoid(gate) * value)
    torch.testing.assert_close(block.mlp(x), expected)
    of_gelu, of_swiglu = (
        sum(p.numel() for p in GPT(2, 2, 1, 2, 768, **options).blocks[0].mlp.parameters())
        for options in ({}, {"mlp": "swiglu"})
    )
    assert math.isclose(of_gelu, of_swiglu, rel_tol=1e-3)


def test_a_class_scales_shifts_and_gates() -> None:
    model = make(adaln_classes=6)
    block, classes = model.blocks[0], model.class_emb(torch.tensor([3]))
    torch.testing.assert_close(classes, nn.functional.silu(model.class_emb.weight[3:4]))
    x = torch.randn(1, 4, 16)
    a, b, c, d, e, f = block.modulation(classes).view(6, 16)
    expected = x + c * block.attn(nn.functional.layer_norm(x, (16,)) * (1 + b) + a)[0]
    expected += f * block.mlp(nn.functional.layer_norm(expected, (16,)) * (1 + e) + d)
    torch.testing.assert_close(block(x, classes=classes), expected)
    assert not list(block.ln1.parameters()) and not list(model.ln_f.parameters())


@torch.no_grad()
def test_a_class_is_no_token() -> None:
    model = make(adaln_classes=6)
    before = model(IDX[:, :1])[0]
    assert not torch.allclose(before[0], before[1], atol=1e-3)
    assert torch.equal(model(torch.tensor([[6], [19]]))[0][:, 0].unique(dim=0), before[2])
    model.tok_emb.weight[IDX[:, 0]] += 1
    assert torch.equal(model(IDX[:, :1])[0], before)
    model.class_emb.weight[IDX[:, 0].clamp(max=6)] += 1
    assert not torch.allclose(model(IDX[:, :1])[0], before, atol=1e-3)


@torch.no_grad()
def test_at_the_start_blocks_pass_on_their_input() -> None:
    model = GPT(20, 15, 2, 2, 16, adaln_classes=6).eval()
    x = model.tok_emb(IDX[:, 1:])
    expected = model.head(nn.functional.layer_norm(x, (16,)))
    torch.testing.assert_close(model(IDX)[0][:, 1:], expected)
    assert model.class_emb.weight.std() > 0.01  # or no class could differ from another


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("options", VARIANTS, ids=IDS)
def test_every_weight_is_trained(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And activations that are made again change no gradient."""
    again = Mock(wraps=gpt_module.checkpoint)
    monkeypatch.setattr(gpt_module, "checkpoint", again)
    grads = []
    for checkpointing in (False, True):
        model = make(**options, gradient_checkpointing=checkpointing).train()
        model(IDX, targets=IDX)[1].backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
        assert again.call_count == 2 * checkpointing
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name
        still = name.endswith("key.bias") and not {"rope_grid", "qk_norm"} & options.keys()
        assert bool(grad.any()) is not still, name
    groups = model.parameter_groups()
    assert sum(len(group["params"]) for group in groups) == len(grads[0])


@pytest.mark.parametrize("options", VARIANTS, ids=IDS)
def test_half_precision(options: dict[str, Any]) -> None:
    model = make(**options)
    expected = model(IDX)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(IDX)[0].float()
    rounded = model.bfloat16()(IDX)[0].float()
    for logits in (mixed, rounded):
        assert (logits - expected).norm() < 0.1 * expected.norm()
    decoder = CachedDecoder(model, 3, 15)
    decoder.prefill(IDX[:, :14])
    last = decoder.extend(IDX[:, 14:])
    assert (last - expected[:, -1]).norm() < 0.1 * expected[:, -1].norm()


def test_compiles_without_graph_breaks() -> None:
    model = make(**ALL, n_layer=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(IDX)[0], model(IDX)[0])


def test_a_decoder_holds_no_second_copy_of_its_weights() -> None:
    model = make(**ALL).requires_grad_(False)
    weights = Weights(model)
    for mine, layer, block in zip(model.blocks, weights.layers, model.blocks, strict=True):
        assert layer.gains[0].data_ptr() == block.attn.query_gain.data_ptr()
        assert layer.modulation is not None
        assert layer.modulation[0].data_ptr() == mine.modulation.weight.data_ptr()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_grid": (4, 4)}, r"block_size is 15, too small .* \[4, 4\]; make it at least 16"),
        ({"rope_grid": (3, 5), "n_head": 8}, "multiple of 4, but n_embd / n_head is 2"),
    ],
)
def test_options_that_contradict_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_what_a_class_or_a_position_in_the_image_rules_out() -> None:
    model = make(adaln_classes=6)
    with pytest.raises(UserError, match="begin with a class, and not with embeddings"):
        model(IDX[:, :3], embeddings=torch.zeros(3, 2, 16))
    with pytest.raises(UserError, match="do not know their class"):
        model.forward_with_past(IDX[:, :3])
    with pytest.raises(UserError, match="give it as the prompt"):
        CachedDecoder(model, 3, 15).extend(IDX[:, :1])
    for option in ("adaln_classes", "rope_grid"):
        with pytest.raises(UserError, match=f"with {option} its beginning cannot be left out"):
            sample(make(**{option: ALL[option]}), IDX[:, :1], 16)
    with pytest.raises(TypeError, match="ropes"):
        make(ropes=1)


def test_tokens_after_others_turn_on() -> None:
    model = make(rope_grid=(3, 5), qk_norm=True)
    first, _, past = model.forward_with_past(IDX[:, :8])
    second, _, _ = model.forward_with_past(IDX[:, 8:], past=past)
    torch.testing.assert_close(torch.cat((first, second), 1), model(IDX)[0])
