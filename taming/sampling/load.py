"""A trained transformer from its run, and where and how precisely it computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from taming.checkpoint import Run, load_run
from taming.devices import choose_device
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
