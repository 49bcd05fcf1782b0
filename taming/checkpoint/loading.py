"""Models of runs: from their merged configs and the weights of their checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from taming.checkpoint import hub
from taming.checkpoint.formats import read_content
from taming.checkpoint.recognition import model_of_weights
from taming.checkpoint.runs import Run, find_run
from taming.checkpoint.starting import begin_averages, configure_for
from taming.checkpoint.weights import LargeTensorsUnset, load_weights, weights_for
from taming.config import (
    instantiate_from_config,
    left_open,
    load_config,
    missing_keys,
    plain,
    reading,
    without_checkpoint_paths,
)
from taming.config_before import keep_dataset_defaults
from taming.config_files import SECTIONS, STAGES, as_stage
from taming.config_schema import check_parameter_names
from taming.errors import UserError
from taming.limits import weights_from_file
from taming.shipped import script
from taming.trust import is_listed


def run_config(
    run: Run,
    base: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    used: Sequence[str] = SECTIONS[:2],
) -> DictConfig:
    """The config that a run was trained with, `base` and `overrides` merged over it.

    What the run's own may name, in the sections that are `used`, is what `taming.trust` says. A
    checkpoint without a config, of a tokenizer whose tensors tell what it is, needs none.
    """
    config = _merged(run, base, overrides, used)
    if "model" not in config:
        raise UserError(f"the configs of {run.folder} have no 'model' section")
    expand_stages(config)
    if run.configs:
        keep_dataset_defaults(config, new=False)
    return config


def _merged(
    run: Run, base: Sequence[str | Path], overrides: Sequence[str], used: Sequence[str]
) -> DictConfig:
    """The config of a run, or of weights that have a hub's `config.json` or nothing instead."""
    from_hub = [path for path in run.configs if path.name == hub.CONFIG]
    own = not from_hub or hub.is_own_config(hub.read_config(from_hub[0]))
    if run.configs and own:
        return load_config(base, overrides, stored=run.configs, used=used)
    others = load_config(base, overrides, used=used)
    if "target" in (others.get("model") or {}):
        return others
    section = _section_of(run)
    merged = OmegaConf.merge({"model": section}, others)
    assert isinstance(merged, DictConfig)
    return merged


def _section_of(run: Run) -> dict[str, Any]:
    """The `model` section of weights with a hub's config or none."""
    if run.configs:
        return hub.model_section(run.configs[0])
    return model_of_weights(run.checkpoint)


def expand_stages(config: DictConfig) -> None:
    """Write out, in place, stages of the model that are given as the path of a run.

    A config that is kept in a run's folder is then complete without the other run's. A stage of
    which only `params.ckpt_path` and changes of other `params` are given is a run's as well; so is
    a model that goes on from another.

    Raises:
        UserError: as `run_as_stage` does.
    """
    if whole := _of_run(config.model, "model"):
        config.model = whole
    params = config.model.get("params") or {}
    for key in STAGES:
        with reading(config):
            stage = params.get(key)
        if isinstance(stage, str) and not stage.startswith("__"):
            params[key] = run_as_stage(stage, f"model.params.{key}")
        elif isinstance(stage, DictConfig) and (whole := _of_run(stage, f"model.params.{key}")):
            params[key] = whole
        _tell_codes(params, key)


def _tell_codes(params: Any, key: str) -> None:
    """Where a stage's `quantizer_config` alone says how many codes there are, put that number into
    its `n_embed`, which a transformer's `vocab_size` refers to."""
    if not isinstance(params, DictConfig):
        return
    stage = OmegaConf.select(params, f"{key}.params", throw_on_resolution_failure=False)
    quantizer = stage.get("quantizer_config") if isinstance(stage, DictConfig) else None
    if not isinstance(quantizer, DictConfig) or stage.get("n_embed") is not None:
        return
    if not is_listed(str(quantizer.get("target")), ("taming",)):
        return
    with suppress(UserError, OmegaConfBaseException):  # said where the stage is made
        made = plain(quantizer)
        count = (made.get("params") or {}).get("n_e")
        stage["n_embed"] = count or instantiate_from_config(made, key, "module").n_e


