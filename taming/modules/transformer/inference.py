"""A GPT's weights as its decoders use them, and the pass of new tokens through them.

Sampling runs one token of each sequence at a time, so that what counts is how often weights are
read and how many kernels are started: the three projections are one product, rows of different
sequences go through the linear layers together, and logits are those of the last token alone.

In comments: B sequences of T new tokens, N = B * T rows, C = `n_embd`, heads of `size` = C / heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.errors import UserError
from taming.kernel_choice import TORCH
from taming.modules.linear import sampling_kernel
from taming.modules.linear_kernels import (
    FewRowsLinear,
    Pair,
    SamplingLinear,
    linear,
    sampling_linear,
)
from taming.modules.packed_weight import quantized_in_place
from taming.modules.transformer.gpt import GPT, Block
from taming.modules.transformer.plain import is_plain
from taming.modules.transformer.segment import Segment
from taming.modules.transformer.variants import (
    EPSILON,
    NormKind,
    embed_classes,
    modulate,
    normalize,
    normalize_heads,
    rotate,
    swiglu,
)
from taming.user_code import name_of


@dataclass(frozen=True)
class Layer:
    """A block's weights. `qkv` is one layer with outputs (N, 3C), or three with (N, C)."""

    heads: int
    ln1: tuple[Tensor, ...]
    ln2: tuple[Tensor, ...]
    qkv: tuple[SamplingLinear, ...]
    proj: SamplingLinear
    up: SamplingLinear
    down: SamplingLinear
    norm: NormKind
    gated: bool  # SwiGLU
    gains: tuple[Tensor, ...]  # of queries and keys, (size,) each, or none
    modulation: Pair | None  # (6C, C) and (6C,)

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
        return cls(
            attn.n_head,
            in_dtype(block.ln1, dtype),
            in_dtype(block.ln2, dtype),
            tuple(map(product, parts)) if apart else (product(*parts),),
            proj=product(attn.proj),
            up=product(mlp[0]),
            down=product(mlp[2]),
            norm=block.norm,
            gated=block.gated,
            gains=tuple(gain.detach().to(dtype) for gain in attn.gains()),
            modulation=None if block.modulation is None else pair(block.modulation),
        )

    def project(
        self, x: Tensor, rotation: Tensor | None = None, change: Sequence[Tensor] = ()
    ) -> Tensor:
        """Queries, keys and values of `x` (N, C), one after the other: (N, 3C).

        Args:
            rotation: (2, N, size / 2), see `variants.rotations`.
            change: shift and scale (N, C) that a class has.
        """
        if len(self.qkv) == 1:
            qkv = of_normed(self.qkv[0], x, self.ln1, self.norm, change).contiguous()
        else:
            normed = normalized(x, self.ln1, self.norm, change)
            qkv = torch.cat([product(normed) for product in self.qkv], dim=-1)
        return qkv if rotation is None and not self.gains else self._placed(qkv, rotation)

    def _placed(self, qkv: Tensor, rotation: Tensor | None) -> Tensor:
        """`qkv` (N, 3C) with queries and keys normalized, or turned, or both."""
        heads = qkv.unflatten(-1, (3, self.heads, -1))  # (N, 3, heads, size)
        parts: Sequence[Tensor] = heads.unbind(1)[:2]
        if self.gains:
            parts = [normalize_heads(x, gain) for x, gain in zip(parts, self.gains, strict=True)]
        if rotation is not None:
            parts = [rotate(x, rotation[:, :, None]) for x in parts]  # (N, heads, size)
        return torch.stack((*parts, heads[:, 2]), dim=1).flatten(1)

    def finish(self, x: Tensor, attended: Tensor, change: Sequence[Tensor] = ()) -> Tensor:
        """`x` (N, C) after the rest of the block, from the output of its heads (N, C).

        `change` (N, C) each: gate of the attention; shift, scale and gate of the perceptron.
        """
        x = (change[0] * self.proj(attended)).add_(x) if change else self.proj.plus(attended, x)
        hidden = of_normed(self.up, x, self.ln2, self.norm, change[1:3], gelu=not self.gated)
        hidden = swiglu(hidden) if self.gated else hidden  # (N, 4C)
        return (change[3] * self.down(hidden)).add_(x) if change else self.down.plus(hidden, x)


