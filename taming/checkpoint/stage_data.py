"""What a config leaves open of its data, out of the runs that it is used with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from taming.checkpoint.loading import run_config
from taming.checkpoint.runs import Run, find_run
from taming.config import missing_keys, plain
from taming.config_before import SPLITS
from taming.config_files import STAGES
from taming.errors import UserError

# Where our YAMLs say that images are: nobody has chosen these places.
_DEFAULT_PLACES = (
    *("data/own/train.txt", "data/own/test.txt", "data/classes"),
    *(f"data/pairs/{name}" for name in ("images", "conditions", "segmentation", "depth")),
)
# What belongs to files, however they are cropped: which of them are of the split, and how they are
# read. It goes with the places that are taken.
_OF_FILES: tuple[str, ...] = ("on_error", "exif", "value_range", "extensions", "suffix", "palette")
_OF_FILES += ("shift_segmentation", "validation_fraction", "split_seed")


def inherit_data(config: DictConfig) -> dict[Path, list[str]]:
    """Take, in place, what the `data` section leaves open from the runs of the model's stages.

    That is all of it, if there is none, or none but overrides. Otherwise it is, in the params of
    datasets of the same class, what is left open (`???`), and the places that our YAMLs name, if
    nothing is there; with them go the options of how files are read, such as `on_error`, unless
    they are given.
    Returns what was taken, as `key=value`, by the folder of the run.

    Raises:
        UserError: if there is no section, and that of the run may not be used.
    """
    taken: dict[Path, list[str]] = {}
    for run in _runs_of_stages(config):
        if "target" not in (config.get("data") or {}):
            data = run_config(run, used=["data"]).get("data")
            if data is not None:
                own = config.get("data") or {}
                config.data = OmegaConf.merge(plain(data, allow_missing=True), own)
                return {run.folder: ["data=..."]}
        else:
            with suppress(UserError):  # then places stay open, which is an error of its own
                taken.setdefault(run.folder, []).extend(_inherit_places(config, run))
    return {folder: values for folder, values in taken.items() if values}


def complete_data(config: DictConfig, run: Run) -> None:
    """As `inherit_data`, for a config that a command names beside a run.

    A model whose stages are left open is the run's, as sizes of images may refer to it.
    """
    if not run.configs:
        return
    with suppress(UserError):
        model = config.get("model")
        if isinstance(model, DictConfig) and missing_keys(model):
            config.model = run_config(run, used=["data"]).model
    with suppress(UserError):
        _inherit_places(config, run)


def _inherit_places(config: DictConfig, run: Run) -> list[str]:
    places = list(_open_places(config))
    if not places:
        return []
    section = plain(run_config(run, used=["data"]).get("data"), allow_missing=True)
    return list(_take(config, section, places))


def _runs_of_stages(config: DictConfig) -> Iterator[Run]:
    for stage in STAGES:
        place = f"model.params.{stage}.params.ckpt_path"
        path = OmegaConf.select(config, place, throw_on_resolution_failure=False)
        if isinstance(path, str):
            with suppress(UserError):  # what is wrong with it is said when it is used
                run = find_run(path)
                if run.configs:
                    yield run


def _open_places(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Split and name of the params of datasets that nobody has given."""
    for split in SPLITS:
        params = OmegaConf.select(config, f"data.params.{split}.params")
        for name in map(str, params if isinstance(params, DictConfig) else ()):
            if _is_open(params, name):
                yield split, name


def _is_open(params: DictConfig, name: str) -> bool:
    if OmegaConf.is_missing(params, name) or OmegaConf.is_interpolation(params, name):
        return OmegaConf.is_missing(params, name)
    return params[name] in _DEFAULT_PLACES and not os.path.exists(params[name])


def _take(config: DictConfig, data: Any, places: list[tuple[str, str]]) -> Iterator[str]:
    datasets = (data or {}).get("params") or {}
    for split, name in places:
        own, dataset = config.data.params[split], datasets.get(split)
        if not isinstance(dataset, Mapping) or own.get("target") != dataset.get("target"):
            continue
        given = dataset.get("params") or {}
        if own.params.get("kind") != given.get("kind"):
            continue
        value = given.get(name)
        if value == "???" or not isinstance(value, int | float | str):
            continue
        more = [key for key in _OF_FILES if key in given and key not in own.params]
        for key in (name, *more):
            OmegaConf.update(own.params, key, given[key], force_add=True)
            yield f"data.params.{split}.params.{key}={given[key]}"
