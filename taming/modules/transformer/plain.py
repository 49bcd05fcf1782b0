"""What a transformer has to have, and whether it computes what a GPT of this project does."""

from __future__ import annotations

from itertools import chain
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.linear import Linear
from taming.modules.transformer.gpt import GPT, Block, CausalSelfAttention
from taming.modules.transformer.variants import EPSILON, GPTConfig, SwiGLU
from taming.user_code import name_of


@runtime_checkable
class _Configured(Protocol):
    config: Any


@runtime_checkable
class _HasVocabulary(Protocol):
    vocab_size: Any


@runtime_checkable
class _HasBlockSize(Protocol):
    def get_block_size(self) -> int: ...


@runtime_checkable
class _ReadsPast(Protocol):
    def forward_with_past(self, idx: Tensor, /) -> Any: ...


def check_transformer(transformer: object, key: str) -> None:
    """Refuse (`UserError`) what cannot be trained, or does not tell how long sequences may be."""
    name = f"{key}: {name_of(type(transformer))}"
    if not isinstance(transformer, nn.Module):
        raise UserError(f"{name} must be a torch.nn.Module, whose weights are trained")
    if not isinstance(transformer, _HasBlockSize):
        raise UserError(
            f"{name} must have a method get_block_size(), which returns the longest sequence that "
            "it reads"
        )


def vocabulary_of(transformer: object) -> int | None:
    """`config.vocab_size` of a transformer, which all GPTs have; None without."""
    if isinstance(transformer, _Configured) and isinstance(transformer.config, _HasVocabulary):
        return int(transformer.config.vocab_size)
    return None


def block_size_of(transformer: nn.Module) -> int:
    """The longest sequence of a transformer that `check_transformer` lets pass."""
    assert isinstance(transformer, _HasBlockSize)
    return transformer.get_block_size()


def device_of(transformer: nn.Module) -> torch.device:
    """Where its weights are."""
    tensors = chain(transformer.parameters(), transformer.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def reads_past(transformer: nn.Module) -> bool:
    """Whether it has a `forward_with_past` of its own."""
    if isinstance(transformer, GPT):
        return _overrides(transformer, GPT, "forward_with_past")
    return isinstance(transformer, _ReadsPast)


def is_plain(transformer: nn.Module) -> TypeGuard[GPT]:
    """Whether `Weights` compute what the transformer's methods do: it is a GPT of which no part
    that takes part in `forward` is a user's."""
    if not isinstance(transformer, GPT) or not _is_ours(transformer, GPT):
        return False
    config = transformer.config
    ends = ((transformer.tok_emb, nn.Embedding), (transformer.drop, nn.Dropout))
    return (
        all(_computes_as(part, kind) for part, kind in ends)
        and _computes_as(transformer.head, Linear, nn.Linear)
        and _is_plain_norm(transformer.ln_f, config)
        and all(_is_plain_block(block, config) for block in transformer.blocks)
    )


_METHODS: dict[type[nn.Module], tuple[str, ...]] = {
    GPT: ("forward", "forward_with_past", "hidden", "_embed", "_placed", "_allowed", "_run"),
    Block: ("forward", "_attend", "_change"),
    CausalSelfAttention: ("forward", "project", "attend"),
}


def _overrides(part: nn.Module, base: type[nn.Module], *names: str) -> bool:
    """Whether a subclass of `base`, or the object, has such methods of its own."""
    classes = type(part).__mro__
    own = (part, *classes[: classes.index(base)])
    return any(name in vars(place) for place in own for name in names)


def _is_ours(part: nn.Module, base: type[nn.Module]) -> bool:
    """Whether it is a `base` that computes as that does."""
    if not isinstance(part, base):
        return False
    return not _overrides(part, base, *_METHODS[base]) and not _is_hooked(part)


def _is_hooked(part: nn.Module) -> bool:
    """Whether functions are called before or after its forward pass, but those that gather its
    weights where they are sharded."""
    hooks = chain(part._forward_hooks.values(), part._forward_pre_hooks.values())
    return not all("fsdp" in str(hook.__module__) for hook in hooks)


def _computes_as(part: nn.Module, *kinds: type[nn.Module]) -> bool:
    known = type(part).forward in [kind.forward for kind in kinds]
    return known and "forward" not in vars(part) and not _is_hooked(part)


def _is_plain_norm(norm: nn.Module, config: GPTConfig) -> bool:
    if config.norm == "rms":
        return isinstance(norm, nn.RMSNorm) and _computes_as(norm, nn.RMSNorm)
    same = isinstance(norm, nn.LayerNorm) and norm.eps == EPSILON
    return same and _computes_as(norm, nn.LayerNorm)


def _is_plain_block(block: nn.Module, config: GPTConfig) -> bool:
    if not isinstance(block, Block) or not _is_ours(block, Block):
        return False
    attn, mlp = block.attn, block.mlp
    return (
        _is_ours(attn, CausalSelfAttention)
        and all(_is_plain_norm(norm, config) for norm in (block.ln1, block.ln2))
        and isinstance(mlp, nn.Sequential)
        and [type(part) for part in mlp[1::2]] == [SwiGLU if block.gated else nn.GELU, nn.Dropout]
        and all(
            _computes_as(layer, Linear, nn.Linear)
            for layer in (attn.query, attn.key, attn.value, attn.proj, *mlp[0::2])
        )
    )