def normalized(
    x: Tensor, norm: tuple[Tensor, ...], kind: NormKind, change: Sequence[Tensor]
) -> Tensor:
    """`x` (N, C) behind a normalization, with the shift and scale (N, C) of a class, if any."""
    normed = normalize(x, norm, kind)
    return modulate(normed, *change) if change else normed


def of_normed(
    product: SamplingLinear,
    x: Tensor,
    norm: tuple[Tensor, ...],
    kind: NormKind,
    change: Sequence[Tensor] = (),
    *,
    gelu: bool = False,
) -> Tensor:
    """A linear layer, and GELU, of `normalized` `x`; in one kernel where there is one for it."""
    plain = kind == "layer" and len(change) == 0  # torch.compile knows no `not` of a tuple
    if plain and isinstance(product, FewRowsLinear) and product.takes(x):
        gain, shift = norm
        return product.behind_norm(x, (gain, shift), EPSILON, gelu=gelu)
    normed = normalized(x, norm, kind, change)
    return product.gelu(normed) if gelu else product(normed)


def in_dtype(module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Weight and bias of a normalization, as far as it has them."""
    return tuple(parameter.detach().to(dtype) for parameter in module.parameters())


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
        self.pos_emb = gpt.positions()[0].detach().to(self.dtype)  # (T, C)
        targets = gpt.target_emb
        self.target_emb = None if targets is None else targets[0].detach().to(self.dtype)
        self.rotations = gpt.rotations()  # (2, T, size / 2)
        blocks = cast(Sequence[Block], gpt.blocks)
        self.layers = [Layer.of(block, self.dtype, self.kernel) for block in blocks]
        self.ln_f = in_dtype(gpt.ln_f, self.dtype)
        self.head = sampling_linear([gpt.head], self.dtype, self.kernel)  # (N, C) -> (N, V)
        self.class_emb: Tensor | None = None
        if gpt.class_emb is not None and gpt.modulation is not None:
            self.class_emb = gpt.class_emb.weight.detach().to(self.dtype)
            self.modulation = in_dtype(gpt.modulation, self.dtype)  # (2C, C) and (2C,)

    @property
    def device(self) -> torch.device:
        return self.pos_emb.device

    @property
    def n_unmasked(self) -> int:
        return self.config.see_all

    def new_cache(self, batch_size: int, length: int) -> Tensor:
        """Room for the keys and values of `length` positions in every layer; see `Segment`."""
        heads, size = self.config.n_head, self.config.n_embd // self.config.n_head
        return self.pos_emb.new_zeros((len(self.layers), 2, batch_size, heads, length, size))

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        """Float32 logits (B1 + B2 + ..., V) after the last token of every sequence, or after so
        many of its last as the segment `answers`: (B1 * answers + ..., V).

        All segments go through the linear layers as one batch; attention is their own. Of the last
        layer only the last tokens are finished.
        """
        x = torch.cat([self._embed(segment) for segment in segments])  # (N, C)
        sizes = [segment.tokens.numel() for segment in segments]
        rotation, changes = self._rotation(segments), self._changes(segments)
        for n, layer in enumerate(self.layers):
            change = changes[n].chunk(6, -1) if changes else ()  # (N, C) each
            qkv, last = layer.project(x, rotation, change[:2]), n + 1 == len(self.layers)  # (N, 3C)
            if last:
                x = _last_tokens(x, segments)  # (B1 + B2 + ..., C)
                change = tuple(_last_tokens(part, segments) for part in change)
            split = torch.split(qkv, sizes) if len(sizes) > 1 else (qkv,)
            parts = zip(segments, split, strict=True)
            y = [segment.attend(n, layer.heads, part, last) for segment, part in parts]
            x = layer.finish(x, y[0] if len(y) == 1 else torch.cat(y), change[2:])
        change = _last_tokens(changes[-1], segments).chunk(2, -1) if changes else ()
        return of_normed(self.head, x, self.ln_f, self.config.norm, change).float()

    def _embed(self, segment: Segment) -> Tensor:
        """Tokens with their positions: (B, T, C) + (T, C) -> (B * T, C)."""
        x = F.embedding(segment.tokens, self.tok_emb)
        if self.class_emb is not None and segment.starts:
            x[:, 0] = 0  # the class is no token
            if segment.path is not None:  # and may be read for several positions
                x = x.masked_fill((segment.path[0] == 0)[..., None], 0)
        return (x + self._placed(segment)).flatten(0, 1)

    def _placed(self, segment: Segment) -> Tensor:
        """What positions add to the tokens: (T, C), or of each sequence's own, (B, T, C)."""
        if segment.path is not None:
            read = F.embedding(segment.path[0], self.pos_emb)
            if self.target_emb is None:
                return read
            return read + F.embedding(segment.path[1], self.target_emb)
        read = self.pos_emb[segment.write]
        return read if self.target_emb is None else read + self.target_emb[segment.next]

    def _rotation(self, segments: Sequence[Segment]) -> Tensor | None:
        """Of each row, (2, N, size / 2)."""
        if self.rotations is None:
            return None
        return torch.cat([_turned(self.rotations, segment) for segment in segments], dim=1)

    def modulations(self, classes: Tensor) -> list[Tensor]:
        """How the classes of sequences (B,) change each layer, (B, 6C), and `ln_f`, (B, 2C)."""
        if self.class_emb is None:
            return []
        read = embed_classes(classes, self.class_emb)  # (B, C)
        layers = [layer.modulation for layer in self.layers]
        return [linear(read, *pair) for pair in (*layers, self.modulation) if pair is not None]

    def _changes(self, segments: Sequence[Segment]) -> list[Tensor]:
        """The modulations of each row, (N, 6C) and (N, 2C)."""
        if self.class_emb is None:
            return []
        of_sequences = [s.modulations or self.modulations(s.tokens[:, 0]) for s in segments]
        lengths = [segment.tokens.shape[1] for segment in segments]
        of_rows = [
            [part.repeat_interleave(length, 0) for part in parts]
            for parts, length in zip(of_sequences, lengths, strict=True)
        ]
        return [torch.cat(parts) for parts in zip(*of_rows, strict=True)]


def _last_tokens(x: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Of `x` (N, C), the rows of each sequence's last tokens (B1 * answers + ..., C)."""
    if all(segment.tokens.shape[1] == segment.answers for segment in segments):
        return x
    parts = torch.split(x, [segment.tokens.numel() for segment in segments])
    return torch.cat(
        [
            part.unflatten(0, s.tokens.shape)[:, -s.answers :].flatten(0, 1)
            for part, s in zip(parts, segments, strict=True)
        ]
    )


def _turned(rotations: Tensor, segment: Segment) -> Tensor:
    """Of `rotations` (2, positions, size / 2), those of a segment's rows: (2, N, size / 2)."""
    if segment.path is not None:
        return rotations[:, segment.path[0].flatten()]
    return rotations[:, segment.write].repeat(1, len(segment.tokens), 1)


def _kernel_of(gpt: GPT, dtype: torch.dtype, rows: int) -> str:
    """Weights that are trained must stay where they are, as they are."""
    if any(p.requires_grad for p in gpt.parameters()) and gpt.pos_emb.dtype == dtype:
        return TORCH
    weight = gpt.blocks[0].get_parameter("mlp.0.weight")
    return sampling_kernel(weight, dtype, rows)


def quantize_in_place(model: nn.Module) -> None:
    """Have the transformers of a model compute with int8 weights, but for their heads, for good.

    Raises:
        UserError: if it has none, or one that computes otherwise than `Weights` do.
    """
    gpts = [part for part in model.modules() if isinstance(part, GPT)]
    for gpt in gpts:
        if not is_plain(gpt):
            raise UserError(
                f"int8 is for GPTs of this project, and {name_of(type(gpt))} has methods or parts "
                "of its own; leave int8 out"
            )
    if not gpts:
        raise UserError("int8 is for transformers, and this model has none; leave int8 out")
    for block in (cast(Block, block) for gpt in gpts for block in gpt.blocks):
        attn, mlp = block.attn, cast(Sequence[nn.Linear], block.mlp)
        for layers in ((attn.query, attn.key, attn.value), (attn.proj,), (mlp[0],), (mlp[2],)):
            quantized_in_place(layers)
