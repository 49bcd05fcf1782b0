"""What a model's `log_images` gives, as pictures that can be written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError
from taming.pictures import to_values
from taming.user_code import kind_of, wrong_result

log = logging.getLogger(__name__)

_CHANNELS = ((1, 3), (4,))  # those to look for first
_LARGEST = 10.0  # beyond this, values are no images in [-1, 1] that overshoot
_EXPECTED = "pictures by name, each a tensor or array [B, 1 or 3, H, W] in [-1, 1], or uint8"


def pictures_of(result: Any, name: str, count: int) -> dict[str, Tensor]:
    """The first `count` pictures of each kind, [B, 1, 3 or 4, H, W], as floats on the CPU.

    Arrays, lists of pictures, bytes, and channels that come last are taken as well.

    Args:
        name: of the method that gave the result.

    Raises:
        UserError: for anything else.
    """
    if not isinstance(result, Mapping):
        raise wrong_result(name, _EXPECTED, result)
    pictures = {}
    for key, value in result.items():
        images = _as_images(value)
        if images is None or not isinstance(key, str) or "\0" in key:
            raise UserError(f"{name} must return {_EXPECTED}; its {key!r} is {kind_of(value)}")
        if len(images):
            pictures[key] = _as_values(images[:count], f"'{key}' of {name}")
    return pictures


def _as_images(value: Any) -> Tensor | None:
    """[B, C, H, W] of anything that holds pictures; None of what does not."""
    try:
        images = torch.stack([*map(torch.as_tensor, value)]) if _is_list(value) else value
        images = torch.as_tensor(np.ascontiguousarray(images)) if _is_array(images) else images
    except (TypeError, ValueError, RuntimeError):
        return None
    if not isinstance(images, Tensor) or images.dim() != 4 or images.is_complex():
        return None
    images = images.to_dense() if images.layout != torch.strided else images
    for channels in _CHANNELS:
        if images.shape[1] in channels:
            return images
        if images.shape[3] in channels:
            return images.permute(0, 3, 1, 2)
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _as_values(images: Tensor, name: str) -> Tensor:
    images = images.detach().cpu()
    values = to_values(images) if images.dtype == torch.uint8 else images.float()
    if float(values.abs().nan_to_num(0).max()) > _LARGEST:
        _warn(f"{name} has values beyond {_LARGEST:.0f}; pictures are in [-1, 1], or uint8")
    return values


@lru_cache
def _warn(message: str) -> None:
    log.warning("%s", message)
