"""A GPT's weights as its decoders use them, and the pass of new tokens through them.

Sampling runs one token of each sequence at a time, so that what counts is how often weights are
read and how many kernels are started: the three projections are one product, rows of different
sequences go through the linear layers together, and logits are those of the last token alone.

In comments: B sequences of T new tokens, N = B * T rows, C = `n_embd`, heads of `size` = C / heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.modules.transformer.gpt import GPT, Block

Pair = tuple[Tensor, Tensor]  # weight and bias

# How many rows of x a CPU multiplies faster with the weights as the left factor. Outside of these
# ranges, the usual order is as fast or faster.
WEIGHTS_FIRST = {torch.float32: range(4, 65), torch.bfloat16: range(2, 129)}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (N, in) @ `weight` (out, in).T + `bias` (out,) -> (N, out), the faster factor first.

    With few rows, a CPU's BLAS reads the weights up to twice as fast if they are the left factor:
    (x @ W.T).T = W @ x.T, of shape (out, N), so that the result is a transposed view. For one row
    in bfloat16, starting from the bias takes longer than adding it at the end.
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

    For contiguous inputs, a CPU starts oneDNN's threads, which takes longer than computing a row.
    A single row is thus expanded to two without a copy (a stride of 0, not contiguous), and one of
    the two equal results is kept.
    """
    return F.gelu(x.expand(2, -1))[:1] if _one_row(x) else F.gelu(x)


def _one_row(x: Tensor) -> bool:
    return len(x) == 1 and x.device.type == "cpu"


def stacked_in_place(parts: Sequence[Tensor]) -> Tensor:
    """The parts (n, ...) below one another, (k * n, ...), in memory that they become views of.

    So the memory is that of one set of weights. Only for parameters that are not trained: an
    optimizer, a reducer or a compiled step may hold on to where they were.

    Parts that are stacked already, by an earlier decoder, lie one after the other in one storage:
    the whole is then a longer view from the start of the first. Moving a model to another device or
    dtype gives each part a storage of its own again, so that they are stacked anew.
    """
    first = parts[0].detach()
    storage, offset, length = first.untyped_storage(), first.storage_offset(), first.numel()
    in_place = all(
        part.untyped_storage().data_ptr() == storage.data_ptr()
        and part.storage_offset() == offset + n * length
        for n, part in enumerate(parts)
    )
    if in_place:
        return first.as_strided((len(parts) * len(first), *first.shape[1:]), first.stride())
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, torch.split(whole, len(first)), strict=True):
        part.data = view
    return whole


@dataclass(frozen=True)
class Layer:
    """A block's weights. `qkv` is one pair of (3C, C) and (3C,), or three of (C, C) and (C,)."""

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
        if attn.query.weight.dtype != dtype:  # these are copies, so one copy of all is no more
            pairs = ((torch.cat([w for w, _ in pairs]), torch.cat([b for _, b in pairs])),)
        elif not any(p.requires_grad for part in parts for p in part.parameters()):
            weight = stacked_in_place([part.weight for part in parts])
            pairs = ((weight, stacked_in_place([part.bias for part in parts])),)
        # Otherwise the weights are being trained: they stay where they are, three products a layer.
        ends = {"proj": pair(attn.proj), "up": pair(mlp[0]), "down": pair(mlp[2])}
        return cls(attn.n_head, pair(block.ln1), pair(block.ln2), pairs, **ends)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of `x` (N, C), one after the other: (N, 3C)."""
        normed = F.layer_norm(x, x.shape[-1:], *self.ln1)
        if len(self.qkv) == 1:
            return linear(normed, *self.qkv[0]).contiguous()
        return torch.cat([linear(normed, *pair) for pair in self.qkv], dim=-1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x` (N, C) after the rest of the block, from the output of its heads (N, C)."""
        x = linear(attended, *self.proj).add_(x)  # in place: nothing else holds the product
        normed = F.layer_norm(x, x.shape[-1:], *self.ln2)
        hidden = gelu(linear(normed, *self.up))  # (N, 4C)
        return linear(hidden, *self.down).add_(x)


