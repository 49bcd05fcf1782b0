"""The config of a run, of all that names it, and its values by their keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from taming.checkpoint import check_complete, expand_stages, inherit_data
from taming.config import load_config, plain
from taming.config_before import keep_dataset_defaults
from taming.config_files import as_key, entries
from taming.data.codes import with_codes
from taming.errors import UserError
from taming.training.code_checks import match_datasets
from taming.training.messages import few
from taming.training.run_folder import RunFolder

# Flags that a resumed run keeps: in the section `lightning` of its configs.
KEPT_FLAGS = {"seed": 23, "scale_lr": True, "skip_nonfinite": 0}


def read_configs(
    run: RunFolder,
    base: Sequence[Path],
    overrides: Sequence[str],
    say: Callable[[str], Any] = rank_zero_info,
) -> tuple[DictConfig, DictConfig]:
    """The merged config of model and data, and the section `lightning`.

    `say` is called with lines on what is taken from elsewhere, and on changes of a resumed run.

    Raises:
        UserError: for what cannot be read, has no model, or leaves values to the user.
    """
    config = load_config(base, overrides, stored=run.stored)
    if "model" not in config:
        raise UserError("the configs have no 'model' section: add model.target and model.params")
    expand_stages(config)
    if run.resume_from is None:  # a checkpoint has the weights of all parts
        for folder, taken in inherit_data(config).items():
            say(f"as in {folder}: {few(taken, 4)}")
        check_complete(with_codes(config))
    keep_dataset_defaults(config, new=not run.stored)
    if taken := match_datasets(config):
        say(f"the codes are of {few(taken, 2)}")
    plain(config.get("lightning"))  # all of it is used
    if run.stored and (base or overrides):
        say(f"{run.path} goes on {_changes(config, run)}")
    return config, OmegaConf.create(config.pop("lightning", None) or {})


def _changes(config: DictConfig, run: RunFolder) -> str:
    """Which keys of a resumed run's config are now others, by YAMLs and overrides."""
    stored = load_config((), stored=run.stored, used=("model",))
    keep_dataset_defaults(stored, new=False)
    before, now = config_values(stored), config_values(config)
    changes = [f"{key}={now.get(key)}" for key in now | before if now.get(key) != before.get(key)]
    return f"with {few(changes, 8)}" if changes else "with its own config, unchanged"


def config_values(config: DictConfig) -> dict[str, Any]:
    """What is no dict or list in a config, by its key."""
    pairs = entries(plain(config, allow_missing=True))
    return {as_key(place): value for place, value in pairs if not isinstance(value, dict | list)}
