"""Weights as files of their own: a part of a checkpoint, or a model as safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from taming.atomic_files import atomic_path
from taming.checkpoint import read_content, save_atomic
from taming.checkpoint.names import renamed
from taming.checkpoint.weight_sets import choose, require_plain_tensors, say
from taming.errors import UserError
from taming.weight_choice import ordinary_choice


def extract_submodel(source: str | Path, target: str | Path, submodel: str) -> int:
    """Write the weights of `submodel` (such as "first_stage_model") as a checkpoint of its own.

    Returns the number of tensors. `target` may end in `.safetensors`.

    Raises:
        UserError: if the checkpoint has no such sub-model, or one of its tensors is not dense.
    """
    content, prefix = read_content(source), f"{submodel}."
    require_plain_tensors(content, lambda key: f".{prefix}" in key, source)
    chosen = choose(content, source, kind=ordinary_choice().kind)
    state = renamed(chosen.tensors, [f"{prefix}weight"]).tensors  # without what is around it
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not part:
        known = ", ".join(sorted({name.partition(".")[0] for name in state}))
        raise UserError(f"{source} has no sub-model '{submodel}'; it has {known}")
    if chosen.notes:
        say(str(source), tuple(chosen.notes))
    save_weights({name: tensor.clone() for name, tensor in part.items()}, target)
    return len(part)


def save_weights(
    state: Mapping[str, Tensor], target: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as a checkpoint, or as safetensors if `target` ends so.

    Raises:
        UserError: if the file cannot be written.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        return save_atomic({"state_dict": dict(state)}, target)
    # Masks, and projections that decoding has fused, share memory, which the format forbids.
    apart = {name: t.clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    with atomic_path(target) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(apart, partial, metadata)
            partial.chmod(mode)  # whom other files let read it; the library lets its owner alone
        except SafetensorError as error:  # which the system's errors are to the library
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
