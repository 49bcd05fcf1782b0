"""A GPT over codebook indices (arXiv 2012.09841, section 3.2; architecture of GPT-2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from taming.config_values import Count, CountOrZero, FractionBelowOne, Range
from taming.errors import UserError
from taming.limits import check_memory
from taming.modules.linear import Linear, training_linear


class GPTConfig:
    """Sizes and dropouts of a GPT and its blocks; other names become attributes, too."""

    n_layer: int = 12
    n_head: int = 8
    n_embd: int = 256
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    n_unmasked: int = 0

    def __init__(self, vocab_size: int, block_size: int, **others: Any) -> None:
        self.vocab_size, self.block_size = vocab_size, block_size
        vars(self).update(others)


def _attention_mask(block_size: int, n_unmasked: int) -> Tensor:
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
        if mask is None:
            mask = _attention_mask(config.block_size, config.n_unmasked)
        # Attention does not read it (see `GPT.hidden`), but published checkpoints have one in each
        # block.
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`x` (B, T, C) -> (B, T, C); `allowed` bool (1, 1, T, T), by default that of the mask."""
        return self.attend(*self.project(x), allowed)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, nh, T, hs) of `x` (B, T, C)."""
        # A bias of the keys shifts all logits of a query alike, which softmax ignores: its gradient
        # is 0. Computed, it would be rounding noise, which Adam blows up to whole steps. Times 0 it
        # stays in the graph, as DistributedDataParallel waits for a gradient of every parameter.
        key_bias = self.key.bias.detach() + 0 * self.key.bias  # (C,)
        projections = (self.query(x), training_linear(x, self.key.weight, key_bias), self.value(x))
        q, k, v = (
            projected.unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (B, T, C) -> (B, nh, T, hs)
            for projected in projections
        )
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Queries (B, nh, T, hs) at keys and values of as many or more positions -> (B, T, C)."""
        if allowed is None and self.n_unmasked:
            allowed = self.mask[..., : q.shape[2], : k.shape[2]].bool()
        dropout = self.attn_pdrop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, allowed, dropout, is_causal=allowed is None)
        y = y.transpose(1, 2).flatten(2)  # (B, nh, T, hs) -> (B, T, nh, hs) -> (B, T, C)
        out: Tensor = self.resid_drop(self.proj(y))
        return out


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm and added to its input."""

    def __init__(self, config: GPTConfig, mask: Tensor | None = None) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config, mask)
        self.mlp = nn.Sequential(
            Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),
            Linear(4 * config.n_embd, config.n_embd),
            nn.Dropout(config.resid_pdrop),
        )

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`x` (B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln1(x), allowed)
        change: Tensor = self.mlp(self.ln2(x))  # (B, T, C) -> (B, T, 4C) -> (B, T, C)
        return x + change

    def forward_with_past(
        self, x: Tensor, past: Tensor | None, allowed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, after positions whose keys and values are `past` (2, B, nh, T', hs).

        Returns keys and values of `x` as well, (2, B, nh, T, hs).
        """
        q, k, v = self.attn.project(self.ln1(x))
        present = torch.stack((k, v))
        if past is not None:
            k, v = torch.cat((past, present), dim=-2)  # each (B, nh, T' + T, hs)
        x = x + self.attn.attend(q, k, v, allowed)
        change: Tensor = self.mlp(self.ln2(x))
        return x + change, present


