"""The blocks of a GPT: attention and a perceptron (architecture of GPT-2)."""

from __future__ import annotations

from typing import Any

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

Past = Tensor | tuple[Tensor, Tensor]


def allowed_positions(
    end: int, n_unmasked: int, *, start: int = 0, device: torch.device | None = None
) -> Tensor:
    """Whether positions from `start` on (rows) may attend to those before `end` (columns): bool
    (1, 1, end - start, end).

    For example 4 positions with n_unmasked 2, 0 and 1 being a condition:

        1 1 0 0    0 sees 1, which causal attention would hide from it
        1 1 0 0
        1 1 1 0    from here on, a position sees itself and those before it
        1 1 1 1
    """
    columns = torch.arange(end, device=device)
    rows = columns[start:, None]
    together = (rows < n_unmasked) & (columns < n_unmasked)
    return ((columns <= rows) | together)[None, None]


def attention_mask(block_size: int, n_unmasked: int) -> Tensor:
    """`allowed_positions` of all positions as checkpoints have them: float32, 1 and 0."""
    return allowed_positions(block_size, n_unmasked).float()


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
        self.attn_drop = nn.Dropout(config.attn_pdrop)
        self.resid_drop = nn.Dropout(config.resid_pdrop)
        self.n_head, self.n_unmasked = config.n_head, config.see_all
        self.rotates, self.normalizes = config.rope_grid is not None, config.qk_norm
        if config.qk_norm:
            for name in ("query_gain", "key_gain"):
                gain = nn.Parameter(torch.ones(config.n_embd // config.n_head))
                self.register_parameter(name, gain)
        if mask is None:
            mask = attention_mask(config.block_size, config.n_unmasked)
        # Attention does not read it, as a checkpoint may bring that of another model, but published
        # checkpoints have one in each block.
        self.register_buffer("mask", mask)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *others: Any
    ) -> None:
        """A file's mask may be that of another model, and this one's goes into its checkpoints."""
        brought = state_dict.get(f"{prefix}mask")
        if brought is not None and brought.shape == self.mask.shape and not self.mask.is_meta:
            state_dict[f"{prefix}mask"] = self.mask
        super()._load_from_state_dict(state_dict, prefix, *others)

    def gains(self) -> list[Tensor]:
        """Those of `normalize_heads`, of queries and keys; none by default."""
        names = ("query_gain", "key_gain") if self.normalizes else ()
        return [self.get_parameter(name) for name in names]

    def forward(
        self,
        x: Tensor,
        layer_past: Past | None = None,
        *,
        allowed: Tensor | None = None,
        rotation: Tensor | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """`x` (B, T, C) -> its attention (B, T, C), and its keys and values (2, B, nh, T, hs).

        Args:
            layer_past: keys and values (B, nh, T', hs) of the T' positions before, in a pair or
                stacked.
            allowed: bool (1, 1, T, T' + T), by default `allowed_positions`.
            rotation: see `project`.
            keep: without, there is None for keys and values, which saves a copy of them.
        """
        q, k, v = self.project(x, rotation)
        present = torch.stack((k, v)) if keep else None
        if layer_past is not None:
            (past_k, past_v), start = layer_past, layer_past[0].shape[-2]
            k, v = torch.cat((past_k, k), dim=-2), torch.cat((past_v, v), dim=-2)
            if allowed is None:
                allowed = allowed_positions(
                    k.shape[2], self.n_unmasked, start=start, device=x.device
                )
        return self.attend(q, k, v, allowed), present

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
            allowed = allowed_positions(k.shape[2], self.n_unmasked, device=q.device)
            allowed = allowed[..., : q.shape[2], :]
        dropout = self.attn_drop.p if self.training else 0.0
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
        layer_past: Past | None = None,
        return_present: bool = False,
        *,
        allowed: Tensor | None = None,
        rotation: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """`x` (B, T, C) -> (B, T, C); `classes` (B, C), of `ClassEmbedding`.

        After other positions, `layer_past`, and with `return_present` the keys and values of `x`
        are returned as well; they and the rest are those of `CausalSelfAttention`.
        """
        change = () if self.modulation is None else self._change(self.modulation(classes))
        normed: Tensor = self.ln1(x)
        normed = modulate(normed, *change[:2]) if change else normed
        keep = return_present or layer_past is not None
        attended, present = self._attend(normed, layer_past, keep, allowed, rotation)
        x = x + (change[2] * attended if change else attended)
        normed = self.ln2(x)
        normed = modulate(normed, *change[3:5]) if change else normed
        hidden: Tensor = self.mlp(normed)  # (B, T, C) -> (B, T, 4C) -> (B, T, C)
        x = x + (change[5] * hidden if change else hidden)
        return (x, present) if keep else x

    @staticmethod
    def _change(modulation: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the perceptron, (B, 1, C) each, of what
        a class has, (B, 6C)."""
        return modulation[:, None].chunk(6, dim=-1)

    def _attend(
        self,
        x: Tensor,
        layer_past: Past | None,
        keep: bool,
        allowed: Tensor | None,
        rotation: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        if type(self.attn).forward is CausalSelfAttention.forward:
            result = self.attn(x, layer_past, allowed=allowed, rotation=rotation, keep=keep)
        else:  # of a user's, which takes the published arguments
            result = self.attn(x) if layer_past is None else self.attn(x, layer_past)
        attended, present = (result, None) if isinstance(result, Tensor) else result
        return attended, present
