"""What a config, or a run, has to be encoded: its stages and its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig
from torch import nn

from taming.checkpoint import (
    check_complete,
    expand_stages,
    find_run,
    inherit_data,
    load_run,
    run_as_stage,
    run_config,
)
from taming.config import (
    instantiate_from_config,
    load_config,
    without_checkpoint_paths,
)
from taming.config_before import keep_dataset_defaults
from taming.config_values import Count
from taming.data.codes import leave_codes_out
from taming.errors import UserError
from taming.models.codes import CodesInterface
from taming.models.cond_transformer import UNCONDITIONAL, Net2NetTransformer
from taming.shipped import config_names
from taming.training.data_module import DataModuleFromConfig, build_data
from taming.training.encoding import Encoding, EncodingOptions
from taming.user_code import name_of
from taming.user_files import YAMLS

_MOST = 2**31 - 1


def load_encoding(
    base: Sequence[str], overrides: Sequence[str], options: EncodingOptions, folder: Path
) -> Encoding:
    """The `Encoding` of the data of a config, or of a run and YAMLs merged over its own.

    Args:
        base: a transformer's YAMLs; or first a run or checkpoint, of a transformer or of a first
            stage, whose codes are without conditions.
        overrides: `key.path=value`.

    Raises:
        UserError: for what main.py refuses in a config, and an untrained first stage.
    """
    is_config = Path(base[0]).suffix in YAMLS
    is_config |= base[0] in config_names() and not Path(base[0]).exists()
    model, config = (_of_config if is_config else _of_run)(base, overrides)
    leave_codes_out(config)
    data = build_data(config.data)
    if not isinstance(data, DataModuleFromConfig):
        raise UserError(
            f"data.target is {config.data.target}; only the data of main.DataModuleFromConfig can "
            "be encoded"
        )
    plain_config = without_checkpoint_paths(config)
    return Encoding(model.eval().requires_grad_(False), data, plain_config, options, folder)


def _of_config(
    base: Sequence[str], overrides: Sequence[str]
) -> tuple[Net2NetTransformer, DictConfig]:
    config = load_config(base, overrides)
    if "model" not in config:
        raise UserError("the configs have no 'model' section: name a transformer's, or a run")
    expand_stages(config)
    inherit_data(config)
    check_complete(config)
    keep_dataset_defaults(config, new=True)
    _require_data(config)
    params: Any = config.model.get("params") or {}
    if "transformer_config" not in params:
        raise UserError(
            f"{' '.join(base)}: this is a first stage's config; name a transformer's, or the run "
            "that the first stage was trained in"
        )
    if params.get("ckpt_path") is None:
        params.transformer_config = _stand_in(params.transformer_config)
        for name in _OF_READING:
            params.pop(name, None)
    model = instantiate_from_config(config.model, "model", "module")
    stage = model.first_stage_model
    if isinstance(stage, CodesInterface) and not (stage.loaded_from or model.loaded_from):
        raise UserError(
            "the first stage is not trained: set model.params.first_stage_config=logs/<run>"
        )
    return model, config


def _of_run(base: Sequence[str], overrides: Sequence[str]) -> tuple[Net2NetTransformer, DictConfig]:
    run = find_run(base[0])
    config = run_config(run, base[1:], overrides)
    _require_data(config)
    if "transformer_config" not in (config.model.get("params") or {}):
        return _around_first_stage(base[0], config), config
    model: Any = load_run(base[0], base[1:], overrides)[0]
    return model, config


def _require_data(config: DictConfig) -> None:
    if "target" not in (config.get("data") or {}):
        raise UserError("the configs have no 'data' section: add data.target and data.params")


# In which order a transformer reads codes, which its stand-in does not.
_OF_READING = ("order", "anneal", "raster_share")


class StandIn(nn.Module):
    """In the place of a transformer, where only the stages beside it are used."""

    def __init__(self, vocab_size: Count = _MOST, block_size: Count = _MOST) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.block_size = block_size

    def get_block_size(self) -> int:
        return self.block_size


def _stand_in(transformer_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a `StandIn` for a transformer of any size."""
    params = transformer_config.get("params") or {}
    sizes = {name: params[name] for name in ("vocab_size", "block_size") if name in params}
    return {"target": name_of(StandIn), "params": sizes}


def _around_first_stage(path: str, config: DictConfig) -> Net2NetTransformer:
    """An unconditional model over a run's first stage."""
    key = (config.model.get("params") or {}).get("image_key", "image")
    stage = run_as_stage(path, "--base")
    return Net2NetTransformer(_stand_in({}), stage, UNCONDITIONAL, first_stage_key=key)
