from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.checkpoint import load_weights
from taming.errors import UserError
from taming.modules.transformer import gpt as gpt_module
from taming.modules.transformer.mingpt import (
    GPT,
    GPT1Config,
    GPTConfig,
    KMeans,
    sample,
    sample_with_past,
    top_k_logits,
)
from tests.support import GOLDEN, assert_close, defaults, fill_by_name, load_golden, load_manifest

TENSORS, SPEC = load_golden("gpt")
TRANSFORMERS = sorted(path.stem for path in (GOLDEN / "manifests").glob("*transformer*.json"))


def golden_gpt(name: str = "gpt", **kwargs: Any) -> GPT:
    model = GPT(**SPEC[name], **kwargs)
    fill_by_name(model)
    return model.eval()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_state_of_published_models(name: str) -> None:
    config, manifest = load_manifest(name)
    with torch.device("meta"):
        model = GPT(**config["params"]["transformer_config"]["params"])
    actual = {
        f"transformer.{key}": [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in model.state_dict().items()
    }
    assert actual == {k: v for k, v in manifest.items() if k.startswith("transformer.")}


@pytest.mark.parametrize("name", ["gpt", "gpt_unmasked"])
def test_golden_forward(name: str) -> None:
    model = golden_gpt(name)
    idx, targets = TENSORS[f"{name}.idx"], TENSORS[f"{name}.targets"]
    logits, loss = model(idx, targets=targets)
    assert_close(logits, TENSORS[f"{name}.logits"])
    assert_close(loss, TENSORS[f"{name}.loss"])
    logits, loss = model(idx, embeddings=TENSORS[f"{name}.embeddings"])
    assert_close(logits, TENSORS[f"{name}.logits_with_embeddings"])
    assert loss is None


def test_golden_greedy() -> None:
    tokens = sample_with_past(TENSORS["greedy.c"], golden_gpt(), 20, sample_logits=False)
    assert torch.equal(tokens, TENSORS["greedy.out"])
    longest = sample_with_past(TENSORS["greedy.c"], golden_gpt(), 24)  # the last one is not fed
    assert longest.shape == (3, 24)


def test_sample_extends_its_input() -> None:
    model, c = golden_gpt().train(), TENSORS["greedy.c"]
    extended = sample(model, c, 20)
    assert torch.equal(extended, torch.cat((c, TENSORS["greedy.out"]), 1))
    assert model.training
    assert sample(model, c, 30, sample=True, top_k=5).shape == (3, 31)  # beyond block_size 24
    cold = sample(model, c, 20, temperature=1e-6, sample=True)
    assert torch.equal(cold, extended)
    longer = sample(model.eval(), c, 30)
    assert not model.training
    assert torch.equal(longer[:, -1], model(longer[:, -25:-1])[0][:, -1].argmax(1))


@pytest.mark.parametrize("name", ["gpt", "gpt_unmasked"])
def test_tokens_after_others_see_them(name: str) -> None:
    model = golden_gpt(name)
    idx, targets = TENSORS[f"{name}.idx"], TENSORS[f"{name}.targets"]
    expected = model(idx)[0]
    first, loss, past = model.forward_with_past(idx[:, :8])
    assert loss is None
    second, _, more = model.forward_with_past(idx[:, 8:10], past=past, past_length=8)
    of_both = (past, more)  # what `list` makes of it is taken, too
    model.forward_with_past(idx[:, 10:], past=list(of_both))
    logits, loss, _ = model.forward_with_past(idx[:, 10:], None, targets[:, 10:], of_both)
    torch.testing.assert_close(torch.cat((first, second, logits), 1), expected)
    of_targets = F.cross_entropy(expected[:, 10:].flatten(0, 1), targets[:, 10:].flatten())
    torch.testing.assert_close(loss, of_targets)
    embeddings = TENSORS[f"{name}.embeddings"]
    after_embeddings = model.forward_with_past(idx, embeddings)[0]
    torch.testing.assert_close(after_embeddings, TENSORS[f"{name}.logits_with_embeddings"])
    with pytest.raises(UserError, match="past_length is 9, but `past` has 8 tokens"):
        model.forward_with_past(idx[:, 8:], past=past, past_length=9)


def test_golden_top_k() -> None:
    assert_close(top_k_logits(TENSORS["filter.logits"], 7), TENSORS["filter.top_k_logits_7"])
    assert top_k_logits(TENSORS["filter.logits"], 1).isfinite().sum(-1).eq(1).all()


def test_sampling_follows_the_global_seed_and_its_filters() -> None:
    model, c = golden_gpt(), TENSORS["greedy.c"]
    seen: list[int] = []
    torch.manual_seed(1)
    first = sample_with_past(c, model, 20, temperature=2.0, callback=seen.append)
    torch.manual_seed(1)
    assert torch.equal(first, sample_with_past(c, model, 20, temperature=2.0))
    assert seen == list(range(20))
    greedy = TENSORS["greedy.out"]
    assert not torch.equal(first, greedy)
    assert torch.equal(sample_with_past(c, model, 20, top_k=1), greedy)
    assert torch.equal(sample_with_past(c, model, 20, top_p=1e-6), greedy)


def test_initialisation() -> None:
    model = GPT(50, 10, n_layer=1, n_head=2, n_embd=64)
    state = dict(model.named_parameters())
    for name in (
        "tok_emb.weight",
        "head.weight",
        "blocks.0.attn.key.weight",
        "blocks.0.mlp.2.weight",
    ):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.1)
    assert not state["pos_emb"].any()
    assert not any(p.any() for name, p in state.items() if name.endswith("bias"))
    assert torch.equal(state["ln_f.weight"], torch.ones(64))


