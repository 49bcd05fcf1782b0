from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from taming.kernel_choice import ONEDNN, PACKED, TORCH
from taming.modules.linear import onednn_takes
from taming.modules.packed_weight import PackedWeight
from taming.modules.transformer import inference
from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.transformer.inference import Layer, Weights
from taming.modules.transformer.mingpt import GPT
from tests.modules.transformer.test_mingpt import TENSORS, golden_gpt


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes of the memory behind the tensors, each piece once."""
    parts = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in parts}


def tensors_of(weights: Weights) -> list[Tensor]:
    found = [weights.tok_emb, weights.pos_emb, *weights.ln_f]
    for layer in weights.layers:
        pairs = [layer.ln1, layer.ln2, *layer.qkv, layer.proj, layer.up, layer.down]
        found += [tensor for pair in pairs for tensor in pair]
    return [*found, weights.head.weight]


def own_bytes(gpt: GPT) -> int:
    return sum(p.numel() * p.element_size() for p in gpt.parameters())


def test_weights_that_need_no_gradients_are_used_where_they_are() -> None:
    gpt = golden_gpt().requires_grad_(False)
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    logits = gpt(TENSORS["gpt.idx"])[0]
    weights = Weights(gpt)
    assert len(weights.layers[0].qkv) == 1
    assert storages(tensors_of(weights)) == storages(list(gpt.parameters()))
    assert sum(storages(tensors_of(weights)).values()) == own_bytes(gpt)
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())
    assert torch.equal(gpt(TENSORS["gpt.idx"])[0], logits)
    again = Weights(gpt)
    assert storages(tensors_of(again)) == storages(tensors_of(weights))


def test_packed_weights_are_held_once() -> None:
    gpt = golden_gpt().requires_grad_(False)
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    logits = gpt(TENSORS["gpt.idx"])[0]
    weights = Weights(gpt, kernel=PACKED)
    products = [n for n, part in gpt.named_modules() if isinstance(part, nn.Linear)]
    assert all(isinstance(gpt.get_parameter(f"{n}.weight"), PackedWeight) for n in products)
    state = gpt.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert torch.equal(gpt(TENSORS["gpt.idx"])[0], logits)
    again, attn = Weights(gpt, kernel=PACKED), gpt.blocks[0].attn
    assert again.layers[0].qkv[0].weight is weights.layers[0].qkv[0].weight
    assert again.layers[0].qkv[0].weight is attn.key.weight.whole  # type: ignore[union-attr]
    Weights(gpt, kernel=ONEDNN)
    assert sum(storages(list(gpt.parameters())).values()) == own_bytes(gpt)


def test_weights_in_training_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMING_KERNEL", "packed")
    gpt = golden_gpt().requires_grad_(False)
    gpt.head.requires_grad_(True)  # a part is enough
    assert Weights(gpt).kernel == TORCH
    if onednn_takes(torch.bfloat16):
        assert Weights(gpt, torch.bfloat16).kernel == PACKED  # of a copy
    assert not isinstance(gpt.head.weight, PackedWeight)
    assert Weights(gpt.requires_grad_(False)).kernel == PACKED


def test_the_kernel_is_that_for_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock(return_value=TORCH)
    monkeypatch.setattr(inference, "sampling_kernel", asked)
    gpt = golden_gpt().requires_grad_(False)
    CachedDecoder(gpt, 3, 20)
    weight, dtype, rows = asked.call_args.args
    assert weight.shape == (4 * gpt.config.n_embd, gpt.config.n_embd)
    assert (dtype, rows) == (torch.float32, 3)


def test_weights_in_training_stay_where_they_are() -> None:
    gpt = golden_gpt()
    where = storages(list(gpt.parameters()))
    assert storages(tensors_of(Weights(gpt))) == where == storages(list(gpt.parameters()))
    for block in gpt.blocks:  # a part is enough
        block.get_submodule("attn.query").requires_grad_(False)
    assert storages(tensors_of(Weights(gpt))) == where == storages(list(gpt.parameters()))


def test_moved_weights_are_stacked_anew() -> None:
    gpt = golden_gpt().requires_grad_(False)
    Weights(gpt)
    gpt.double().float()
    layer = Layer.of(gpt.blocks[0], torch.float32)  # type: ignore[arg-type]
    attn = gpt.blocks[0].attn
    expected = torch.cat([attn.query.weight, attn.key.weight, attn.value.weight])
    assert torch.equal(layer.qkv[0][0], expected)


def test_a_copy_in_another_precision_is_one_copy() -> None:
    gpt = golden_gpt()
    copied = storages(tensors_of(Weights(gpt, torch.bfloat16)))
    assert sum(copied.values()) == own_bytes(gpt) // 2


def test_what_decoding_holds_is_weights_and_one_cache() -> None:
    gpt = golden_gpt().requires_grad_(False)
    decoder = CachedDecoder(gpt, 3, 20)
    cache = storages([decoder._cache])
    config = gpt.config
    assert list(cache.values()) == [2 * config.n_layer * 3 * 20 * config.n_embd * 4]


def test_blocks_of_another_number_than_configured() -> None:
    """As a subclass has them that replaces `blocks`."""
    gpt = golden_gpt()
    gpt.blocks = nn.Sequential(*gpt.blocks, *golden_gpt().blocks)
    assert len(Weights(gpt).new_cache(1, 4)) == len(gpt.blocks)
    tokens = torch.tensor([[1, 2, 3]])
    logits = CachedDecoder(gpt, 1, 4).prefill(tokens)
    torch.testing.assert_close(logits, gpt(tokens)[0][:, -1])