@dataclass
class Segment:
    """New tokens of equally long sequences: where they stand and what they see.

    For example, a prompt of 3 tokens and then the next two, one at a time:

        tokens (B, 3)   write slice(0, 3)   seen 3   causal
        tokens (B, 1)   write slice(3, 4)   seen 4
        tokens (B, 1)   write slice(4, 5)   seen 5

    A static step has the same shapes whatever its position, as a recorded CUDA graph needs: it
    sees all positions that the cache has room for, say 8, less those that `allowed` masks, and
    finds its own position in a tensor on the device:

        tokens (B, 1)   write tensor([3])   seen 8   allowed 1 1 1 1 0 0 0 0
        tokens (B, 1)   write tensor([4])   seen 8   allowed 1 1 1 1 1 0 0 0

    `cache` has keys and values (layers, 2, B, heads, >= seen, size) of the positions before, to
    which those of the new ones are added; None if there are none, and none are kept.
    """

    tokens: Tensor  # int64 (B, T)
    write: slice | Tensor  # their positions: a slice, or an index tensor (T,)
    seen: int  # the number of positions that are looked at, with the new ones
    allowed: Tensor | None = None  # bool, broadcastable to (B, heads, T, seen)
    causal: bool = False  # the new tokens are the first: each sees itself and those before it
    cache: Tensor | None = None
    # Making a view costs as much as a small kernel, so those of all layers are made at once: keys,
    # then values (B, heads, seen, size) of each, and where the new ones go (2, B, heads, T, size).
    _seen: Sequence[Tensor] = field(init=False, default=())
    _room: Sequence[Tensor] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.cache is None:
            return
        self._seen = self.cache[..., : self.seen, :].flatten(0, 1).unbind()
        if isinstance(self.write, slice):
            self._room = self.cache[..., self.write, :].unbind()

    def attend(self, layer: int, heads: int, qkv: Tensor, last: bool) -> Tensor:
        """The heads' output (B * T, C) for the new tokens, from their `qkv` (B * T, 3C).

        If `last`, only for each sequence's last token: (B, C).
        """
        batch, length = self.tokens.shape
        # (B * T, 3C) -> (B, T, 3, heads, size) -> (3, B, heads, T, size), without a copy
        split = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind()  # (B, heads, T, size)
        if self.cache is not None:
            self._keep(layer, split[1:])
            # (B, heads, seen, size): the positions before and the new ones
            keys, values = self._seen[2 * layer], self._seen[2 * layer + 1]
        allowed = self.allowed
        if last and length > 1:  # the last layer: other tokens' outputs would go nowhere
            queries = queries[:, :, -1:]
            allowed = None if allowed is None else allowed[..., -1:, :]
        # One query sees everything; with `is_causal` torch would align it to the first key.
        causal = self.causal and queries.shape[2] > 1
        y = F.scaled_dot_product_attention(queries, keys, values, allowed, is_causal=causal)
        return y.transpose(1, 2).reshape(-1, qkv.shape[1] // 3)  # (B, T, heads, size) -> (B * T, C)

    def _keep(self, layer: int, new: Tensor) -> None:
        """Add the `new` keys and values (2, B, heads, T, size) to the cache."""
        if isinstance(self.write, slice):
            self._room[layer].copy_(new)
        else:
            assert self.cache is not None
            self.cache[layer].index_copy_(3, self.write, new)


class Weights:
    """A GPT's weights in the precision `dtype`: its own parameters if they have that dtype."""

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
        return self.pos_emb.new_zeros((self.config.n_layer, 2, batch_size, heads, length, size))

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        """Float32 logits (B1 + B2 + ..., V) after the last token of every sequence.

        All segments go through the linear layers as one batch; attention is their own. Of the last
        layer only the last tokens are finished.
        """
        # (B, T, C) + (T, C) -> (B * T, C) of each segment, together (N, C)
        embedded = [F.embedding(s.tokens, self.tok_emb) + self.pos_emb[s.write] for s in segments]
        x = torch.cat([part.flatten(0, 1) for part in embedded])
        sizes = [segment.tokens.numel() for segment in segments]
        for n, layer in enumerate(self.layers):
            qkv, last = layer.project(x), n + 1 == len(self.layers)  # (N, 3C)
            if last:
                x = _last_tokens(x, segments)  # (B1 + B2 + ..., C)
            split = torch.split(qkv, sizes) if len(sizes) > 1 else (qkv,)
            parts = zip(segments, split, strict=True)
            y = [segment.attend(n, layer.heads, part, last) for segment, part in parts]
            x = layer.finish(x, y[0] if len(y) == 1 else torch.cat(y))
        return linear(F.layer_norm(x, x.shape[-1:], *self.ln_f), self.head).float()


def _last_tokens(x: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Of `x` (N, C), the rows of each sequence's last token (B1 + B2 + ..., C)."""
    if all(segment.tokens.shape[1] == 1 for segment in segments):
        return x
    parts = torch.split(x, [segment.tokens.numel() for segment in segments])
    return torch.cat(
        [p.unflatten(0, s.tokens.shape)[:, -1] for p, s in zip(parts, segments, strict=True)]
    )
