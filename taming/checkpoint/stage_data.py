"""What a transformer's config leaves open, out of the runs that its stages were trained in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

from taming.checkpoint.loading import run_config
from taming.checkpoint.runs import Run, find_run
from taming.config import plain
from taming.config_before import SPLITS
from taming.config_files import STAGES
from taming.errors import UserError

# The lists that our YAMLs name: nobody has chosen them.
DEFAULT_LISTS = ("data/own/train.txt", "data/own/test.txt")


def inherit_data(config: DictConfig) -> list[str]:
    """Take, in place, what the `data` section leaves open from the runs of the model's stages.

    That is all of it, if there is none, or none but overrides. Otherwise it is, in the params of
    datasets of the same class, what is left open (`???`), and the lists of images that our YAMLs
    name, if they are not there.
    Returns what was taken, as `key=value`, and from where.

    Raises:
        UserError: if there is no section, and that of the run may not be used.
    """
    taken: list[str] = []
    for run in _runs_of_stages(config):
        if "target" not in (config.get("data") or {}):
            data = run_config(run, used=["data"]).get("data")
            if data is not None:
                own = config.get("data") or {}
                config.data = OmegaConf.merge(plain(data, allow_missing=True), own)
                return [f"data=... from {run.folder}"]
        elif places := list(_open_places(config)):
            with suppress(UserError):  # then they stay open, which is an error of its own
                section = plain(run_config(run, used=["data"]).get("data"), allow_missing=True)
                taken += _take(config, section, places, run)
    return taken


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
    return params[name] in DEFAULT_LISTS and not os.path.exists(params[name])


def _take(config: DictConfig, data: Any, places: list[tuple[str, str]], run: Run) -> Iterator[str]:
    for split, name in places:
        own = config.data.params[split]
        dataset = (data or {}).get("params", {}).get(split) or {}
        value = (dataset.get("params") or {}).get(name) if isinstance(dataset, Mapping) else None
        same = own.get("target") == dataset.get("target")
        if same and value != "???" and isinstance(value, int | float | str):
            own.params[name] = value
            yield f"data.params.{split}.params.{name}={value} from {run.folder}"