class GPT(nn.Module):
    """Autoregressive transformer over indices.

    Args:
        vocab_size: number of tokens, of images and conditions together.
        block_size: longest sequence.
        n_unmasked: so many positions at the beginning attend to each other fully, as suits a
            condition, all of which is known before the first token is sampled.
        gradient_checkpointing: recompute activations in the backward pass: training takes about a
            quarter longer, with the memory of one block and the blocks' inputs.

    Raises:
        UserError: if `n_embd` is no multiple of `n_head`, or `n_unmasked` above `block_size`; in
            use, for sequences that are too long.
    """

    def __init__(
        self,
        vocab_size: Count,
        block_size: Count,
        n_layer: Annotated[int, Range(1, 10_000)] = 12,
        n_head: Count = 8,
        n_embd: Count = 256,
        embd_pdrop: FractionBelowOne = 0.0,
        resid_pdrop: FractionBelowOne = 0.0,
        attn_pdrop: FractionBelowOne = 0.0,
        n_unmasked: CountOrZero = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_memory(block_size**2, block_size=block_size)  # of the mask
        check_memory(2 * vocab_size * n_embd, vocab_size=vocab_size, n_embd=n_embd)
        weights = n_embd * (12 * n_layer * n_embd + 2 * vocab_size + block_size)
        check_memory(weights, n_embd=n_embd, n_layer=n_layer)
        if n_embd % n_head:
            raise UserError(f"GPT: n_embd ({n_embd}) must be a multiple of n_head ({n_head})")
        if n_unmasked > block_size:
            raise UserError(f"GPT: n_unmasked is {n_unmasked}, beyond block_size: {block_size}")
        self.config = config = GPTConfig(
            vocab_size=vocab_size,
            block_size=block_size,
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            embd_pdrop=embd_pdrop,
            resid_pdrop=resid_pdrop,
            attn_pdrop=attn_pdrop,
            n_unmasked=n_unmasked,
        )
        self.gradient_checkpointing = gradient_checkpointing
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        self.drop = nn.Dropout(embd_pdrop)
        mask = _attention_mask(block_size, n_unmasked)
        self.blocks = nn.Sequential(*(Block(config, mask) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = Linear(n_embd, vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_block_size(self) -> int:
        """The longest sequence that fits."""
        length: int = self.config.block_size
        return length

    def hidden(self, idx: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """What the head turns into logits: (B, E + T, C), for `idx` (B, T) after `embeddings`."""
        x = self.tok_emb(idx)  # (B, T, C)
        if embeddings is not None:
            x = torch.cat((embeddings, x), dim=1)  # (B, E + T, C)
        length, block_size = x.shape[1], self.config.block_size
        if length > block_size:
            raise UserError(
                f"a sequence of {length} tokens is longer than the transformer's block_size of "
                f"{block_size}: the image or its condition has more tokens than it was built for"
            )
        x = self.drop(x + self.pos_emb[:, :length])  # (1, E + T, C) for the whole batch
        allowed = self._allowed(length)
        for block in self.blocks:
            x = self._run(block, x, allowed)
        normed: Tensor = self.ln_f(x)
        return normed

    def _allowed(self, length: int) -> Tensor | None:
        """Which positions see which, (1, 1, length, length); None for causal attention."""
        if not self.config.n_unmasked:  # torch has kernels for causal attention that read no mask
            return None
        return self.get_buffer("blocks.0.attn.mask")[..., :length, :length].bool()

    def _run(self, block: nn.Module, x: Tensor, allowed: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            x = checkpoint(block, x, allowed, use_reentrant=False)
        else:
            x = block(x, allowed)
        return x

    def forward(
        self, idx: Tensor, embeddings: Tensor | None = None, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, E + T, V) of the next token at every position, and the cross-entropy.

        Args:
            idx: int64 (B, T).
            embeddings: (B, E, C), put before the tokens' embeddings.
            targets: int64 (B, E + T); without them the loss, in nats per token, is None.
        """
        logits = self.head(self.hidden(idx, embeddings))  # (B, E + T, C) -> (B, E + T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def forward_with_past(
        self,
        idx: Tensor,
        embeddings: Tensor | None = None,
        targets: Tensor | None = None,
        past: Tensor | Sequence[Tensor] | None = None,
        past_length: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `forward`, of tokens after others: (logits (B, E + T, V), loss, present).

        For samplers of one's own; `decoding.CachedDecoder`, which copies nothing, is faster.

        Args:
            past: what earlier calls returned as `present` (n_layer, 2, B, nh, T', hs), in order.
            past_length: the number of tokens in `past`.
        """
        x = self.tok_emb(idx)  # (B, T, C)
        if embeddings is not None:
            x = torch.cat((embeddings, x), dim=1)
        if past is not None and not isinstance(past, Tensor):
            past = torch.cat(tuple(past), dim=-2)
        start = 0 if past is None else past.shape[-2]
        if past_length not in (None, start):
            raise UserError(f"past_length is {past_length}, but `past` has {start} tokens")
        end = start + x.shape[1]
        x = self.drop(x + self.pos_emb[:, start:end])
        allowed = self.get_buffer("blocks.0.attn.mask")[..., start:end, :end].bool()
        presents = []
        for number, block in enumerate(self.blocks.children()):
            assert isinstance(block, Block)
            x, present = block.forward_with_past(x, None if past is None else past[number], allowed)
            presents.append(present)
        logits = self.head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss, torch.stack(presents)

    def parameter_groups(self, weight_decay: float = 0.01) -> list[dict[str, Any]]:
        """Groups for AdamW: `weight_decay` on the weights of Linear layers, none on the rest."""
        decayed = {
            f"{name}.weight" for name, layer in self.named_modules() if isinstance(layer, nn.Linear)
        }
        parameters = sorted(self.named_parameters())
        return [
            {"params": [p for n, p in parameters if n in decayed], "weight_decay": weight_decay},
            {"params": [p for n, p in parameters if n not in decayed], "weight_decay": 0.0},
        ]