def _of_run(section: DictConfig, key: str) -> Any:
    """A section of which only `params.ckpt_path` and changes are given, as a whole; else None."""
    if "target" in section or missing_keys(section):
        return None  # `check_complete` asks for what is missing
    own = section.get("params") or {}
    path = own.get("ckpt_path") if isinstance(own, Mapping) else None
    if not path:  # the schema asks for mappings
        return None
    whole = run_as_stage(path, f"{key}.params.ckpt_path")
    start = {"params": {"ckpt_path": whole["params"]["ckpt_path"]}}
    return OmegaConf.merge(whole, section, start)


def check_complete(config: DictConfig) -> None:
    """Refuse, before anything is built, a config that leaves values to the user (`???`), or starts
    from weights that are not there.

    Raises:
        UserError: for all that is left open, or the first that is not there, with what to add.
    """
    content = plain(config, allow_missing=True)  # interpolations of nothing, too
    if keys := missing_keys(config):
        for section in ("model", "data"):  # a misspelt name leaves another one open
            check_parameter_names({section: content.get(section)})
        raise UserError(left_open(keys))
    for place in ("model", *(f"model.params.{stage}" for stage in STAGES)):
        node = OmegaConf.select(config, place, throw_on_resolution_failure=False)
        if not isinstance(node, DictConfig) or not str(node.get("target")).startswith("taming."):
            continue  # classes of others may mean something else by it
        path = OmegaConf.select(node, "params.ckpt_path", throw_on_resolution_failure=False)
        if isinstance(path, str):
            try:
                find_run(path)
            except UserError as error:
                raise UserError(f"{place}.params.ckpt_path: {error}") from None


def run_as_stage(path: str | Path, key: str) -> dict[str, Any]:
    """`target` and `params` of a run's model, which starts from the run's checkpoint.

    `key` is the place of the path in the config, for errors.

    Raises:
        UserError: if there is no such run, it is a transformer's, or it has no config and is no
            tokenizer that is known.
    """
    try:
        run = find_run(path)
        if run.configs:
            model = without_checkpoint_paths(run_config(run, used=["model"]).model)
        else:
            place = key.partition(".params.ckpt_path")[0]
            hint = f"set {place} to the target and params that it was trained with"
            model = model_of_weights(run.checkpoint, f"{hint}, and params.ckpt_path in it")
        if "transformer_config" in (model.get("params") or {}):
            raise UserError(
                f"{path} is a transformer, which cannot be a stage of another; take its first "
                f"stage out with {script('extract_submodel')} IN OUT first_stage_model"
            )
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    stage = as_stage(model)
    stage["params"]["ckpt_path"] = str(run.checkpoint)
    return stage


def load_run(
    path: str | Path, base: Sequence[str | Path] = (), overrides: Sequence[str] = ()
) -> tuple[nn.Module, Run, int]:
    """Build the model of a run and load its weights: `(model in eval mode, run, global step)`.

    `base` are further YAMLs merged over the run's own; they may replace them for a lone checkpoint.
    Weights stay in the file until they are used, so the model takes its size in memory once.
    """
    run = find_run(path)
    config = without_checkpoint_paths(run_config(run, base, overrides, ["model"]).model)
    content = read_content(run.checkpoint)
    with LargeTensorsUnset(), weights_from_file():
        model = instantiate_from_config(config, "model", "module")
        state, ignored = weights_for(model.state_dict(keep_vars=True), content, run.checkpoint)
        if configure_for(model, state.keys()):
            state, ignored = weights_for(model.state_dict(keep_vars=True), content, run.checkpoint)
    options: dict[str, Any] = {"source": run.checkpoint, "ignore_keys": ignored, "assign": True}
    if load_weights(model, state, **options):
        # What the file lacks needs initial values.
        model = instantiate_from_config(config, "model", "module")
        configure_for(model, state.keys())
        load_weights(model, state, **options)
    begin_averages(model)
    return model.eval(), replace(run, model=config), _step_of(content)


def _step_of(content: Any) -> int:
    step = content.get("global_step") if isinstance(content, Mapping) else None
    return step if isinstance(step, int) else 0
