"""A run's trained transformer or first stage, and its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from taming.checkpoint import Run, complete_data, load_run, run_config
from taming.config import instantiate_from_config, load_config
from taming.data.seeding import SeededDataset
from taming.devices import choose_device
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.first_stage import FirstStage
from taming.modules.transformer.inference import quantize_in_place
from taming.shipped import run_script, script
from taming.weight_choice import in_int8

Paths = Sequence[str | Path]
Device = str | torch.device


def load_transformer(
    path: str | Path,
    base: Paths = (),
    device: Device = "auto",
    overrides: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> tuple[Net2NetTransformer, Run, int]:
    """The `Net2NetTransformer` of a run, in eval mode on `device`, the run and its global step.

    Args:
        path: run folder or checkpoint; a first stage's is refused.
        base: YAMLs merged over the run's own; then `overrides`, `key.path=value`.
        dtype: the transformer's precision; None leaves it as it is. Nothing needs gradients, so
            decoders use the weights where they are.
    """
    target = choose_device(device)
    with in_int8(target.type) as int8:
        model, run, global_step = load_run(path, base, overrides)
    if not isinstance(model, Net2NetTransformer):
        raise UserError(
            f"{path}: this is a first stage; reconstruct with {script('reconstruct')}, or train "
            f"the second stage ({run_script('main')} with a transformer's YAML) and sample "
            "from that"
        )
    model.requires_grad_(False)
    model.transformer.to(dtype=dtype)
    model = model.to(target)
    if int8:
        quantize_in_place(model)
    return model, run, global_step


def load_first_stage(
    path: str | Path, base: Paths = (), device: Device = "auto", overrides: Sequence[str] = ()
) -> tuple[FirstStage, Run, int]:
    """The first stage of a run, which may be a transformer's: see `load_transformer`."""
    model, run, global_step = load_run(path, base, overrides)
    stage: FirstStage = (
        model.first_stage_model if isinstance(model, Net2NetTransformer) else model  # type: ignore[assignment]
    )
    stage.requires_grad_(False)
    return stage.to(choose_device(device)), run, global_step


def data_config(
    run: Run, base: Paths = (), overrides: Sequence[str] = (), ignore_base_data: bool = False
) -> DictConfig:
    """The `data` section of a run's configs, `base` and `overrides` merged over them, or of these
    alone, with what they leave open taken from the run."""
    if ignore_base_data:
        config = load_config(base, overrides, used=["data"])
    else:
        config = run_config(run, base, overrides, ["data"])
    if base:
        complete_data(config, run)
    if "data" not in config:
        raise UserError("the configs have no 'data' section; name a YAML with one")
    data: DictConfig = config.data
    return data


def open_dataset(data: DictConfig, split: str | None = None) -> SeededDataset:
    """The dataset `split` of a `data` section: by default that of validation, or of training.

    An item depends on its index alone, even if its crop is random. Other splits are refused.
    """
    splits = [name for name in ("validation", "train", "test") if data.params.get(name) is not None]
    if not splits or (split is not None and split not in splits):
        raise UserError(f"the data section has no '{split or 'validation'}'; it has {splits}")
    split = split or splits[0]
    config = data.params[split]
    return SeededDataset(instantiate_from_config(config, f"data.params.{split}", "dataset"))
