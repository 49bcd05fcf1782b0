"""A GPT over codebook indices (arXiv 2012.09841, section 3.2; architecture of GPT-2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import Unpack

from taming.config_values import Count, CountOrZero, FractionBelowOne, Range
from taming.errors import UserError
from taming.limits import check_memory
from taming.modules.linear import Linear
from taming.modules.transformer.blocks import (
    Block,
    CausalSelfAttention,
    allowed_positions,
    attention_mask,
)
from taming.modules.transformer.variants import (
    ClassEmbedding,
    GPTConfig,
    VariantOptions,
    Variants,
    check_causal,
    check_variants,
    make_norm,
    modulate,
    rope_prefix,
    rotations,
)

__all__ = ["GPT", "Block", "CausalSelfAttention", "GPTConfig"]


class GPT(nn.Module):
    """Autoregressive transformer over indices.

    Args:
        vocab_size: number of tokens, of images and conditions together.
        block_size: longest sequence.
        n_unmasked: so many positions at the beginning attend to each other fully, as suits a
            condition, all of which is known before the first token is sampled.
        gradient_checkpointing: recompute activations in the backward pass: training takes about a
            quarter longer, with the memory of one block and the blocks' inputs.
        variants: options of later transformers, see `variants.Variants`.

    Raises:
        UserError: if `n_embd` is no multiple of `n_head`, `n_unmasked` above `block_size`, or
            `variants` do not fit; in use, for sequences that are too long.
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
        **variants: Unpack[VariantOptions],
    ) -> None:
        super().__init__()
        options = Variants(**variants)
        grid, classes = options.rope_grid, options.adaln_classes
        check_memory(block_size**2, block_size=block_size)  # of the mask
        check_memory(2 * vocab_size * n_embd, vocab_size=vocab_size, n_embd=n_embd)
        per_layer = (18 if classes else 12) * n_embd
        places = (2 if options.target_positions else 1) * block_size
        weights = n_embd * (per_layer * n_layer + 2 * vocab_size + places + classes)
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
            **vars(options),
        )
        check_variants(config)
        self.block_size = block_size
        self.gradient_checkpointing = gradient_checkpointing
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        positions = config.positions if grid is None else rope_prefix(config.whole, grid)
        self.pos_emb = nn.Parameter(torch.zeros(1, positions, n_embd))
        targets = torch.zeros(1, config.whole, n_embd) if config.target_positions else None
        self.target_emb = None if targets is None else nn.Parameter(targets)
        self.drop = nn.Dropout(embd_pdrop)
        mask = attention_mask(block_size, config.see_all)
        self.blocks = nn.Sequential(*(Block(config, mask) for _ in range(n_layer)))
        self.ln_f = make_norm(options.norm, n_embd, affine=not classes)
        self.head = Linear(n_embd, vocab_size, bias=False)
        self.class_emb = ClassEmbedding(classes + 1, n_embd) if classes else None
        self.modulation = nn.Linear(n_embd, 2 * n_embd) if classes else None  # of ln_f
        self.apply(self._init_weights)
        if self.target_emb is not None:
            # Beside positions of zeros, zeros are a saddle point: no query would look for a place.
            nn.init.normal_(self.target_emb, std=0.02)
        for name, parameter in self.named_parameters():
            if "modulation." in name:  # at first every block passes on its input ("Zero")
                nn.init.zeros_(parameter)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_block_size(self) -> int:
        """The longest sequence that fits."""
        length: int = self.config.block_size
        return length

    def hidden(
        self, idx: Tensor, embeddings: Tensor | None = None, path: Tensor | None = None
    ) -> Tensor:
        """What the head turns into logits: (B, E + T, C), for `idx` (B, T) after `embeddings`.

        `path` is that of `forward`.
        """
        x = self._embed(idx, embeddings)  # (B, E + T, C)
        length, block_size = x.shape[1], self.config.block_size
        if length > block_size:
            raise UserError(
                f"a sequence of {length} tokens is longer than the transformer's block_size of "
                f"{block_size}: the image or its condition has more tokens than it was built for"
            )
        x = self.drop(x + self._placed(length, path))
        rotation = self.rotations(slice(length) if path is None else path[:, :-1])
        classes = None if self.class_emb is None else self.class_emb(idx[:, 0])  # (B, C)
        extras = {"allowed": self._allowed(length), "rotation": rotation, "classes": classes}
        for block in self.blocks:
            x = self._run(block, x, extras)
        normed: Tensor = self.ln_f(x)
        if self.modulation is None:
            return normed
        return modulate(normed, *self.modulation(classes)[:, None].chunk(2, dim=-1))

    def _embed(self, idx: Tensor, embeddings: Tensor | None) -> Tensor:
        """(B, E + T, C); where the first token acts otherwise, it is 0 here."""
        x: Tensor = self.tok_emb(idx)
        if self.class_emb is not None:
            if embeddings is not None:
                raise UserError(
                    "GPT: adaln_classes is for sequences that begin with a class, and not with "
                    "embeddings"
                )
            x = torch.cat((torch.zeros_like(x[:, :1]), x[:, 1:]), dim=1)
        return x if embeddings is None else torch.cat((embeddings, x), dim=1)

    def _placed(self, length: int, path: Tensor | None) -> Tensor:
        """What positions add to tokens: (1, length, C) for the whole batch, or of each path."""
        positions, targets = self.positions(), self.target_emb
        if path is None:
            read = positions[:, :length]
            return read if targets is None else read + targets[:, 1 : length + 1]
        if targets is None:
            raise UserError("a GPT reads codes in other orders than by rows with target_positions")
        return F.embedding(path[:, :-1], positions[0]) + F.embedding(path[:, 1:], targets[0])

    def positions(self) -> Tensor:
        """Learned vectors of all positions (1, P, C): 0 where they turn queries and keys."""
        if self.config.rope_grid is None:
            return self.pos_emb
        return F.pad(self.pos_emb, (0, 0, 0, self.config.positions - self.pos_emb.shape[1]))

    def rotations(self, places: slice | Tensor = slice(None)) -> Tensor | None:
        """`variants.rotations` of some positions; None where none turns. It is computed in every
        pass, as a buffer would lose digits in `.half()`.

        Of each sequence's own positions (B, T) they are (2, B, 1, T, hs / 2), for all heads.
        """
        config = self.config
        if config.rope_grid is None:
            return None
        size, device = config.n_embd // config.n_head, self.pos_emb.device
        turned = rotations(config.rope_grid, config.whole, size, device, config.rope_condition)
        if isinstance(places, Tensor):
            return turned[:, places][:, :, None]
        return turned[:, places]

    def _allowed(self, length: int) -> Tensor | None:
        """Which positions see which, (1, 1, length, length); None for causal attention."""
        if not self.config.see_all:  # torch has kernels for causal attention that read no mask
            return None
        return allowed_positions(length, self.config.see_all, device=self.pos_emb.device)

    def _run(self, block: nn.Module, x: Tensor, extras: Mapping[str, Any]) -> Tensor:
        # A block of a user's takes the published arguments.
        named = extras if type(block).forward is Block.forward else {}
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False, **named)
        else:
            x = block(x, **named)
        return x

    def forward(
        self,
        idx: Tensor,
        embeddings: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        start: int = 0,
        path: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, E + T, V) of the next token at every position, and the cross-entropy.

        With `attention: full` they are of the position itself.

        Args:
            idx: int64 (B, T).
            embeddings: (B, E, C), put before the tokens' embeddings.
            targets: int64 (B, E + T); without them the loss, in nats per token, is None.
            start: of positions from here on alone, which saves the head's work at the others.
            path: int64 (B, T + 1), the position of each token and of the one that the last is to
                predict, see `orders`; for `target_positions`. Row by row without.
        """
        hidden = self.hidden(idx, embeddings, path)[:, start:]
        logits = self.head(hidden)  # (B, E + T - start, C) -> (B, E + T - start, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets[:, start:].flatten())

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
        if option := self.config.adaln_classes:
            raise UserError(
                f"GPT.forward_with_past: adaln_classes is {option}, and tokens after others do not "
                "know their class; use decoding.CachedDecoder"
            )
        check_causal(self.config)
        if self.target_emb is not None:
            raise UserError(
                "GPT.forward_with_past reads by rows; with target_positions, use "
                "decoding.CachedDecoder"
            )
        x = self._embed(idx, embeddings)
        if past is not None and not isinstance(past, Tensor):
            past = torch.cat(tuple(past), dim=-2)
        start = 0 if past is None else past.shape[-2]
        if past_length not in (None, start):
            raise UserError(f"past_length is {past_length}, but `past` has {start} tokens")
        end = start + x.shape[1]
        x = self.drop(x + self.positions()[:, start:end])
        rotation = self.rotations(slice(start, end))
        allowed = allowed_positions(end, self.config.see_all, start=start, device=x.device)
        extras = {"allowed": allowed, "rotation": rotation}
        presents = []
        for number, block in enumerate(self.blocks):
            before = None if past is None else past[number]
            named = extras if type(block).forward is Block.forward else {}
            x, present = block(x, layer_past=before, return_present=True, **named)
            presents.append(present)
        logits = self.head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss, torch.stack(presents)

    def parameter_groups(self, weight_decay: float = 0.01) -> list[dict[str, Any]]:
        """See the function `parameter_groups`."""
        return parameter_groups(self, weight_decay)


def parameter_groups(module: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Groups for AdamW: `weight_decay` on the weights of Linear layers, none on the rest."""
    decayed = {
        f"{name}.weight".lstrip(".")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    parameters = sorted(module.named_parameters())
    return [
        {"params": [p for n, p in parameters if n in decayed], "weight_decay": weight_decay},
        {"params": [p for n, p in parameters if n not in decayed], "weight_decay": 0.0},
    ]
