"""Models by the name of a run, a checkpoint or a published model: the work of `taming.load`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from taming.checkpoint import load_run
from taming.checkpoint.hub_names import is_hub_name
from taming.checkpoint.runs import did_you_mean_run, find_on_hub
from taming.devices import choose_device
from taming.errors import UserError
from taming.modules.transformer.inference import quantize_in_place
from taming.pretrained import download_model, is_downloaded
from taming.published_models import Published, published_models
from taming.shipped import run_script
from taming.trust import trusting
from taming.user_files import with_home
from taming.weight_choice import choosing_weights, in_int8


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    base: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    download: bool = True,
    trust: Sequence[str] = (),
    weights: str | None = None,
    parts: str | Sequence[str] = (),
) -> nn.Module:
    """The model of a run, a checkpoint or a published name; see `taming.load`."""
    target = choose_device(device)
    with trusting(trust), choosing_weights(weights, parts), in_int8(target.type) as int8:
        model, _, _ = load_run(_locate(path, download), base, overrides)
    model = model.requires_grad_(False).to(target)
    if int8:
        quantize_in_place(model)
    return model


def _locate(path: str | Path, download: bool) -> str | Path:
    """The folder or file that `path` names, downloaded if it has to be.

    A name on the hub stands for itself, as it is fetched when it is read.
    """
    if is_hub_name(path):
        return path if download else find_on_hub(path, cached_only=True).checkpoint
    if (place := with_home(Path(path))).exists():
        return place
    published = published_models()
    if str(path) in published:
        return _folder_of(published[str(path)], download)
    hint = did_you_mean_run(path, published)
    raise UserError(f"there is no run, checkpoint or published model '{path}'{hint}")


def _folder_of(model: Published, download: bool) -> Path:
    folder = Path(model.folder)
    if is_downloaded(model):
        return folder
    if not download:
        raise UserError(
            f"{model.name} is not in {folder}; fetch it with {run_script('download_models')} "
            f"{model.name}, or load it with download=True"
        )
    return download_model(model)
