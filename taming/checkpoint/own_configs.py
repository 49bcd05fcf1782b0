"""Which of the configs near a checkpoint are its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from taming.checkpoint import hub
from taming.checkpoint.headers import header_text, is_section
from taming.checkpoint.weight_sets import say
from taming.config_files import as_stage, load_yaml
from taming.errors import UserError
from taming.shipped import shipped
from taming.user_files import YAMLS, visible_in, yamls_in

# What a model's config is called in downloads, beside others' environments and pages.
_USUAL = ("config", "model")


def own_configs(folder: Path, checkpoint: Path | None = None, named: bool = False) -> list[Path]:
    """The configs of a run's folder, or of a checkpoint in it, in the order of merging.

    These are what training has written; else the YAML with the checkpoint's name beside it; else
    one YAML in `configs/` or in the folder: what is called as in downloads, or the only one with
    a model. YAMLs of other things, and of several models, are nobody's. Where the checkpoint was
    `named`, and its header says another model than a YAML without its name, none is its own.
    """
    configs = folder / "configs"
    if project := visible_in(configs, "*-project.yaml"):
        return visible_in(configs, "*-lightning.yaml") + project
    if checkpoint is not None:
        for ending in YAMLS:
            if (beside := checkpoint.with_suffix(ending)).is_file():
                return [beside]
    own = _one_of(configs) or _one_of(folder)
    if own is None:
        return sorted(folder.glob(hub.CONFIG))
    if named and checkpoint is not None and _is_of_another(own, checkpoint):
        return []
    return [own]


def _one_of(folder: Path) -> Path | None:
    if folder.resolve() == shipped("configs").resolve():
        return None
    yamls = yamls_in(folder)
    for name in _USUAL:
        if found := [path for path in yamls if path.stem == name]:
            return found[0]
    models = _with_model(yamls)
    first = next(models, None)
    return first if next(models, None) is None else None


def _with_model(yamls: list[Path]) -> Iterator[Path]:
    return (path for path in yamls if isinstance(_section_in(path).get("target"), str))


def _section_in(path: Path) -> Mapping[Any, Any]:
    """The `model` section of a YAML; nothing of what cannot be read, or is of something else."""
    try:
        config = load_yaml(path, OmegaConf.load)
    except UserError:
        return {}
    content = OmegaConf.to_container(config) if isinstance(config, DictConfig) else {}
    section = content.get("model") if isinstance(content, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _is_of_another(config: Path, checkpoint: Path) -> bool:
    """Whether a checkpoint's header says another model than a config, which is said."""
    section, text = _section_in(config), header_text(checkpoint)
    if text is None or "target" not in section or "${" in str(section):
        return False
    try:
        header = json.loads(text)
        # Those of earlier versions have more of the model's own training.
        header = as_stage(header) if is_section(header) else header
        another = bool(header != as_stage(section))
    except (ValueError, RecursionError):  # said where it is read
        return False
    if another:
        note = f"it says itself which model it is, another than {config} beside it, which is left"
        say(str(checkpoint), (f"{note} out (--base takes that)",))
    return another
