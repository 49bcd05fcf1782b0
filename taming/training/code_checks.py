"""Whether cached codes are those of the model that is to be trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from taming.checkpoint import read_checkpoint
from taming.data.codes import SCRIPT, CodeDataset
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.stage_identity import Tensors, describe_condition, describe_first_stage
from taming.training.data_module import DataModuleFromConfig


def check_codes(
    data: pl.LightningDataModule, model: nn.Module, checkpoint: Path | None = None
) -> None:
    """Refuse, before training, codes of other stages than the model's.

    `checkpoint` is the one that a run goes on from, whose weights the model does not have yet.

    Raises:
        UserError: naming what is different.
    """
    folders = data.datasets.values() if isinstance(data, DataModuleFromConfig) else ()
    codes = [dataset for dataset in folders if isinstance(dataset, CodeDataset)]
    if not codes:
        return
    if not isinstance(model, Net2NetTransformer):
        raise UserError(
            "data.params.codes: codes are for transformers, and this model reads images; leave it "
            "out"
        )
    state = read_checkpoint(checkpoint)["state_dict"] if checkpoint else model.state_dict()
    first, second = (_part(state, name) for name in ("first_stage_model", "cond_stage_model"))
    own = describe_first_stage(model.first_stage_model, first), describe_condition(model, second)
    # A run in half precision has kept rounded weights, whose hash is another one.
    rounded = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in first.values())
    for dataset in codes:
        settings = dataset.manifest.settings
        _check_first_stage(dataset, settings.first_stage, own[0], rounded)
        if own[1] is not None:
            _check_condition(dataset, settings.condition, own[1], rounded)


def _part(state: Tensors, name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): t for k, t in state.items() if k.startswith(f"{name}.")}


def _check_first_stage(
    dataset: CodeDataset, stored: Mapping[str, Any], own: Mapping[str, Any], rounded: bool
) -> None:
    if stored["n_codes"] != own["n_codes"]:
        raise UserError(
            f"the codes in {dataset.folder} are of a codebook of {stored['n_codes']} entries, and "
            f"n_embed of the model's first stage is {own['n_codes']}; encode the data with this "
            f"model's config ({SCRIPT})"
        )
    if stored["weights"] != own["weights"] and not rounded:
        raise UserError(
            f"the codes in {dataset.folder} are of another first stage (weights "
            f"{stored['weights']}, the model's are {own['weights']}); name that one by "
            f"model.params.first_stage_config, or encode the data with this one ({SCRIPT})"
        )


def _check_condition(
    dataset: CodeDataset, stored: Mapping[str, Any] | None, own: Mapping[str, Any], rounded: bool
) -> None:
    if stored is None:
        raise UserError(
            f"the codes in {dataset.folder} are without conditions, and the model has "
            f"'{own['key']}'; encode the data with this model's config ({SCRIPT})"
        )
    for name, value in own.items():
        if stored[name] != value and not (rounded and name == "weights"):
            raise UserError(
                f"the codes in {dataset.folder} have other conditions than the model: their "
                f"{name} is {stored[name]}, and the model's {value}; encode the data with this "
                f"model's config ({SCRIPT})"
            )
