"""Whether cached codes are of the images and the model that a config names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from taming.checkpoint import read_checkpoint
from taming.config import plain
from taming.config_files import Place, as_key, entries
from taming.data.codes import SCRIPT, CodeDataset, read_manifest
from taming.data.from_config import SPLITS
from taming.data.options import ImageOptions
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.stage_identity import (
    Tensors,
    describe_condition,
    describe_first_stage,
    difference,
)
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
            dataset.vocabulary = model.vocab_size


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
    said = dict(stored) if "quantizer" in stored else {**stored, "class": own["class"]}
    if other := difference(said, own):  # of earlier versions, the class is from before it counted
        raise UserError(
            f"the codes in {dataset.folder} are of another first stage, whose {other[0]} is "
            f"{other[1]}, and the model's is {other[2]}; encode the data with this model's config "
            f"({SCRIPT})"
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
    other = difference(stored, own)
    if other is None and not rounded and stored["weights"] != own["weights"]:
        other = "weights", stored["weights"], own["weights"]
    if other is not None:
        raise UserError(
            f"the codes in {dataset.folder} have other conditions than the model: their {other[0]} "
            f"is {other[1]}, and the model's {other[2]}; encode the data with this model's config "
            f"({SCRIPT})"
        )


# ---------------------------------------------------------------------- the images

# What does not decide which images there are, but how they are read.
_READING = {field.name for field in fields(ImageOptions)} - {"source"}
# Of these, what decides their size: that of the images that were encoded is the codes'.
_SIZES = ("size", "crop_size")
_NONE = "none"  # in sentences: a parameter that is not there


def match_datasets(config: DictConfig) -> list[str]:
    """Of a config with `data.params.codes`, compare its datasets with those that were encoded.

    What it leaves open of them, or all that it does not name, is filled in, in place: a run's
    config says what it was trained on. Returns that as `key=value`.

    Raises:
        UserError: if it names other images, or other sizes of them.
    """
    folder = OmegaConf.select(config, "data.params.codes", throw_on_missing=False)
    if folder is None:
        return []
    params, settings = config.data.params, read_manifest(Path(folder)).settings
    encoded = settings.datasets
    named = [split for split in SPLITS if params.get(split)]
    filled: list[str] = []
    for split in named or encoded:
        if split not in encoded:
            continue  # it is refused where codes are opened
        before = {key: encoded[split].get(key) for key in ("target", "params")}
        if split not in named:
            params[split] = before
            filled.append(f"data.params.{split}={before['target']}")
            continue
        for key, value, of_codes in _differences(params[split], before, settings.protocol):
            if value != "???":
                raise UserError(
                    f"data.params.{split}.{key} is {value}, and the codes in {folder} are of "
                    f"{of_codes}: encode these images ({SCRIPT}), or name those of the codes, "
                    "which need not be there"
                )
            if of_codes != _NONE:
                OmegaConf.update(params[split], key, of_codes, force_add=True)
                filled.append(f"data.params.{split}.{key}={of_codes}")
    return filled


def _differences(
    own: DictConfig, encoded: Mapping[str, Any], protocol: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Of what decides the images of a dataset and differs: key, value, and that of the codes."""
    plain_values = json.loads(json.dumps(plain(own, allow_missing=True), default=str))
    values, of_codes = _by_place(plain_values), _by_place(encoded)
    same_size = _sides(values) == _sides(of_codes) or _are(_sides(values), protocol["size"])
    left_out = _READING if same_size else _READING - set(_SIZES)
    for place in {**values, **of_codes}:
        one, other = values.get(place, _NONE), of_codes.get(place, _NONE)
        if one != other and not left_out & set(place):
            yield as_key(place), one, other


def _by_place(dataset: Mapping[str, Any]) -> dict[Place, Any]:
    """The values of a dataset's config."""
    return {
        place: value
        for place, value in entries(dict(dataset))
        if not isinstance(value, dict | list) and value is not None
    }


def _sides(values: Mapping[Place, Any]) -> dict[Place, Any]:
    """The side of the images of a dataset, or of those that it has within, if it says it."""
    sides: dict[Place, Any] = {}
    for name in _SIZES:  # the crop's comes last, and holds
        for place, side in values.items():
            of_images = place[-1] == name and not _READING & set(place[:-1])
            if of_images and side not in (0, -1):
                sides[place[:-1]] = side
    return sides


def _are(sides: Mapping[Place, Any], size: Sequence[int]) -> bool:
    """Whether all sides, of which there are some, are those of images of a (height, width)."""
    return bool(sides) and {*sides.values()} == {*size}
