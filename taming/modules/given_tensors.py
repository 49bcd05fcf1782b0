"""Images and indices that first stages are given from Python, before anything is computed.

Types and shapes alone are compared, which waits for no device; and on a CPU the range of indices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from taming.errors import UserError
from taming.user_code import kind_of


def check_images(x: Any, channels: int | None, side: int = 1) -> None:
    """Refuse what is no batch of images [B, C, H, W], of sides from `side` pixels on.

    Of stages whose channels are not known (None) they are not compared.

    Raises:
        UserError: with what to do about the mistakes that are made most.
    """
    if torch.compiler.is_compiling():
        return
    sides = f"[B, {'C' if channels is None else channels}, H, W]"
    expected = f"images are a tensor {sides} of floats in [-1, 1]"
    if not isinstance(x, Tensor):
        raise UserError(f"{expected}, not {kind_of(x)}: torch.from_numpy(x) makes one of an array")
    own = x.dim() == 4 and channels in (None, x.shape[1])
    if x.dim() == 3:
        advice = ": x[None] is a batch of one image"
    elif x.dim() == 4 and not own and channels == x.shape[3]:
        advice = ": x.permute(0, 3, 1, 2) puts the channels first"
    elif own and not x.is_floating_point():
        advice = ": of bytes, x / 127.5 - 1 is in [-1, 1]"
    elif own and len(x) > 0 and min(x.shape[2:]) >= side:
        return
    else:
        advice = "" if side == 1 else f", with H and W from {side} on"
    raise UserError(f"{expected}, not {kind_of(x)}{advice}")


def check_indices(indices: Any, count: int, shape: str = "[B, h, w]") -> None:
    """Refuse what are no indices of `count` codes, of at least one image.

    `shape` is for the sentence.

    Raises:
        UserError: of the range, only on a CPU: a GPU would be waited for.
    """
    if torch.compiler.is_compiling():
        return
    expected = f"indices are a tensor {shape} of integers from 0 to {count - 1}"
    if not isinstance(indices, Tensor):
        raise UserError(f"{expected}, not {kind_of(indices)}")
    if indices.dtype not in (torch.int64, torch.int32) or not indices.numel():
        raise UserError(f"{expected}, not {kind_of(indices)}")
    if indices.device.type == "cpu":
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= count:
            raise UserError(f"{expected}; these are from {low} to {high}")


def check_sequence(tokens: Any, name: str, count: int) -> None:
    """Refuse (`UserError`) what is no batch of sequences [B, n] of `count` tokens; n may be 0."""
    if isinstance(tokens, Tensor) and tokens.dim() == 2 and tokens.dtype == torch.int64:
        if tokens.device.type != "cpu" or not tokens.numel():
            return
        low, high = (int(value) for value in tokens.aminmax())
        if low >= 0 and high < count:
            return
        found = f"; these are from {low} to {high}"
    else:
        found = f", not {kind_of(tokens)}"
    raise UserError(f"{name}: a tensor [B, n] of int64 from 0 to {count - 1} is expected{found}")
