"""Weights as files of their own: a part of a checkpoint, or a model as safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from taming.atomic_files import atomic_path
from taming.checkpoint import Run, find_run, read_content, run_config, save_atomic
from taming.checkpoint.headers import header_of, section_in_header
from taming.checkpoint.names import renamed
from taming.checkpoint.weight_sets import choose, require_plain_tensors, say
from taming.config import plain, without_checkpoint_paths
from taming.errors import UserError
from taming.models.cond_transformer import FIRST_STAGE
from taming.modules.ema import LitEma
from taming.weight_choice import ordinary_choice


def extract_submodel(source: str | Path, target: str | Path, submodel: str) -> int:
    """Write the weights of `submodel` (such as "first_stage_model") as a checkpoint of its own.

    `source` is a checkpoint, or a run.
    Returns the number of tensors. `target` may end in `.safetensors`. The file says which model it
    is, if the source's config does.

    Raises:
        UserError: if the checkpoint has no such sub-model, or one of its tensors is not dense.
    """
    run, prefix = find_run(source), f"{submodel}."
    content = read_content(run.checkpoint)
    require_plain_tensors(content, lambda key: f".{prefix}" in key, source)
    chosen = choose(content, source, kind=ordinary_choice().kind)
    state = renamed(chosen.tensors, [f"{prefix}weight"]).tensors  # without what is around it
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not part:
        known = ", ".join(sorted({name.partition(".")[0] for name in state}))
        raise UserError(f"{source} has no sub-model '{submodel}'; it has {known}")
    if chosen.notes:
        say(str(source), tuple(chosen.notes))
    tensors = {name: tensor.clone() for name, tensor in part.items()}
    save_weights(tensors, target, _section_of(run, submodel))
    return len(part)


def _section_of(run: Run, submodel: str) -> Mapping[str, Any] | None:
    """`target` and `params` of a sub-model, by the config beside a checkpoint or in it.

    None if there is no config, or nothing of the sub-model in it; a config that cannot be used is
    named, and does not stop what needs the weights alone.
    """
    try:
        if not run.configs and section_in_header(run.checkpoint) is None:
            return None
        whole = plain(without_checkpoint_paths(run_config(run, used=["model"]).model))
    except UserError as error:
        say(str(run.checkpoint), (f"what is written does not say which model it is: {error}",))
        return None
    params = whole.get("params") or {}
    section = params.get(f"{submodel.removesuffix('_model')}_config")
    if section == FIRST_STAGE:
        section = params.get("first_stage_config")
    return section if isinstance(section, Mapping) and "target" in section else None


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors, without the averages that training keeps of them: what reads the file
    would take those for the weights."""
    averages = [name for name, part in model.named_modules() if isinstance(part, LitEma)]
    heads = tuple(f"{name}." for name in averages)
    return {n: tensor for n, tensor in model.state_dict().items() if not n.startswith(heads)}


def save_weights(
    state: Mapping[str, Tensor], target: str | Path, model: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as a checkpoint, or as safetensors if `target` ends so.

    `model`, the section of a config, is written into the file, which is then loaded as that.

    Raises:
        UserError: if the file cannot be written.
    """
    target, header = Path(target), {} if model is None else header_of(model)
    if target.suffix != ".safetensors":
        return save_atomic({"state_dict": dict(state), **header}, target)
    # Masks, and projections that decoding has fused, share memory, which the format forbids.
    apart = {name: t.clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    with atomic_path(target) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(apart, partial, {"format": "pt", **header})
            partial.chmod(mode)  # whom other files let read it; the library lets its owner alone
        except SafetensorError as error:  # which the system's errors are to the library
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
