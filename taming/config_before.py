"""What a run was trained with before an option had its present default.

Configs in run folders say everything that a run depends on. Where the default of an option changes,
new runs write down the value that they use, and a run that says nothing keeps the old one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from taming.config import get_obj_from_str
from taming.errors import UserError
from taming.signatures import signature_of

BEFORE = {"exif": "ignore"}  # options of datasets: what they did before they were options
SPLITS = ("train", "validation", "test")
STORED_NAME = "-project.yaml"
OF_DDCONFIG = "taming.modules.diffusionmodules.model.Encoder"  # whose arguments these are


def is_of_run(path: str | Path) -> bool:
    """Whether a config is one that main.py has written into a run's folder."""
    return str(path).endswith(STORED_NAME)


def keep_dataset_defaults(config: DictConfig, new: bool) -> None:
    """Write into the datasets of a config, in place, what options that they do not say mean.

    That is today's default in the config of a `new` run, and `BEFORE` in one of a run's folder.
    """
    for params, defaults in _datasets(config):
        for name, before in BEFORE.items():
            if name in defaults and name not in params:
                OmegaConf.update(params, name, defaults[name] if new else before, force_add=True)


def _datasets(config: DictConfig) -> Iterator[tuple[DictConfig, dict[str, Any]]]:
    """Parameters of each dataset in `data.params`, and the defaults that its class has."""
    for split in SPLITS:
        place = f"data.params.{split}"
        section = OmegaConf.select(config, place, throw_on_resolution_failure=False)
        if isinstance(section, DictConfig) and isinstance(section.get("params"), DictConfig):
            yield section.params, defaults_of(str(section.get("target")))


def defaults_of(target: str) -> dict[str, Any]:
    """Of the arguments that a class, and its bases, may be left without; none for what cannot be
    imported."""
    try:
        cls = get_obj_from_str(target)
    except UserError:  # told where it is built
        return {}
    defaults: dict[str, Any] = {}
    for base in cls.__mro__ if inspect.isclass(cls) else ():
        constructor = vars(base).get("__init__")
        if inspect.isfunction(constructor):
            parameters = signature_of(constructor).parameters
            for name, parameter in parameters.items():
                defaults.setdefault(name, parameter.default)
            if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                break  # it takes nothing for its bases
    return {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
