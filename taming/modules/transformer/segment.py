"""New tokens of sequences, and the keys and values of those before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F


@dataclass
class Segment:
    """New tokens of equally long sequences: where they stand and what they see.

    For example, a prompt of 3 tokens and then the next two, one at a time:

        tokens (B, 3)   write slice(0, 3)   seen 3   causal
        tokens (B, 1)   write slice(3, 4)   seen 4
        tokens (B, 1)   write slice(4, 5)   seen 5

    A static step has the same shapes whatever its position, as a recorded CUDA graph needs: it
    sees all positions that the cache has room for, say 8, less those that `allowed` masks, and
    finds its own position in a tensor on the device:

        tokens (B, 1)   write tensor([3])   seen 8   allowed 1 1 1 1 0 0 0 0
        tokens (B, 1)   write tensor([4])   seen 8   allowed 1 1 1 1 1 0 0 0

    `cache` has keys and values (layers, 2, B, heads, >= seen, size) of the positions before, to
    which those of the new ones are added; None if there are none, and none are kept.

    Of tokens in other orders than by rows, `path` has the position of each in the image and the one
    that it is to predict; columns of the cache are in the order in which they are read.

    `modulations` are those of `Weights.modulations` for the sequences' classes; without, the class
    is the first of the tokens, which are a sequence's first.
    """

    tokens: Tensor  # int64 (B, T)
    write: slice | Tensor  # their positions: a slice, or an index tensor (T,)
    seen: int  # the number of positions that are looked at, with the new ones
    allowed: Tensor | None = None  # bool, broadcastable to (B, heads, T, seen)
    causal: bool = False  # the new tokens are the first: each sees itself and those before it
    cache: Tensor | None = None
    modulations: Sequence[Tensor] = ()
    path: tuple[Tensor, Tensor] | None = None  # int64 (B, T) each
    # What attends from one token to the filled part of the cache, and adds the token to it: from
    # `qkv`, the layer's cache and the position.
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    answers: int = 1  # of so many of each sequence's last tokens logits are wanted
    # Making a view costs as much as a small kernel, so those of all layers are made at once: keys,
    # then values (B, heads, seen, size) of each, and where the new ones go (2, B, heads, T, size).
    _seen: Sequence[Tensor] = field(init=False, default=())
    _room: Sequence[Tensor] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.cache is None:
            return
        self._seen = self.cache[..., : self.seen, :].flatten(0, 1).unbind()
        if isinstance(self.write, slice):
            self._room = self.cache[..., self.write, :].unbind()

    @property
    def starts(self) -> bool:
        """Whether the new tokens are the first of their sequences."""
        return isinstance(self.write, slice) and self.write.start == 0

    @property
    def next(self) -> slice | Tensor:
        """The positions after those of the new tokens."""
        if isinstance(self.write, slice):
            return slice(self.write.start + 1, self.write.stop + 1)
        return self.write + 1

    def attend(self, layer: int, heads: int, qkv: Tensor, last: bool) -> Tensor:
        """The heads' output (B * T, C) for the new tokens, from their `qkv` (B * T, 3C).

        If `last`, only for each sequence's last tokens: (B * answers, C).
        """
        if self.kernel is not None and self.cache is not None and isinstance(self.write, Tensor):
            return self.kernel(qkv, self.cache[layer], self.write)
        batch, length = self.tokens.shape
        # (B * T, 3C) -> (B, T, 3, heads, size) -> (3, B, heads, T, size), without a copy
        split = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind()  # (B, heads, T, size)
        if self.cache is not None:
            self._keep(layer, split[1:])
            # (B, heads, seen, size): the positions before and the new ones
            keys, values = self._seen[2 * layer], self._seen[2 * layer + 1]
        allowed = self.allowed
        if last and length > self.answers:  # the last layer: others' outputs would go nowhere
            queries = queries[:, :, -self.answers :]
            allowed = None if allowed is None else allowed[..., -self.answers :, :]
        # One query sees everything; with `is_causal` torch would align it to the first key.
        causal = self.causal and queries.shape[2] > 1
        y = F.scaled_dot_product_attention(queries, keys, values, allowed, is_causal=causal)
        return y.transpose(1, 2).reshape(-1, qkv.shape[1] // 3)  # (B, T, heads, size) -> (B * T, C)

    def _keep(self, layer: int, new: Tensor) -> None:
        """Add the `new` keys and values (2, B, heads, T, size) to the cache."""
        if isinstance(self.write, slice):
            self._room[layer].copy_(new)
        else:
            assert self.cache is not None
            self.cache[layer].index_copy_(3, self.write, new)
