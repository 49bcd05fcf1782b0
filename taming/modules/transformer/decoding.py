"""Fast autoregressive generation from a GPT: cached decoding, and tokens from filtered logits.

`CachedDecoder` gives the logits that `GPT.forward` would give, without computing any position
twice; `filter_logits` and `sample_token` turn logits into tokens. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from taming.errors import UserError
from taming.kernel_choice import TORCH
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.segment import Segment


class Decoder(Protocol):
    """What gives next-token logits, one position at a time."""

    def prefill(self, idx: Tensor, /) -> Tensor:
        """Start afresh with the prompt `idx` (B, T); float32 logits (B, V) of its last token."""

    def extend(self, idx: Tensor, /) -> Tensor:
        """Read further tokens `idx` (B, T), T >= 1; float32 logits (B, V) after the last."""


class CachedDecoder:
    """Next-token logits of a GPT, one position at a time, keys and values kept in a fixed cache.

    A decoder serves any number of batches one after another: `prefill` starts afresh. Dropout is
    off whatever the GPT's mode. Weights are the GPT's own (see `Layer.of`) if it is not trained.

    Args:
        batch_size: the largest batch.
        max_length: the longest sequence that will be fed, at most the GPT's `block_size`; the last
            token sampled need not be.
        dtype: of weights, cache and arithmetic; for another than the GPT's, weights are copied.
        static: every step has the same shapes and reads its position from the device, and on CUDA
            it is recorded as a graph (the default there); otherwise a step reads the filled part of
            the cache alone.
        compiled: steps are static, and go through `torch.compile` first, which makes kernels of its
            own from weights as they are.
        kernel: of the linear layers, see `Weights`.
    """

    def __init__(
        self,
        gpt: GPT,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        static: bool | None = None,
        compiled: bool = False,
        kernel: str | None = None,
    ) -> None:
        config = gpt.config
        check_length(gpt.get_block_size(), max_length)
        self.n_unmasked, self.max_length = config.n_unmasked, max_length
        self.length = 0
        self._weights = Weights(gpt, dtype, batch_size, TORCH if compiled else kernel)
        device = self._weights.device
        self.static = compiled or (device.type == "cuda" if static is None else static)
        self._compiled = compiled
        self._cache = self._weights.new_cache(batch_size, max_length)
        self._token = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._columns = torch.arange(max_length, device=device)
        self._recorded: Callable[[], Tensor] | None = None
        # What the classes of a batch change, in place, as graphs read it; nothing of most GPTs.
        self._modulations = self._weights.modulations(self._token)

    @torch.inference_mode()
    def prefill(self, idx: Tensor) -> Tensor:
        """Start afresh with the prompt `idx` (B, T); float32 logits (B, V) of its last token."""
        self.length = 0
        if self._modulations:
            new = self._weights.modulations(idx[:, 0])
            for kept, change in zip(self._modulations, new, strict=True):
                kept[: len(idx)] = change
        return self._advance(idx)

    @torch.inference_mode()
    def extend(self, idx: Tensor) -> Tensor:
        """Read further tokens `idx` (B, T), T >= 1; float32 logits (B, V) after the last of them.

        Static steps return the same tensor again and again: use it before the next. The GPT's first
        `n_unmasked` positions see each other, so that they must come together, in the prompt.
        """
        if self.length < self.n_unmasked:
            raise UserError(
                f"the transformer's first {self.n_unmasked} positions (n_unmasked) see each other, "
                f"so the prompt must hold them all; it has {self.length}"
            )
        if self._modulations and not self.length:
            raise UserError("the first token is a class (adaln_classes): give it as the prompt")
        if self.static and idx.shape[1] == 1:
            return self._static_step(idx[:, 0])
        return self._advance(idx)

    def _advance(self, idx: Tensor) -> Tensor:
        start, stop = self.length, self.length + idx.shape[1]
        if stop > self.max_length:
            raise ValueError(f"{stop} tokens do not fit into a cache of {self.max_length}")
        cache = self._cache[:, :, : len(idx)]
        segment = segment_at(idx, start, self._columns, self.n_unmasked, cache)
        if self._modulations:
            segment.modulations = [change[: len(idx)] for change in self._modulations]
        self.length = stop
        self._position.fill_(stop)
        return self._weights.logits([segment])

    def _static_step(self, idx: Tensor) -> Tensor:
        if self.length >= self.max_length:
            raise ValueError(f"the cache of {self.max_length} tokens is full")
        # A recorded graph reads from fixed addresses: the tokens are copied to where it looks. Rows
        # beyond a smaller batch compute something that nobody reads.
        self._token[: len(idx)] = idx
        if self._recorded is None:
            self._recorded = self._record()
        self.length += 1
        return self._recorded()[: len(idx)]

    def _whole_step(self) -> Tensor:
        """A step of all rows, from `_token` and `_position`, which it advances.

        The position is a tensor on the device, so that a graph recorded once serves every step: at
        position 3 of 8 the new keys and values go to column 3, and columns 0 to 3 are attended to.
        Columns beyond hold leftovers of an earlier batch, or zeros, which are masked.
        """
        allowed = (self._columns <= self._position)[None, None, None]  # (1, 1, 1, max_length)
        segment = Segment(
            self._token[:, None],
            self._position,
            self.max_length,
            allowed,
            cache=self._cache,
            modulations=self._modulations,
        )
        logits = self._weights.logits([segment])
        self._position += 1
        return logits

    def _record(self) -> Callable[[], Tensor]:
        step = self._whole_step
        if self._compiled:
            step = torch.compile(step, dynamic=False)
        if self._token.device.type != "cuda":
            return step
        # Streams are the current device's: those of another than the model's would record nothing.
        with torch.cuda.device(self._token.device):
            return self._as_graph(step)

    def _as_graph(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        position, side = self._position.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Libraries choose kernels and allocate workspaces in their first runs, which must not
            # happen in a recording. Each run writes the same keys to the same column.
            for _ in range(3):
                step()
                self._position.copy_(position)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # By default torch keeps one stream for all recordings, on the device of the first. Other
        # threads may use CUDA meanwhile: a loader's that pins memory, NCCL's that watches.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def check_length(block_size: int, length: int) -> None:
    """Raise `UserError` if a sequence of `length` tokens is beyond a transformer's `block_size`."""
    if length > block_size:
        raise UserError(
            f"condition and image make a sequence of {length} tokens, but the transformer's "
            f"block_size is {block_size}; sample a smaller image"
        )


