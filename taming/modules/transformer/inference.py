"""A GPT's weights as its decoders use them, and the pass of new tokens through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.modules.transformer.gpt import GPT, Block

Pair = tuple[Tensor, Tensor]  # weight and bias


# How many rows of x a CPU multiplies faster with the weights as the left factor.
WEIGHTS_FIRST = {torch.float32: range(4, 65), torch.bfloat16: range(2, 129)}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (N, in) @ `weight` (out, in).T + `bias` (out,) -> (N, out), the faster factor first.

    With few rows, a CPU's BLAS reads the weights up to twice as fast where they are the left
    factor; the result is then a transposed view. For one row in bfloat16, it takes longer to begin
    with the bias than to add it.
    """
    if x.device.type != "cpu" or len(x) not in WEIGHTS_FIRST.get(x.dtype, ()):
        if bias is not None and _one_row(x) and x.dtype == torch.bfloat16:
            return F.linear(x, weight).add_(bias)
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.mm(weight, x.t()).t()
    return torch.addmm(bias[:, None], weight, x.t()).t()


def gelu(x: Tensor) -> Tensor:
    """GELU of `x` (N, C).

    For what is contiguous, a CPU starts oneDNN's threads, which takes longer than a row's values;
    a row that is repeated in place is not.
    """
    return F.gelu(x.expand(2, -1))[:1] if _one_row(x) else F.gelu(x)


def _one_row(x: Tensor) -> bool:
    return len(x) == 1 and x.device.type == "cpu"


def fused_in_place(parts: Sequence[nn.Linear]) -> Pair:
    """The weights (kC, C) and biases (kC,) of k linear layers as one of each, without a copy.

    The layers' own parameters become parts of the returned tensors, so that the memory is that of
    one set of weights. Only for parameters that are not trained: an optimiser, a reducer or a
    compiled step may hold on to where they were.
    """
    weight, bias = (
        _stacked([getattr(part, name) for part in parts]) for name in ("weight", "bias")
    )
    return weight, bias


def _stacked(parts: Sequence[nn.Parameter]) -> Tensor:
    first = parts[0].detach()
    storage, offset, length = first.untyped_storage(), first.storage_offset(), first.numel()
    stacked = all(
        part.untyped_storage().data_ptr() == storage.data_ptr()
        and part.storage_offset() == offset + n * length
        for n, part in enumerate(parts)
    )
    if stacked:
        return first.as_strided((len(parts) * len(first), *first.shape[1:]), first.stride())
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split(len(first)), strict=True):
        part.data = view
    return whole


@dataclass(frozen=True)
class Layer:
    """A block's weights; `qkv` is one pair (3C, C) for all of them, or a pair for each."""

    heads: int
    ln1: Pair
    ln2: Pair
    qkv: tuple[Pair, ...]
    proj: Pair
    up: Pair
    down: Pair

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype) -> Layer:
        attn, mlp = block.attn, block.mlp

        def pair(part: nn.Module) -> Pair:
            weight, bias = part.get_parameter("weight"), part.get_parameter("bias")
            return weight.detach().to(dtype), bias.detach().to(dtype)

        parts = (attn.query, attn.key, attn.value)
        pairs = tuple(pair(part) for part in parts)
        if attn.query.weight.dtype != dtype:  # these are copies anyway
            pairs = ((torch.cat([w for w, _ in pairs]), torch.cat([b for _, b in pairs])),)
        elif not any(p.requires_grad for part in parts for p in part.parameters()):
            pairs = (fused_in_place(parts),)
        ends = {"proj": pair(attn.proj), "up": pair(mlp[0]), "down": pair(mlp[2])}
        return cls(attn.n_head, pair(block.ln1), pair(block.ln2), pairs, **ends)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of `x` (N, C), one after the other: (N, 3C)."""
        normed = F.layer_norm(x, x.shape[-1:], *self.ln1)
        if len(self.qkv) == 1:
            return linear(normed, *self.qkv[0]).contiguous()
        return torch.cat([linear(normed, *pair) for pair in self.qkv], dim=-1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x` (N, C) after the block, given what its heads gathered (N, C)."""
        x = linear(attended, *self.proj).add_(x)
        normed = F.layer_norm(x, x.shape[-1:], *self.ln2)
        return linear(gelu(linear(normed, *self.up)), *self.down).add_(x)


