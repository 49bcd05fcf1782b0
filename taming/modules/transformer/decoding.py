"""Fast autoregressive generation from a GPT: cached decoding.

`CachedDecoder` gives the logits that `GPT.forward` would give, without computing any position
twice; `token_choice` turns logits into tokens. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from taming.errors import UserError
from taming.kernel_choice import TORCH
from taming.modules.gpu_kernels import is_real, runs_triton
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.segment import Segment
from taming.modules.transformer.variants import check_causal


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
        check_causal(config)
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
        # The positions that are read one after the other, of models that know others than by rows.
        rows = torch.arange(max_length + 1, device=device).repeat(batch_size, 1)
        self._path = rows if config.target_positions else None  # (B, max_length + 1)
        self._recorded: Callable[[], Tensor] | None = None
        self._attend = None if compiled else _attention_kernel(self._token, kernel)
        # What the classes of a batch change, in place, as graphs read it; nothing of most GPTs.
        self._modulations = self._weights.modulations(self._token)

    @torch.inference_mode()
    def prefill(self, idx: Tensor) -> Tensor:
        """Start afresh with the prompt `idx` (B, T); float32 logits (B, V) of its last token."""
        self.begin(idx)
        return self._advance(idx)

    @torch.inference_mode()
    def begin(self, idx: Tensor, path: Tensor | None = None) -> None:
        """Start afresh with sequences (B, T), which are read later.

        `path` int64 (B, P) are the positions of their tokens and of those after them, of models
        with `target_positions`, which can have another order than by rows.
        """
        self.length = 0
        if self._modulations:
            new = self._weights.modulations(idx[:, 0])
            for kept, change in zip(self._modulations, new, strict=True):
                kept[: len(idx)] = change
        if self._path is not None:
            rows = torch.arange(self.max_length + 1, device=idx.device)
            self._path[: len(idx)] = rows if path is None else path
        elif path is not None:
            raise UserError("a GPT reads codes in other orders than by rows with target_positions")

    @torch.inference_mode()
    def foresee(self, idx: Tensor, count: int) -> Tensor:
        """Read further tokens `idx` (B, T); float32 logits (B, count, V) of the next positions of
        the path, each as if it was the one that the last token is to predict.

        The last token is read `count` times, with each of the positions, and the copies do not see
        each other: so each has the model's distribution given all tokens so far. The cache keeps
        the first, as the path goes on from there.
        """
        if self._path is None:
            raise UserError("a GPT tells of several positions at once with target_positions")
        logits = self._advance(idx, count)  # (B * count, V)
        return logits.view(len(idx), count, -1)

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

    def _advance(self, idx: Tensor, count: int = 1) -> Tensor:
        start, stop = self.length, self.length + idx.shape[1]
        if (end := stop + count - 1) > self.max_length:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.max_length}")
        cache = self._cache[:, :, : len(idx)]
        if count == 1:
            segment = segment_at(idx, start, self._columns, self.n_unmasked, cache)
        else:
            segment = forked_segment(idx, start, count, self._columns, cache)
        if self._path is not None:
            segment.path = path_read(self._path[: len(idx)], start, stop, count)
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
            kernel=self._attend,
        )
        if self._path is not None:
            read = self._path.index_select(1, self._position)
            segment.path = read, self._path.index_select(1, self._position + 1)  # (B, 1) each
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


def _attention_kernel(token: Tensor, kernel: str | None) -> Any:
    """What `Segment.kernel` is where the tokens are, if there is one."""
    if not is_real(token) or not runs_triton(token.device, kernel):
        return None
    from taming.modules.triton_kernels import attend_to_cache

    return attend_to_cache


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


def forked_segment(
    tokens: Tensor, start: int, count: int, columns: Tensor, cache: Tensor | None = None
) -> Segment:
    """As `segment_at`, with the last of `tokens` (B, T) `count` times, of which none sees another.

    For two tokens from position 2 on, the last of them three times:

        1 1 1 0 0 0    position 2 sees 0, 1 and itself
        1 1 1 1 0 0    position 3
        1 1 1 0 1 0    again
        1 1 1 0 0 1    and again
    """
    last, end = start + tokens.shape[1] - 1, start + tokens.shape[1] + count - 1
    rows, seen = columns[start:end, None], columns[:end]
    allowed = (seen == rows) | (seen < rows.clamp(max=last))  # (T + count - 1, end)
    tokens = torch.cat((tokens, tokens[:, -1:].expand(-1, count - 1)), dim=1)
    return Segment(tokens, slice(start, end), end, allowed, cache=cache, answers=count)


def path_read(path: Tensor, start: int, stop: int, count: int) -> tuple[Tensor, Tensor]:
    """Of a `path` (B, P), the positions from `start` to `stop`, and those that they predict; the
    last predicts `count` of them, as `forked_segment` reads it."""
    read = torch.cat((path[:, start:stop], path[:, stop - 1 : stop].expand(-1, count - 1)), dim=1)
    return read, path[:, start + 1 : stop + count]


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
