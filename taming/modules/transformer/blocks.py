"""The blocks of a GPT: attention and a perceptron (architecture of GPT-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taming.modules.attention import attention
from taming.modules.linear import Linear, training_linear
from taming.modules.transformer.variants import (
    GPTConfig,
    SwiGLU,
    hidden_width,
    make_norm,
    modulate,
    normalize_heads,
    rotate,
)


def attention_mask(block_size: int, n_unmasked: int) -> Tensor:
    """1 where a position (row) may attend to another (column): float32 (1, 1, block, block).

    For example with block_size 4 and n_unmasked 2, positions 0 and 1 being a condition:

        1 1 0 0    0 sees 1, which causal attention would hide from it
        1 1 0 0
        1 1 1 0    from here on, a position sees itself and those before it
        1 1 1 1
    """
    mask = torch.ones(block_size, block_size).tril_()
    mask[:n_unmasked, :n_unmasked] = 1
    return mask[None, None]


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2).

    In comments, B is the batch, T the length, C = `n_embd` the width, nh the heads, hs = C / nh.
    """

    mask: Tensor

    def __init__(self, config: GPTConfig, mask: Tensor | None = None) -> None:
        super().__init__()
        self.key = Linear(config.n_embd, config.n_embd)
        self.query = Linear(config.n_embd, config.n_embd)
        self.value = Linear(config.n_embd, config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd)
        self.resid_drop = nn.Dropout(config.resid_pdrop)
        self.attn_pdrop = config.attn_pdrop
        self.n_head, self.n_unmasked = config.n_head, config.n_unmasked
        self.rotates, self.normalizes = config.rope_grid is not None, config.qk_norm
        if config.qk_norm:
            for name in ("query_gain", "key_gain"):
                gain = nn.Parameter(torch.ones(config.n_embd // config.n_head))
                self.register_parameter(name, gain)
        if mask is None:
            mask = attention_mask(config.block_size, config.n_unmasked)
        # Attention does not read it (see `GPT.hidden`), but published checkpoints have one in each
        # block.
        self.register_buffer("mask", mask)

    def gains(self) -> list[Tensor]:
        """Those of `normalize_heads`, of queries and keys; none by default."""
        names = ("query_gain", "key_gain") if self.normalizes else ()
        return [self.get_parameter(name) for name in names]

    def forward(
        self, x: Tensor, allowed: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """`x` (B, T, C) -> (B, T, C); `allowed` bool (1, 1, T, T), by default that of the mask."""
        return self.attend(*self.project(x, rotation), allowed)

    def project(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, nh, T, hs) of `x` (B, T, C); `rotation` (2, T, hs / 2)."""
        # A bias of the keys shifts all logits of a query alike, which softmax ignores: its gradient
        # is 0. Computed, it would be rounding noise, which Adam blows up to whole steps. Times 0 it
        # stays in the graph, as DistributedDataParallel waits for a gradient of every parameter.
        # Turned, or normalized, keys are not shifted alike.
        key_bias = self.key.bias  # (C,)
        if not self.rotates and not self.normalizes:
            key_bias = key_bias.detach() + 0 * key_bias  # type: ignore[assignment]
        projections = (self.query(x), training_linear(x, self.key.weight, key_bias), self.value(x))
        q, k, v = (
            projected.unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (B, T, C) -> (B, nh, T, hs)
            for projected in projections
        )
        if gains := self.gains():
            q, k = normalize_heads(q, gains[0]), normalize_heads(k, gains[1])
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Queries (B, nh, T, hs) at keys and values of as many or more positions -> (B, T, C)."""
        if allowed is None and self.n_unmasked:
            allowed = self.mask[..., : q.shape[2], : k.shape[2]].bool()
        dropout = self.attn_pdrop if self.training else 0.0
        y = attention(q, k, v, allowed, dropout)
        y = y.transpose(1, 2).flatten(2)  # (B, nh, T, hs) -> (B, T, nh, hs) -> (B, T, C)
        out: Tensor = self.resid_drop(self.proj(y))
        return out


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm and added to its input."""

    def __init__(self, config: GPTConfig, mask: Tensor | None = None) -> None:
        super().__init__()
        width, hidden = config.n_embd, hidden_width(config.mlp, config.n_embd)
        adaptive = config.adaln_classes > 0
        self.ln1 = make_norm(config.norm, width, affine=not adaptive)
        self.ln2 = make_norm(config.norm, width, affine=not adaptive)
        self.attn = CausalSelfAttention(config, mask)
        self.norm, self.gated = config.norm, config.mlp == "swiglu"
        self.mlp = nn.Sequential(
            Linear(width, 2 * hidden if self.gated else hidden),
            SwiGLU() if self.gated else nn.GELU(),
            Linear(hidden, width),
            nn.Dropout(config.resid_pdrop),
        )
        self.modulation = nn.Linear(width, 6 * width) if adaptive else None

    def forward(
        self,
        x: Tensor,
        allowed: Tensor | None = None,
        rotation: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """`x` (B, T, C) -> (B, T, C); `classes` (B, C), of `ClassEmbedding`."""
        if self.modulation is not None:
            return self._adaptive(x, allowed, rotation, self.modulation(classes))
        x = x + self.attn(self.ln1(x), allowed, rotation)
        change: Tensor = self.mlp(self.ln2(x))  # (B, T, C) -> (B, T, 4C) -> (B, T, C)
        return x + change

    def _adaptive(
        self, x: Tensor, allowed: Tensor | None, rotation: Tensor | None, modulation: Tensor
    ) -> Tensor:
        """`forward` as six vectors of the class, `modulation` (B, 6C), change it."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.ln1(x), shift1, scale1), allowed, rotation)
        change: Tensor = self.mlp(modulate(self.ln2(x), shift2, scale2))
        return x + gate2 * change

    def forward_with_past(
        self,
        x: Tensor,
        past: Tensor | None,
        allowed: Tensor,
        rotation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, after positions whose keys and values are `past` (2, B, nh, T', hs).

        Returns keys and values of `x` as well, (2, B, nh, T, hs).
        """
        q, k, v = self.attn.project(self.ln1(x), rotation)
        present = torch.stack((k, v))
        if past is not None:
            k, v = torch.cat((past, present), dim=-2)  # each (B, nh, T' + T, hs)
        x = x + self.attn.attend(q, k, v, allowed)
        change: Tensor = self.mlp(self.ln2(x))
        return x + change, present
