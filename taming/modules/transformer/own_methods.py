"""Transformers with methods of their own, and which way samples are taken from a transformer.

`CachedDecoder` and the sliding window compute what `GPT.forward` does from a GPT's weights alone.
Of what a subclass overrides, of another's blocks and of modules that are no GPT they know nothing:
these are sampled through their own methods, which is slower.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.transformer.decoding import CachedDecoder, Decoder, check_length
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.plain import (
    block_size_of,
    device_of,
    is_plain,
    reads_past,
    vocabulary_of,
)
from taming.modules.transformer.segment import Segment
from taming.user_code import name_of, wrong_result

log = logging.getLogger(__name__)

_said: WeakSet[nn.Module] = WeakSet()  # the transformers of which the log says how they are sampled


# ---------------------------------------------------------------------- which way


def decoder_for(
    transformer: nn.Module,
    batch_size: int,
    max_length: int,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Decoder:
    """What samples a transformer's tokens one after the other; see `CachedDecoder` for arguments.

    Raises:
        UserError: for sequences beyond the block size, and where only a GPT can be `compiled`.
    """
    if is_plain(transformer):
        return CachedDecoder(transformer, batch_size, max_length, dtype, compiled=compiled)
    if compiled:
        raise UserError(
            f"{name_of(type(transformer))} is sampled through its own methods, which are not "
            "compiled; leave --compile out"
        )
    check_length(block_size_of(transformer), max_length)
    return OwnDecoder(OwnMethods(transformer, dtype))


def weights_for(
    transformer: nn.Module, dtype: torch.dtype | None = None, rows: int = 1
) -> Weights | OwnMethods:
    """What gives logits of whole sequences, for about `rows` of them."""
    return (
        Weights(transformer, dtype, rows)
        if is_plain(transformer)
        else OwnMethods(transformer, dtype)
    )


@torch.no_grad()
def whole_logits(transformer: nn.Module, idx: Tensor, start: int = 0) -> Tensor:
    """Logits (B, T - start, V) after the tokens `idx` (B, T) from `start` on."""
    if is_plain(transformer):
        logits: Tensor = transformer.head(transformer.hidden(idx)[:, start:])
        return logits
    return OwnMethods(transformer).read(idx)[:, start:]


def one_pass_logits(transformer: nn.Module, condition: Tensor, steps: int) -> Tensor:
    """Float32 logits (B, steps, V) of all image positions at once, from the condition (B, T) alone.

    For models trained with `pkeep <= 0`: their image inputs were noise, so that any will do; here
    the condition again. With condition [a, b] and 3 steps the input is [a, b, a, b], of which the
    last 3 positions predict the 3 tokens.
    """
    length = condition.shape[1]
    idx = condition.repeat(1, 2 + steps // length)[:, : length + steps - 1]  # (B, T + steps - 1)
    return whole_logits(transformer, idx, length - 1).float()


# ---------------------------------------------------------------------- through own methods


class OwnMethods:
    """Logits of a transformer through its own methods, in eval mode, in the place of `Weights`.

    That is `forward_with_past`, if the transformer has one that is not `GPT`'s, else `forward`.
    It is said, once of each transformer.

    Args:
        dtype: as for `Weights`; for another than the transformer's, it is copied.
    """

    n_unmasked = 0  # no keys and values are kept, so that it does not matter here

    def __init__(self, transformer: nn.Module, dtype: torch.dtype | None = None) -> None:
        _say_once(transformer)
        self.device = device_of(transformer)
        floats = (p.dtype for p in transformer.parameters() if p.is_floating_point())
        other = dtype is not None and dtype != next(floats, dtype)
        self.transformer = copy.deepcopy(transformer).to(dtype) if other else transformer
        self.reads_past = reads_past(transformer)

    def modulations(self, classes: Tensor) -> list[Tensor]:
        """None: the class is the first of the tokens, all of which are read."""
        return []

    def logits(self, segments: Sequence[Segment]) -> Tensor:
        """As `Weights.logits`, of segments that begin with their sequences."""
        return torch.cat([self.read(segment.tokens)[:, -1] for segment in segments])

    def read(self, idx: Tensor) -> Tensor:
        """Float32 logits (B, T, V) after all of the tokens (B, T)."""
        return (self.read_after((), idx)[0] if self.reads_past else self._forward(idx)).float()

    def _forward(self, idx: Tensor) -> Tensor:
        with _for_samples(self.transformer):
            return logits_of(self.transformer, idx.clone())

    def read_after(self, past: Sequence[Tensor], idx: Tensor) -> tuple[Tensor, Tensor]:
        """By `forward_with_past`: float32 logits (B, T, V), and keys and values for the next.

        `past` are those of all tokens before, as the calls have returned them.
        """
        length = sum(part.shape[-2] for part in past)
        named: dict[str, Any] = {"past": list(past), "past_length": length} if past else {}
        with _for_samples(self.transformer):
            result = self.transformer.forward_with_past(idx.clone(), **named)  # type: ignore[operator]
        size = vocabulary_of(self.transformer)
        match result:
            case (Tensor() as logits, _, Tensor() as present) if _fits(logits, idx, size):
                return logits.float(), present
        name = f"{name_of(type(self.transformer))}.forward_with_past"
        expected = f"(logits {[*idx.shape, size or 'vocab_size']}, loss or None, keys and values)"
        raise wrong_result(name, expected, result)


class OwnDecoder:
    """Decodes as `CachedDecoder` does, through a transformer's own methods.

    `forward_with_past` reads the prompt and then one token at a time, as the original calls it;
    `forward` reads the whole sequence again for each of them.
    """

    def __init__(self, methods: OwnMethods) -> None:
        self._methods = methods
        self._tokens = torch.zeros(0, 0, dtype=torch.int64)  # (B, T), all so far
        self._past: list[Tensor] = []

    def prefill(self, idx: Tensor) -> Tensor:
        """Start afresh with the prompt `idx` (B, T); float32 logits (B, V) of its last token."""
        self._tokens, self._past = idx[:, :0], []
        return self._read(idx)

    def extend(self, idx: Tensor) -> Tensor:
        """Read further tokens `idx` (B, T), T >= 1; float32 logits (B, V) after the last."""
        if not self._methods.reads_past:
            return self._read(idx)
        return [self._read(token) for token in idx.split(1, dim=1)][-1]

    def _read(self, idx: Tensor) -> Tensor:
        if self._methods.reads_past:
            logits, present = self._methods.read_after(self._past, idx)
            self._past.append(present)
        else:
            self._tokens = torch.cat((self._tokens, idx), dim=1)
            logits = self._methods.read(self._tokens)
        return logits[:, -1]


def logits_of(transformer: nn.Module, idx: Tensor, vocabulary: int | None = None) -> Tensor:
    """Logits (B, T, V) of what the `forward` of a transformer returns for tokens (B, T).

    Raises:
        UserError: if that is not (logits, loss or None).
    """
    size, result = vocabulary or vocabulary_of(transformer), transformer(idx)
    match result:
        case (Tensor() as logits, *_) if _fits(logits, idx, size):
            return logits
    expected = f"(logits {[*idx.shape, size or 'vocab_size']} of floats, loss or None)"
    raise wrong_result(f"{name_of(type(transformer))}.forward", expected, result)


def logits_from(
    transformer: nn.Module, idx: Tensor, start: int, vocabulary: int | None = None
) -> Tensor:
    """Those from position `start` on, (B, T - start, V); of a GPT, the head computes no others."""
    if type(transformer).forward is GPT.forward:  # classes of others may not know `start`
        logits: Tensor = transformer(idx, start=start)[0]
        return logits
    return logits_of(transformer, idx, vocabulary)[:, start:]


def _fits(logits: Tensor, idx: Tensor, size: int | None) -> bool:
    same = logits.dim() == 3 and logits.shape[:2] == idx.shape and logits.is_floating_point()
    return same and size in (None, logits.shape[2])


def _say_once(transformer: nn.Module) -> None:
    if transformer in _said:
        return
    _said.add(transformer)
    method = "forward_with_past" if reads_past(transformer) else "forward"
    log.warning(
        "%s is sampled through its own %s, which is slower than the decoder of GPTs",
        name_of(type(transformer)),
        method,
    )


@contextmanager
def _for_samples(transformer: nn.Module) -> Iterator[None]:
    """Without dropout or gradients. What a user's method keeps for later must not be a tensor of
    inference mode, which training cannot use."""
    trained = [part for part in transformer.modules() if part.training]
    transformer.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for part in trained:
            part.training = True