def segment_at(
    tokens: Tensor, start: int, columns: Tensor, n_unmasked: int = 0, cache: Tensor | None = None
) -> Segment:
    """`tokens` (B, T) from position `start` on; `columns` counts positions, on the device.

    A mask is made only if it is needed, as attention is faster without. For two tokens from
    position 2 on, it has a row for each and a column for each position so far; with n_unmasked 0:

        1 1 1 0    position 2 sees 0, 1 and itself
        1 1 1 1    position 3 sees all
    """
    stop = start + tokens.shape[1]
    write = slice(start, stop)
    if not n_unmasked and not start:  # the usual prompt: torch's own causal attention
        return Segment(tokens, write, stop, causal=True, cache=cache)
    if stop - start == 1:  # the latest token sees everything there is
        return Segment(tokens, write, stop, cache=cache)
    rows, seen = columns[start:stop, None], columns[:stop]  # (T, 1), (stop,)
    allowed = (seen <= rows) | ((seen < n_unmasked) & (rows < n_unmasked))  # (T, stop)
    return Segment(tokens, write, stop, allowed, cache=cache)


def generate(
    decoder: Decoder,
    prompt: Tensor,
    steps: int,
    pick: Callable[[Tensor, int], Tensor],
    on_token: Callable[[Tensor, int], None] | None = None,
    known: Tensor | None = None,
    copies: int = 1,
) -> Tensor:
    """Continue prompts by `steps` tokens: int64 (B, steps).

    Columns of `known` that are complete cost no step of their own: for a single prompt and `known`
    = [5, -1, -1, 7, -1], tokens 1, 2 and 4 are sampled, after prompt + [5], [t1] and [t2, 7].

    Args:
        prompt: (copies * B, T), as guidance reads each sample with its condition and without.
        pick: `pick(logits, n)` chooses the n-th tokens (B,) from logits (copies * B, V).
        on_token: called with the tokens (B, steps) when the n-th ones are there, and with n.
        known: (B, steps) tokens that are fixed, -1 where one is to be sampled.
    """
    empty = prompt.new_zeros(len(prompt) // copies, steps)
    tokens = empty if known is None else known.clamp(min=0)  # (B, steps), filled from the left
    complete = [False] * steps if known is None else (known >= 0).all(0).tolist()
    fed: int | None = None  # how many of `tokens` the decoder has read; None before the prompt
    for n in range(steps):
        if not complete[n]:
            new = tokens[:, fed or 0 : n].repeat(copies, 1)
            if fed is None:
                logits = decoder.prefill(torch.cat((prompt, new), dim=1))
            else:
                logits = decoder.extend(new)
            tokens[:, n], fed = known_or(pick(logits, n), known, n), n
        if on_token is not None:
            on_token(tokens, n)
    return tokens


def known_or(sampled: Tensor, known: Tensor | None, n: int) -> Tensor:
    """The n-th tokens (B,): those of `known` (B, steps) where they are not -1, else `sampled`."""
    return sampled if known is None else torch.where(known[:, n] >= 0, known[:, n], sampled)


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | Tensor | None = None,
    top_p: float | None = None,
    most_k: int | None = None,
) -> Tensor:
    """Scale `logits` (..., V) by 1/temperature, then drop (-inf) all but the likely tokens.

    In float32 at least, as is `sample_token`: a sum of probabilities in bfloat16 stops at a part of
    1, so that tokens behind it would never be sampled.

    Args:
        temperature: above 0.
        top_k: keep the k likeliest; None, or more than there are, is no limit. int64 (...) on the
            logits' device: each row's own k.
        top_p: of these, keep the likeliest whose probabilities sum to just above p ("nucleus",
            arXiv 1904.09751); None or 1 is no limit.
        most_k: no row's k is larger, as nothing may wait for the device to tell; the vocabulary if
            None, which takes longer.
    """
    logits = _precise(logits) / temperature
    vocabulary = logits.shape[-1]
    own_k = top_k if isinstance(top_k, Tensor) else None
    k = min((most_k if isinstance(top_k, Tensor) else top_k) or vocabulary, vocabulary)
    p = 1.0 if top_p is None else top_p
    if own_k is None and k == vocabulary and p >= 1:
        return logits
    likeliest = logits.topk(k).values  # (..., k), descending
    last_place = None if own_k is None else own_k.clamp(max=k)[..., None] - 1  # (..., 1)
    if p >= 1:
        last = likeliest[..., -1:] if last_place is None else likeliest.gather(-1, last_place)
        return logits.masked_fill(logits < last, -torch.inf)
    if last_place is not None:
        places = torch.arange(k, device=logits.device)
        likeliest = likeliest.masked_fill(places > last_place, -torch.inf)
    # Probabilities .5 .3 .15 .05 sum to .5 .8 .95 1; for p = .6, one of the first three sums is at
    # most p, so that the token at place 1 is the last one kept: .5 and .3, together just above p.
    total = running_sum(likeliest.softmax(-1))  # (..., k)
    last_kept = (total[..., :-1] <= p).sum(-1, keepdim=True)  # (..., 1), a place among k
    if last_place is not None:
        last_kept = last_kept.minimum(last_place)  # as rounded sums may end below p
    return logits.masked_fill(logits < likeliest.gather(-1, last_kept), -torch.inf)