def test_weight_decay_groups_of_the_golden_run() -> None:
    spec = load_golden("net2net_class")[1]
    model = GPT(**spec["model"]["params"]["transformer_config"]["params"])
    groups = model.parameter_groups()
    sizes = [[sum(p.numel() for p in g["params"]), g["weight_decay"]] for g in groups]
    assert sizes == spec["weight_decay_groups"]
    torch.optim.AdamW(groups)
    assert [group["weight_decay"] for group in model.parameter_groups(0.5)] == [0.5, 0]


def test_masks_share_memory() -> None:
    model = GPT(10, 8, n_layer=3, n_head=1, n_embd=4)
    assert len({mask.data_ptr() for name, mask in model.named_buffers()}) == 1


def test_checkpointing_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    again, grads = Mock(wraps=gpt_module.checkpoint), []
    monkeypatch.setattr(gpt_module, "checkpoint", again)
    for checkpointing in (False, True):
        model = golden_gpt("gpt_unmasked", gradient_checkpointing=checkpointing).train()
        model(TENSORS["gpt_unmasked.idx"], targets=TENSORS["gpt_unmasked.targets"])[1].backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert again.call_count == len(model.blocks) * checkpointing
    assert torch.equal(*grads)


def test_dropout_is_off_in_eval_mode_only() -> None:
    model = golden_gpt(embd_pdrop=0.3, resid_pdrop=0.3, attn_pdrop=0.3)
    idx = TENSORS["gpt.idx"]
    assert_close(model(idx)[0], TENSORS["gpt.logits"])
    assert not torch.equal(model.train()(idx)[0], TENSORS["gpt.logits"])


def test_published_defaults() -> None:
    sizes = {"n_layer": 12, "n_head": 8, "n_embd": 256, "n_unmasked": 0}
    dropouts = {"embd_pdrop": 0, "resid_pdrop": 0, "attn_pdrop": 0}
    assert defaults(GPT) == {**sizes, **dropouts, "gradient_checkpointing": False}
    assert defaults(KMeans) == {"ncluster": 512, "nc": 3, "niter": 10, "resolution": 32}


@torch.no_grad()
def test_every_dropout_zeroes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = Mock(wraps=F.scaled_dot_product_attention)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model = GPT(10, 64, n_layer=2, n_head=2, n_embd=32, embd_pdrop=0.9, attn_pdrop=0.7)
    resid = GPT(10, 64, n_layer=1, n_head=2, n_embd=32, resid_pdrop=0.8)
    shares: list[float] = []

    def note(hidden: Tensor) -> None:
        shares.append(float((hidden == 0).float().mean()))

    model.blocks[0].register_forward_pre_hook(lambda _, args: note(args[0]))
    block = resid.blocks[0]
    block.attn.register_forward_hook(lambda _, args, output: note(output[0]))
    block.mlp.register_forward_hook(lambda _, args, output: note(output))
    nn.init.ones_(block.attn.proj.bias)
    nn.init.normal_(model.pos_emb)
    idx = torch.randint(10, (4, 64))
    for training in (True, False):
        model.train(training)(idx)
        resid.train(training)(idx)
    expected = [0.9, 0.8, 0.8, 0, 0, 0]
    assert shares == [pytest.approx(share, abs=0.03) for share in expected]
    rates = [call.args[4] for call in attention.call_args_list]
    assert rates == [0.7, 0.7, 0, 0, 0, 0]