@dataclass(frozen=True)
class Segment:
    """New tokens of equally long sequences: where they stand and what they see.

    Attributes:
        tokens: int64 (B, T).
        write: their positions: a slice, or an index tensor (T,).
        seen: how many positions there are, with the new ones.
        allowed: bool, broadcastable to (B, heads, T, seen); None: all, or by `causal`.
        causal: each of the new tokens, which are the first, sees itself and those before it.
        cache: keys and values (layers, 2, B, heads, >= seen, size) of the positions before, which
            those of the new ones are added to; None where there are none, and none are kept.
    """

    tokens: Tensor
    write: slice | Tensor
    seen: int
    allowed: Tensor | None = None
    causal: bool = False
    cache: Tensor | None = None

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def attend(self, layer: int, heads: int, qkv: Tensor, last: bool) -> Tensor:
        """What the new tokens gather, (B * T, C), from their `qkv` (B * T, 3C).

        If `last`, only each sequence's last token asks: (B, C).
        """
        batch, length = self.tokens.shape
        split = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind()  # (B, heads, T, size)
        if self.cache is not None:
            self._keep(layer, split[1:])
            keys, values = self._seen[2 * layer], self._seen[2 * layer + 1]
        allowed = self.allowed
        if last and length > 1:
            queries = queries[:, :, -1:]
            allowed = None if allowed is None else allowed[..., -1:, :]
        causal = self.causal and queries.shape[2] > 1
        y = F.scaled_dot_product_attention(queries, keys, values, allowed, is_causal=causal)
        return y.transpose(1, 2).reshape(-1, qkv.shape[1] // 3)

    def _keep(self, layer: int, new: Tensor) -> None:
        """Add the `new` keys and values (2, B, heads, T, size) to the cache."""
        if isinstance(self.write, slice):
            self._room[layer].copy_(new)
        else:
            assert self.cache is not None
            self.cache[layer].index_copy_(3, self.write, new)

    # A view costs as much as a small kernel, so that those of all layers are taken at once.

    @cached_property
    def _room(self) -> Sequence[Tensor]:
        """For each layer, where the new keys and values go: (2, B, heads, T, size)."""
        assert self.cache is not None
        return self.cache[..., self.write, :].unbind()

    @cached_property
    def _seen(self) -> Sequence[Tensor]:
        """Keys, then values (B, heads, seen, size) of each layer."""
        assert self.cache is not None
        return self.cache[..., : self.seen, :].flatten(0, 1).unbind()


class Weights:
    """A GPT's weights in the precision `dtype`: its own parameters, where that is theirs."""

    def __init__(self, gpt: GPT, dtype: torch.dtype | None = None) -> None:
        self.config = gpt.config
        self.dtype = dtype or gpt.pos_emb.dtype
        self.tok_emb = gpt.tok_emb.weight.detach().to(self.dtype)  # (V, C)
        self.pos_emb = gpt.pos_emb[0].detach().to(self.dtype)  # (T, C)
        self.layers = [Layer.of(cast(Block, block), self.dtype) for block in gpt.blocks]
        self.ln_f = (gpt.ln_f.weight.detach().to(self.dtype), gpt.ln_f.bias.detach().to(self.dtype))
        self.head = gpt.head.weight.detach().to(self.dtype)  # (V, C)

    @property
    def device(self) -> torch.device:
        return self.pos_emb.device

    def new_cache(self, batch_size: int, length: int) -> Tensor:
        """Room for the keys and values of `length` positions in every layer; see `Segment`."""
        heads, size = self.config.n_head, self.config.n_embd // self.config.n_head
        return self.pos_emb.new_zeros(self.config.n_layer, 2, batch_size, heads, length, size)

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        """Float32 logits (B1 + B2 + ..., V) after the last token of every sequence.

        All segments go through the linear layers as one batch; attention is their own. Of the last
        layer only the last tokens are finished.
        """
        x = torch.cat([self._embed(segment) for segment in segments])  # (N, C)
        sizes = [segment.tokens.numel() for segment in segments]
        for n, layer in enumerate(self.layers):
            qkv, last = layer.project(x), n + 1 == len(self.layers)
            if last:
                x = _last_tokens(x, segments)
            parts = zip(segments, qkv.split(sizes) if len(sizes) > 1 else (qkv,), strict=True)
            y = [segment.attend(n, layer.heads, part, last) for segment, part in parts]
            x = layer.finish(x, y[0] if len(y) == 1 else torch.cat(y))
        return linear(F.layer_norm(x, x.shape[-1:], *self.ln_f), self.head).float()

    def _embed(self, segment: Segment) -> Tensor:
        x = F.embedding(segment.tokens, self.tok_emb) + self.pos_emb[segment.write]
        return x.flatten(0, 1)  # (B * T, C)


def _last_tokens(x: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Of `x` (N, C), the rows of each sequence's last token (B1 + B2 + ..., C)."""
    if all(segment.length == 1 for segment in segments):
        return x
    parts = x.split([segment.tokens.numel() for segment in segments])
    return torch.cat(
        [p.unflatten(0, s.tokens.shape)[:, -1] for p, s in zip(parts, segments, strict=True)]
    )
