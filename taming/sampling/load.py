"""A trained transformer from its run, and where and how precisely it computes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from taming.checkpoint import Run, load_run
from taming.errors import UserError


def load_transformer(
    path: str | Path,
    base: Sequence[str | Path] = (),
    device: str | torch.device = "auto",
    overrides: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> tuple[Any, Run, int]:
    """The `Net2NetTransformer` of a run, in eval mode on `device`, the run and its global step.

    Args:
        path: run folder or checkpoint.
        base: YAMLs merged over the run's own.
        overrides: `key.path=value`, merged last.
        dtype: the transformer's precision, as it is by default. Nothing needs gradients, so that
            decoders use the weights where they are.

    Raises:
        UserError: where there is no such run, or it is a first stage.
    """
    model, run, global_step = load_run(path, base, overrides)
    if not hasattr(model, "transformer"):
        raise UserError(
            f"{path}: this is a first stage; reconstruct with scripts/reconstruct.py, or train the "
            "second stage (python main.py with a transformer's YAML) and sample from that"
        )
    model.requires_grad_(False)
    model.transformer.to(dtype=dtype)
    return model.to(choose_device(device)), run, global_step


def load_first_stage(
    path: str | Path,
    base: Sequence[str | Path] = (),
    device: str | torch.device = "auto",
    overrides: Sequence[str] = (),
) -> tuple[Any, Run, int]:
    """The first stage of a run, which may be a transformer's: see `load_transformer`."""
    model, run, global_step = load_run(path, base, overrides)
    stage: Any = getattr(model, "first_stage_model", model)
    stage.requires_grad_(False)
    return stage.to(choose_device(device)), run, global_step


def own_share() -> tuple[int, int]:
    """(n, processes): which of the processes that `torchrun` started this is; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is the first there is of CUDA, MPS and CPU.

    Of several GPUs, processes that `torchrun` started take one each.

    Raises:
        UserError: for a device that is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        kind = next(kind for kind, present in there.items() if present)
        if kind != "cuda":
            return torch.device(kind)
        local = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device(kind, local % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device takes auto, cuda, cuda:1, mps or cpu, not '{name}'") from None
    known = there.get(device.type, False)
    if not known or device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device '{name}' here; use --device auto")
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The transformer's dtype: "fp32", "bf16", or "auto": bf16 where the hardware multiplies it.

    Raises:
        UserError: for any other name.
    """
    if precision not in ("fp32", "bf16", "auto"):
        raise UserError(f"--precision takes fp32, bf16 or auto, not '{precision}'")
    fast = precision == "bf16" or precision == "auto" and _multiplies_bf16(device)
    return torch.bfloat16 if fast else torch.float32


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()