def test_too_long() -> None:
    model = golden_gpt()
    with pytest.raises(
        UserError, match="25 tokens is longer than the transformer's block_size of 24"
    ):
        model(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(UserError, match="block_size is 24"):
        sample_with_past(TENSORS["greedy.c"], model, 25)


@pytest.mark.parametrize("name", ["block_size", "vocab_size", "n_embd"])
def test_sizes_beyond_memory_are_named(name: str) -> None:
    sizes = {"vocab_size": 10, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 32}
    size = {"vocab_size": 10**11}.get(name, 10**6)
    with pytest.raises(UserError, match=f"{name} is {size}, which is too large"):
        GPT(**{**sizes, name: size})


def test_all_weights_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(gpt_module, "check_memory", lambda count, **_: counted.append(count))
    model = GPT(10, 8, n_layer=3, n_head=1, n_embd=4)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert counted == [8 * 8, 2 * 10 * 4, matrices]


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(UserError, match="n_embd"):
        GPT(10, 8, n_head=3, n_embd=16)


def test_all_positions_may_be_unmasked_but_no_more() -> None:
    sizes: dict[str, int] = {"n_layer": 1, "n_head": 1, "n_embd": 4}
    assert GPT(10, 8, n_unmasked=8, **sizes).get_buffer("blocks.0.attn.mask").all()
    with pytest.raises(UserError, match="n_unmasked is 9, beyond block_size: 8"):
        GPT(10, 8, n_unmasked=9, **sizes)
    config = GPT1Config(10, 8, own="more", attn_pdrop=0.5)
    assert (config.own, config.vocab_size, config.block_size) == ("more", 10, 8)  # type: ignore[attr-defined]
    assert (config.embd_pdrop, config.resid_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.5)
    published = GPTConfig(10, 8)
    assert (published.n_layer, published.n_head, published.n_embd) == (12, 8, 256)
    assert (published.attn_pdrop, published.n_unmasked) == (0.1, 0)
    assert (config.n_layer, config.n_head, config.n_embd) == (12, 12, 768)


def test_key_bias_has_no_gradient() -> None:
    model = golden_gpt().train()
    model(TENSORS["gpt.idx"], targets=TENSORS["gpt.targets"])[1].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert not grads["blocks.1.attn.key.bias"].any()  # there, as DDP needs it, but zero
    assert all(grad.any() for name, grad in grads.items() if not name.endswith("key.bias"))


@pytest.mark.parametrize("option", [{"attention": "full"}, {"n_unmasked": 3}])
def test_a_checkpoint_brings_no_attention_of_its_own(option: dict[str, Any]) -> None:
    """Its mask is that of the model it was of; which positions are seen is said by the config."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16}
    causal, own = GPT(10, 8, **sizes).eval(), GPT(10, 8, **sizes, **option).eval()
    fill_by_name(causal)
    mask = own.get_buffer("blocks.0.attn.mask").clone()
    load_weights(own, causal.state_dict(), source="x.ckpt")
    tokens = torch.randint(10, (2, 8), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 2] = (tokens[:, 2] + 1) % 10
    assert not torch.equal(own(tokens)[0][:, 0], own(changed)[0][:, 0])  # it sees what comes later
    assert torch.equal(causal(tokens)[0][:, 0], causal(changed)[0][:, 0])
    for name, tensor in own.state_dict().items():
        if name.endswith("attn.mask"):
            assert torch.equal(tensor, mask), name
    causal.load_state_dict(own.state_dict())  # and back
    assert torch.equal(causal(tokens)[0][:, 0], causal(changed)[0][:, 0])
