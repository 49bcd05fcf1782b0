"""Weights as files of their own: a part of a checkpoint, or a model as safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from taming.checkpoint import read_checkpoint, save_atomic
from taming.errors import UserError


def extract_submodel(source: str | Path, target: str | Path, submodel: str) -> int:
    """Write the weights of `submodel` (such as "first_stage_model") as a checkpoint of its own.

    Returns the number of tensors. `target` may end in `.safetensors`. Raises `UserError` for a
    sub-model that the checkpoint does not have.
    """
    state = read_checkpoint(source)["state_dict"]
    prefix = f"{submodel}."
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not part:
        known = ", ".join(sorted({name.partition(".")[0] for name in state}))
        raise UserError(f"{source} has no sub-model '{submodel}'; it has {known}")
    save_weights({name: tensor.clone() for name, tensor in part.items()}, target)
    return len(part)


def save_weights(
    state: Mapping[str, Tensor], target: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to `target`, which appears once it is whole, in the format of its suffix."""
    target = Path(target)
    if target.suffix != ".safetensors":
        return save_atomic({"state_dict": dict(state)}, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        # Masks, and projections that decoding has fused, share memory, which the format forbids.
        apart = {name: t.clone(memory_format=torch.contiguous_format) for name, t in state.items()}
        save_file(apart, partial, metadata)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
