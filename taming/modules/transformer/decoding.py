"""Fast autoregressive generation from a GPT: cached decoding, and draws from filtered logits.

`CachedDecoder` gives the logits that `GPT.forward` would give, without computing any position
twice; `filter_logits` and `draw` turn logits into tokens. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from taming.errors import UserError

if TYPE_CHECKING:
    from taming.modules.transformer.mingpt import GPT, Block


@dataclass(frozen=True)
class _Layer:
    """A block's weights in the decoder's precision, the three input projections as one matrix."""

    heads: int
    ln1: tuple[Tensor, Tensor]
    ln2: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]  # (3C, C), (3C,)
    proj: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype) -> _Layer:
        attn, mlp = block.attn, block.mlp

        def pair(*parts: torch.nn.Module) -> tuple[Tensor, Tensor]:
            weights = [part.get_parameter("weight").detach().to(dtype) for part in parts]
            biases = [part.get_parameter("bias").detach().to(dtype) for part in parts]
            if len(parts) == 1:
                return weights[0], biases[0]
            return torch.cat(weights), torch.cat(biases)

        return cls(
            heads=attn.n_head,
            ln1=pair(block.ln1),
            ln2=pair(block.ln2),
            qkv=pair(attn.query, attn.key, attn.value),
            proj=pair(attn.proj),
            up=pair(mlp[0]),
            down=pair(mlp[2]),
        )

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, nh, T, hs) of `x` (B, T, C)."""
        normed = F.layer_norm(x, x.shape[-1:], *self.ln1)
        qkv = F.linear(normed, *self.qkv).view(*x.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x` (B, T, C) after the block, given what its heads gathered (B, nh, T, hs)."""
        attended = attended.transpose(1, 2).reshape(x.shape)
        x = F.linear(attended, *self.proj).add_(x)
        normed = F.layer_norm(x, x.shape[-1:], *self.ln2)
        return F.linear(F.gelu(F.linear(normed, *self.up)), *self.down).add_(x)


class CachedDecoder:
    """Next-token logits of a GPT, one position at a time, keys and values kept in a fixed cache.

    A decoder serves any number of batches one after another: `prefill` starts afresh. Weights are
    taken when it is made; dropout is off whatever the GPT's mode.

    Args:
        gpt: the network; the decoder works where it is.
        batch_size: the largest batch.
        max_length: the longest sequence that will be fed; the last token drawn need not be.
        dtype: precision of weights, cache and arithmetic (the GPT's own by default).
        static: every step has the same shapes and reads its position from the device, as CUDA
            graphs need; otherwise a step reads the filled part of the cache alone.

    Raises:
        UserError: if `max_length` is beyond the GPT's `block_size`.
    """

    def __init__(
        self,
        gpt: GPT,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        static: bool = False,
    ) -> None:
        config = gpt.config
        if max_length > config.block_size:
            raise UserError(
                f"condition and image make a sequence of {max_length} tokens, but the "
                f"transformer's block_size is {config.block_size}; sample a smaller image"
            )
        dtype = dtype or gpt.pos_emb.dtype
        self.n_unmasked, self.max_length, self.static = config.n_unmasked, max_length, static
        self.length = 0
        self._tok_emb = gpt.tok_emb.weight.detach().to(dtype)  # (V, C)
        self._pos_emb = gpt.pos_emb[0, :max_length].detach().to(dtype)  # (T, C)
        self._layers = [_Layer.of(cast("Block", block), dtype) for block in gpt.blocks]
        self._ln_f = (gpt.ln_f.weight.detach().to(dtype), gpt.ln_f.bias.detach().to(dtype))
        self._head = gpt.head.weight.detach().to(dtype)  # (V, C)
        heads, size = config.n_head, config.n_embd // config.n_head
        cache = self._pos_emb.new_zeros(config.n_layer, 2, batch_size, heads, max_length, size)
        self._cache = [(keys, values) for keys, values in cache]
        self._position = torch.zeros(1, dtype=torch.int64, device=cache.device)
        self._columns = torch.arange(max_length, device=cache.device)

    @torch.inference_mode()
    def prefill(self, idx: Tensor) -> Tensor:
        """Forget everything, read the prompt `idx` (B, T); float32 logits (B, V) of its last token.

        `B` may be smaller than the decoder's batch size.
        """
        self.length = 0
        return self._advance(idx)

    @torch.inference_mode()
    def step(self, idx: Tensor) -> Tensor:
        """Read one more token of every sequence, `idx` (B,); float32 logits (B, V) of the next.

        Raises:
            UserError: while the sequence is inside the GPT's `n_unmasked` first positions, which
                see each other and so must come together, in the prompt.
        """
        if self.length < self.n_unmasked:
            raise UserError(
                f"the transformer's first {self.n_unmasked} positions (n_unmasked) see each other, "
                f"so the prompt must hold them all; it has {self.length}"
            )
        return self._static_step(idx) if self.static else self._advance(idx[:, None])

    def _advance(self, idx: Tensor) -> Tensor:
        start, stop = self.length, self.length + idx.shape[1]
        if stop > self.max_length:
            raise ValueError(f"{stop} tokens do not fit into a cache of {self.max_length}")
        x = F.embedding(idx, self._tok_emb) + self._pos_emb[start:stop]
        allowed = self._allowed(start, stop)
        logits = self._run(
            x, slice(start, stop), stop, allowed, causal=start == 0 and allowed is None
        )
        self.length = stop
        self._position.fill_(stop)
        return logits

    def _static_step(self, idx: Tensor) -> Tensor:
        x = F.embedding(idx[:, None], self._tok_emb) + self._pos_emb[self._position]
        allowed = (self._columns <= self._position)[None, None, None]  # (1, 1, 1, T)
        logits = self._run(x, self._position, self.max_length, allowed)
        self.length += 1
        self._position += 1
        return logits

    def _allowed(self, start: int, stop: int) -> Tensor | None:
        """Bool (T, start + T), or None where causal attention or all of it is meant."""
        if not self.n_unmasked and not start or stop - start == 1:
            return None
        rows, columns = self._columns[start:stop, None], self._columns[:stop]
        return (columns <= rows) | ((columns < self.n_unmasked) & (rows < self.n_unmasked))

    def _run(
        self,
        x: Tensor,
        write: slice | Tensor,
        seen: int,
        allowed: Tensor | None,
        causal: bool = False,
    ) -> Tensor:
        """Logits after the last of `x` (B, T, C): keys and values go to the positions `write` of
        the cache, whose first `seen` positions are attended to where `allowed`."""
        batch = len(x)
        for layer, (keys, values) in zip(self._layers, self._cache, strict=True):
            q, k, v = layer.split(x)
            keys[:batch, :, write] = k
            values[:batch, :, write] = v
            k, v = keys[:batch, :, :seen], values[:batch, :, :seen]
            y = F.scaled_dot_product_attention(q, k, v, allowed, is_causal=causal)
            x = layer.finish(x, y)
        last = F.layer_norm(x[:, -1], x.shape[-1:], *self._ln_f)
        return F.linear(last, self._head).float()


def generate(
    decoder: CachedDecoder,
    prompt: Tensor,
    steps: int,
    pick: Callable[[Tensor, int], Tensor],
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Continue `prompt` (B, T) by `steps` tokens: int64 (B, steps).

    `pick(logits, n)` chooses the n-th token (B,) from logits (B, V); `callback(n)` follows it.
    """
    tokens = prompt.new_empty(len(prompt), steps)
    logits = decoder.prefill(prompt)
    for n in range(steps):
        tokens[:, n] = pick(logits, n)
        if callback is not None:
            callback(n)
        if n + 1 < steps:
            logits = decoder.step(tokens[:, n])
    return tokens


def one_pass_logits(gpt: GPT, condition: Tensor, steps: int) -> Tensor:
    """Logits (B, steps, V) of all image positions at once, from the condition (B, T) alone.

    For models trained with `pkeep <= 0`: their image inputs were noise, so that any will do; here
    the condition again.
    """
    length = condition.shape[1]
    idx = condition.repeat(1, 2 + steps // length)[:, : length + steps - 1]
    return gpt.head(gpt.hidden(idx)[:, length - 1 :])


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Scale `logits` (..., V) by 1/temperature, then drop (-inf) all but the likely tokens.

    Args:
        temperature: above 0.
        top_k: keep the k likeliest; None, or more than there are, is no limit.
        top_p: of these, keep the likeliest whose probabilities sum to just above p ("nucleus",
            arXiv 1904.09751); None or 1 is no limit.
    """
    logits = logits / temperature
    vocabulary = logits.shape[-1]
    k = min(top_k or vocabulary, vocabulary)
    p = 1.0 if top_p is None else top_p
    if k == vocabulary and p >= 1:
        return logits
    likeliest = logits.topk(k).values  # (..., k), descending
    if p >= 1:
        return logits.masked_fill(logits < likeliest[..., -1:], -torch.inf)
    total = likeliest.softmax(-1).cumsum(-1)
    last_kept = (total[..., :-1] <= p).sum(-1, keepdim=True)
    return logits.masked_fill(logits < likeliest.gather(-1, last_kept), -torch.inf)


def draw(logits: Tensor, uniform: Tensor | None = None) -> Tensor:
    """One token (B,) of `logits` (B, V): the likeliest, or drawn by the inverse CDF of softmax.

    `uniform` (B,) are numbers in [0, 1): a token depends on its own row and number alone.
    """
    if uniform is None:
        return logits.argmax(-1)
    probabilities = logits.softmax(-1)
    # A parallel sum may rise by a rounding error where the probability is 0: never draw there.
    cdf = probabilities.cumsum(-1).masked_fill_(probabilities == 0, 0)
    target = uniform * cdf.amax(-1)
    return (cdf > target[:, None]).int().argmax(-1)
