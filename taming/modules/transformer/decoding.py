"""Fast autoregressive generation from a GPT: cached decoding, and tokens from filtered logits.

`CachedDecoder` gives the logits that `GPT.forward` would give, without computing any position
twice; `filter_logits` and `sample_token` turn logits into tokens. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Segment, Weights


class CachedDecoder:
    """Next-token logits of a GPT, one position at a time, keys and values kept in a fixed cache.

    A decoder serves any number of batches one after another: `prefill` starts afresh. Weights are
    taken when it is made; dropout is off whatever the GPT's mode. Where they need no gradients, the
    GPT's own are used (see `fused_in_place`), so that the memory is the GPT's and one cache.

    Args:
        gpt: the network; the decoder works where it is.
        batch_size: the largest batch.
        max_length: the longest sequence that will be fed; the last token drawn need not be.
        dtype: precision of weights, cache and arithmetic (the GPT's own by default; for another
            one the weights are copied).
        static: every step has the same shapes and reads its position from the device, and on CUDA
            it is recorded as a graph; otherwise a step reads the filled part of the cache alone.
            By default static on CUDA.
        compiled: steps are static, and go through `torch.compile` first.

    Raises:
        UserError: if `max_length` is beyond the GPT's `block_size`.
    """

    def __init__(
        self,
        gpt: GPT,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        static: bool | None = None,
        compiled: bool = False,
    ) -> None:
        config = gpt.config
        check_length(gpt, max_length)
        self.n_unmasked, self.max_length = config.n_unmasked, max_length
        self.length = 0
        self._weights = Weights(gpt, dtype)
        device = self._weights.device
        self.static = compiled or (device.type == "cuda" if static is None else static)
        self._compiled = compiled
        self._cache = self._weights.new_cache(batch_size, max_length)
        self._token = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._columns = torch.arange(max_length, device=device)
        self._recorded: Callable[[], Tensor] | None = None

    @torch.inference_mode()
    def prefill(self, idx: Tensor) -> Tensor:
        """Forget everything, read the prompt `idx` (B, T); float32 logits (B, V) of its last token.

        `B` may be smaller than the decoder's batch size.
        """
        self.length = 0
        return self._advance(idx)

    @torch.inference_mode()
    def extend(self, idx: Tensor) -> Tensor:
        """Read further tokens `idx` (B, T), T >= 1; float32 logits (B, V) after the last of them.

        Static steps return the same tensor again and again: use it before the next.

        Raises:
            UserError: while the sequence is inside the GPT's `n_unmasked` first positions, which
                see each other and so must come together, in the prompt.
        """
        if self.length < self.n_unmasked:
            raise UserError(
                f"the transformer's first {self.n_unmasked} positions (n_unmasked) see each other, "
                f"so the prompt must hold them all; it has {self.length}"
            )
        if self.static and idx.shape[1] == 1:
            return self._static_step(idx[:, 0])
        return self._advance(idx)

    def step(self, idx: Tensor) -> Tensor:
        """Read one more token of every sequence, `idx` (B,): `extend` by one."""
        return self.extend(idx[:, None])

    def _advance(self, idx: Tensor) -> Tensor:
        start, stop = self.length, self.length + idx.shape[1]
        if stop > self.max_length:
            raise ValueError(f"{stop} tokens do not fit into a cache of {self.max_length}")
        cache = self._cache[:, :, : len(idx)]
        segment = segment_at(idx, start, self._columns, self.n_unmasked, cache)
        self.length = stop
        self._position.fill_(stop)
        return self._weights.logits([segment])

    def _static_step(self, idx: Tensor) -> Tensor:
        if self.length >= self.max_length:
            raise ValueError(f"the cache of {self.max_length} tokens is full")
        self._token[: len(idx)] = idx
        if self._recorded is None:
            self._recorded = self._record()
        self.length += 1
        return self._recorded()[: len(idx)]

    def _whole_step(self) -> Tensor:
        """A step of all rows, from `_token` and `_position`, which it advances."""
        allowed = (self._columns <= self._position)[None, None, None]  # (1, 1, 1, T)
        segment = Segment(
            self._token[:, None], self._position, self.max_length, allowed, cache=self._cache
        )
        logits = self._weights.logits([segment])
        self._position += 1
        return logits

    def _record(self) -> Callable[[], Tensor]:
        step = (
            torch.compile(self._whole_step, dynamic=False) if self._compiled else self._whole_step
        )
        if self._token.device.type != "cuda":
            return step
        position = self._position.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # kernels are chosen and memory is found before the recording
                step()
                self._position.copy_(position)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def check_length(gpt: GPT, length: int) -> None:
    """Raise `UserError` where a sequence of `length` tokens is beyond the GPT's `block_size`."""
    if length > gpt.config.block_size:
        raise UserError(
            f"condition and image make a sequence of {length} tokens, but the transformer's "
            f"block_size is {gpt.config.block_size}; sample a smaller image"
        )


def segment_at(
    tokens: Tensor,
    start: int,
    columns: Tensor,
    n_unmasked: int = 0,
    cache: Tensor | None = None,
) -> Segment:
    """`tokens` (B, T) from position `start` on; `columns` counts positions, on the device."""
    stop = start + tokens.shape[1]
    write = slice(start, stop)
    if not n_unmasked and not start:
        return Segment(tokens, write, stop, causal=True, cache=cache)
    if stop - start == 1:
        return Segment(tokens, write, stop, cache=cache)
    rows, seen = columns[start:stop, None], columns[:stop]
    allowed = (seen <= rows) | ((seen < n_unmasked) & (rows < n_unmasked))  # (T, stop)
    return Segment(tokens, write, stop, allowed, cache=cache)


def generate(
    decoder: CachedDecoder,
    prompt: Tensor,
    steps: int,
    pick: Callable[[Tensor, int], Tensor],
    on_token: Callable[[Tensor, int], None] | None = None,
    known: Tensor | None = None,
    copies: int = 1,
) -> Tensor:
    """Continue prompts by `steps` tokens: int64 (B, steps).

    Args:
        prompt: (copies * B, T): several prompts may be continued by the same tokens.
        pick: `pick(logits, n)` chooses the n-th tokens (B,) from logits (copies * B, V).
        on_token: called with the tokens (B, steps) when the n-th ones are there, and with n.
        known: (B, steps) tokens that are given, -1 where there is none.
    """
    empty = prompt.new_zeros(len(prompt) // copies, steps)
    tokens = empty if known is None else known.clamp(min=0)
    complete = [False] * steps if known is None else (known >= 0).all(0).tolist()
    fed: int | None = None
    for n in range(steps):
        if not complete[n]:
            new = tokens[:, fed or 0 : n].repeat(copies, 1)
            if fed is None:
                logits = decoder.prefill(torch.cat((prompt, new), dim=1))
            else:
                logits = decoder.extend(new)
            tokens[:, n], fed = given_or(pick(logits, n), known, n), n
        if on_token is not None:
            on_token(tokens, n)
    return tokens


def given_or(drawn: Tensor, known: Tensor | None, n: int) -> Tensor:
    """The n-th tokens (B,): those of `known` (B, steps), where they are not -1, else `drawn`."""
    return drawn if known is None else torch.where(known[:, n] >= 0, known[:, n], drawn)


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


def sample_token(logits: Tensor, uniform: Tensor | None = None) -> Tensor:
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
