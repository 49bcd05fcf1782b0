"""A GPT's weights as its decoders use them, and the pass of new tokens through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from taming.modules.transformer.mingpt import GPT, Block

Pair = tuple[Tensor, Tensor]  # weight and bias, or keys and values


# How many rows of x a CPU multiplies faster with the weights as the left factor.
WEIGHTS_FIRST = {torch.float32: range(4, 65), torch.bfloat16: range(2, 129)}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (N, in) @ `weight` (out, in).T + `bias` (out,): (N, out), by the fastest order of factors.

    With few rows, a CPU's BLAS reads the weights up to twice as fast where they are the left
    factor; the result is then a transposed view.
    """
    if x.device.type != "cpu" or len(x) not in WEIGHTS_FIRST.get(x.dtype, ()):
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.mm(weight, x.t()).t()
    return torch.addmm(bias[:, None], weight, x.t()).t()


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

    def normalised(self, x: Tensor) -> Tensor:
        """`x` (..., C) as the attention's projections read it."""
        return F.layer_norm(x, x.shape[-1:], *self.ln1)

    def project(self, normed: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values (..., C) of `normed` (..., C)."""
        if len(self.qkv) == 1:
            return linear(normed, *self.qkv[0]).contiguous().chunk(3, dim=-1)
        return [linear(normed, *pair).contiguous() for pair in self.qkv]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x` (..., C) after the block, given what its heads gathered (..., C)."""
        x = linear(attended, *self.proj).add_(x)
        normed = F.layer_norm(x, x.shape[-1:], *self.ln2)
        return linear(F.gelu(linear(normed, *self.up)), *self.down).add_(x)


@dataclass(frozen=True)
class Segment:
    """New tokens of equally long sequences: where they stand and what they see.

    Attributes:
        tokens: int64 (B, T).
        write: their positions: a slice, or an index tensor (T,).
        seen: how many positions there are, with the new ones.
        allowed: bool, broadcastable to (B, heads, T, seen); None: all, or by `causal`.
        causal: each of the new tokens, which are the first, sees itself and those before it.
        cache: for each layer the keys and values (B, heads, >= seen, size) of the positions before,
            which those of the new ones are added to; None where there are none, and none are kept.
    """

    tokens: Tensor
    write: slice | Tensor
    seen: int
    allowed: Tensor | None = None
    causal: bool = False
    cache: Sequence[Pair] | None = None

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def attend(self, layer: int, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What `q` (N', C) gather, (N', C); `k` and `v` (N, C) are those of all new tokens.

        N = B * T; N' is N, or B where only the last token of each sequence asks.
        """
        queries, keys, values = (
            x.reshape(len(self.tokens), -1, heads, x.shape[-1] // heads).transpose(1, 2)
            for x in (q, k, v)
        )  # (B, heads, T, size)
        if self.cache is not None:
            all_keys, all_values = self.cache[layer]
            all_keys[:, :, self.write] = keys
            all_values[:, :, self.write] = values
            keys, values = all_keys[:, :, : self.seen], all_values[:, :, : self.seen]
        asking = queries.shape[2]
        allowed = None if self.allowed is None else self.allowed[..., -asking:, :]
        causal = self.causal and asking > 1
        y = F.scaled_dot_product_attention(queries, keys, values, allowed, is_causal=causal)
        return y.transpose(1, 2).reshape(q.shape)


class Weights:
    """A GPT's weights in the precision `dtype`: its own parameters, where that is theirs."""

    def __init__(self, gpt: GPT, dtype: torch.dtype | None = None) -> None:
        self.config = gpt.config
        self.dtype = dtype or gpt.pos_emb.dtype
        self.tok_emb = gpt.tok_emb.weight.detach().to(self.dtype)  # (V, C)
        self.pos_emb = gpt.pos_emb[0].detach().to(self.dtype)  # (T, C)
        self.layers = [Layer.of(cast("Block", block), self.dtype) for block in gpt.blocks]
        self.ln_f = (gpt.ln_f.weight.detach().to(self.dtype), gpt.ln_f.bias.detach().to(self.dtype))
        self.head = gpt.head.weight.detach().to(self.dtype)  # (V, C)

    @property
    def device(self) -> torch.device:
        return self.pos_emb.device

    def new_cache(self, batch_size: int, length: int) -> list[Pair]:
        """Room for the keys and values of `length` positions in every layer."""
        heads, size = self.config.n_head, self.config.n_embd // self.config.n_head
        shape = (self.config.n_layer, 2, batch_size, heads, length, size)
        return [(keys, values) for keys, values in self.pos_emb.new_zeros(shape)]

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        """Float32 logits (B1 + B2 + ..., V) after the last token of every sequence.

        All segments go through the linear layers as one batch; attention is their own. Of the last
        layer only the last tokens are finished.
        """
        x = torch.cat([self._embed(segment) for segment in segments])  # (N, C)
        sizes = [segment.tokens.numel() for segment in segments]
        for n, layer in enumerate(self.layers):
            q, k, v = layer.project(layer.normalised(x))
            if n + 1 == len(self.layers):
                q, x = (_last_tokens(part, segments) for part in (q, x))
                asking = [len(segment.tokens) for segment in segments]
            else:
                asking = sizes
            parts = zip(segments, q.split(asking), k.split(sizes), v.split(sizes), strict=True)
            y = [s.attend(n, layer.heads, *qkv) for s, *qkv in parts]
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
