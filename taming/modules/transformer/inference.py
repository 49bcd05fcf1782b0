"""A GPT's weights as its decoders use them, and the pass of new tokens through them.

Sampling runs one token of each sequence at a time, so that what counts is how often weights are
read and how many kernels are started: the three projections are one product, rows of different
sequences go through the linear layers together, and logits are those of the last token alone.

In comments: B sequences of T new tokens, N = B * T rows, C = `n_embd`, heads of `size` = C / heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.errors import UserError
from taming.kernel_choice import TORCH
from taming.modules.linear import SamplingLinear, sampling_kernel, sampling_linear
from taming.modules.packed_weight import quantized_in_place
from taming.modules.transformer.gpt import GPT, Block

Pair = tuple[Tensor, Tensor]  # weight and bias of a normalization


@dataclass(frozen=True)
class Layer:
    """A block's weights. `qkv` is one layer with outputs (N, 3C), or three with (N, C)."""

    heads: int
    ln1: Pair
    ln2: Pair
    qkv: tuple[SamplingLinear, ...]
    proj: SamplingLinear
    up: SamplingLinear
    down: SamplingLinear

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype, kernel: str = TORCH) -> Layer:
        attn, mlp = block.attn, block.mlp

        def pair(part: nn.Module) -> Pair:
            weight, bias = part.get_parameter("weight"), part.get_parameter("bias")
            return weight.detach().to(dtype), bias.detach().to(dtype)

        def product(*parts: nn.Module) -> SamplingLinear:
            return sampling_linear(cast(Sequence[nn.Linear], parts), dtype, kernel)

        parts = (attn.query, attn.key, attn.value)
        trained = any(p.requires_grad for part in parts for p in part.parameters())
        # Weights that are being trained stay where they are, three products a layer; for another
        # dtype they are copied, so that one copy of all is no more.
        apart = trained and attn.query.weight.dtype == dtype
        qkv = tuple(map(product, parts)) if apart else (product(*parts),)
        ends = {"proj": product(attn.proj), "up": product(mlp[0]), "down": product(mlp[2])}
        return cls(attn.n_head, pair(block.ln1), pair(block.ln2), qkv, **ends)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of `x` (N, C), one after the other: (N, 3C)."""
        normed = F.layer_norm(x, x.shape[-1:], *self.ln1)
        if len(self.qkv) == 1:
            return self.qkv[0](normed).contiguous()
        return torch.cat([product(normed) for product in self.qkv], dim=-1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x` (N, C) after the rest of the block, from the output of its heads (N, C)."""
        x = self.proj.plus(attended, x)
        hidden = self.up.gelu(F.layer_norm(x, x.shape[-1:], *self.ln2))  # (N, 4C)
        return self.down.plus(hidden, x)


@dataclass(frozen=True)
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

    # Making a view costs as much as a small kernel, so those of all layers are made at once.

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
    """A GPT's weights in the precision `dtype`: its own parameters if they have that dtype.

    Args:
        rows: about how many sequences there will be.
        kernel: of the linear layers ("torch", "onednn" or "packed"); by default the fastest here
            for so many rows, if the GPT is not trained: see `taming.modules.linear`.
    """

    def __init__(
        self,
        gpt: GPT,
        dtype: torch.dtype | None = None,
        rows: int = 1,
        kernel: str | None = None,
    ) -> None:
        self.config = gpt.config
        self.dtype = dtype or gpt.pos_emb.dtype
        self.kernel = kernel or _kernel_of(gpt, self.dtype, rows)
        self.tok_emb = gpt.tok_emb.weight.detach().to(self.dtype)  # (V, C)
        self.pos_emb = gpt.pos_emb[0].detach().to(self.dtype)  # (T, C)
        blocks = cast(Sequence[Block], gpt.blocks)
        self.layers = [Layer.of(block, self.dtype, self.kernel) for block in blocks]
        self.ln_f = (gpt.ln_f.weight.detach().to(self.dtype), gpt.ln_f.bias.detach().to(self.dtype))
        self.head = sampling_linear([gpt.head], self.dtype, self.kernel)  # (N, C) -> (N, V)

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
        return self.head(F.layer_norm(x, x.shape[-1:], *self.ln_f)).float()


def _last_tokens(x: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Of `x` (N, C), the rows of each sequence's last token (B1 + B2 + ..., C)."""
    if all(segment.tokens.shape[1] == 1 for segment in segments):
        return x
    parts = torch.split(x, [segment.tokens.numel() for segment in segments])
    return torch.cat(
        [p.unflatten(0, s.tokens.shape)[:, -1] for p, s in zip(parts, segments, strict=True)]
    )


def _kernel_of(gpt: GPT, dtype: torch.dtype, rows: int) -> str:
    """Weights that are trained must stay where they are, as they are."""
    if any(p.requires_grad for p in gpt.parameters()) and gpt.pos_emb.dtype == dtype:
        return TORCH
    weight = gpt.blocks[0].get_parameter("mlp.0.weight")
    return sampling_kernel(weight, dtype, rows)


def quantize_in_place(model: nn.Module) -> None:
    """Have the transformers of a model compute with int8 weights, but for their heads, for good.

    Raises:
        UserError: if it has none.
    """
    gpts = [part for part in model.modules() if isinstance(part, GPT)]
    if not gpts:
        raise UserError("int8 is for transformers, and this model has none; leave int8 out")
    for block in (cast(Block, block) for gpt in gpts for block in gpt.blocks):
        attn, mlp = block.attn, cast(Sequence[nn.Linear], block.mlp)
        for layers in ((attn.query, attn.key, attn.value), (attn.proj,), (mlp[0],), (mlp[2],)):
            quantized_in_place(layers)