def sample_token(logits: Tensor, uniform: Tensor | None = None) -> Tensor:
    """One token (B,) of `logits` (B, V): the likeliest, or sampled by the inverse CDF of softmax.

    `uniform` (B,) are numbers in [0, 1): a token depends on its own row and number alone. With
    probabilities .2 .5 .3, the CDF is .2 .7 1, and the number .6 gives token 1.
    """
    if uniform is None:
        return logits.argmax(-1)
    probabilities = _precise(logits).softmax(-1)
    # A parallel sum may rise by a rounding error where the probability is 0: never sample there.
    cdf = running_sum(probabilities).masked_fill_(probabilities == 0, 0)  # (B, V)
    target = uniform * cdf.amax(-1)  # (B,), as rounded sums end near 1, not at it
    return (cdf > target[:, None]).int().argmax(-1)  # the first of the columns above the target


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def running_sum(shares: Tensor) -> Tensor:
    """Sums of `shares` (..., n), in [0, 1], up to each place.

    CUDA adds floats in an order that is not always the same, or refuses to where PyTorch is told to
    be deterministic. There, multiples of 2^-52 are added, as integers, which have one sum.
    """
    if shares.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _exact_running_sum(shares)
    return shares.cumsum(-1)


def _exact_running_sum(shares: Tensor) -> Tensor:
    return ((shares.double() * 2**52).long().cumsum(-1) / 2**52).to(shares)
