"""YAML files and overrides become a config; a config's `target:` and `params:` become objects.

This is the only place where a name from a config is resolved.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from taming.errors import UserError

SECTIONS = ("model", "data", "lightning")
# Parameters of a transformer that are configs of trained models.
STAGES = ("first_stage_config", "cond_stage_config")

# Published configs name classes by modules that are scripts, or that live in another project.
MODULE_ALIASES = {"main": "taming.training"}
TARGET_ALIASES = {"ldm.models.autoencoder.VQModel": "taming.models.vqgan.VQModel"}

# The config key under construction, so that an error deep in a model can name where it comes from.
_path: ContextVar[str] = ContextVar("config_path", default="")


def load_config(
    paths: Iterable[str | Path], overrides: Sequence[str] = (), sections: Sequence[str] = SECTIONS
) -> DictConfig:
    """Merge YAML files left to right, then `key.path=value` overrides.

    A transformer's stage may name the YAML that it was trained with, relative to the file that
    says so: `first_stage_config: {base: custom_vqgan.yaml, params: {ckpt_path: ...}}`. It is
    replaced by the model of that YAML, without its loss, with `params` merged over it.

    Raises:
        UserError: for a missing or malformed file, and for a top-level key not in `sections`.
    """
    parts = [(str(path), Path(path).parent, _read_yaml(Path(path))) for path in paths]
    parts += [(override, Path(), _read_override(override)) for override in overrides]
    for source, folder, part in parts:
        for key in map(str, part):
            if key not in sections:
                hint = did_you_mean(key, sections)
                raise UserError(f"{source}: unknown top-level key '{key}'{hint}")
        _fill_in_bases(part, folder, source)
    merged = OmegaConf.merge(*(part for *_, part in parts)) if parts else OmegaConf.create()
    assert isinstance(merged, DictConfig)
    return merged


def _fill_in_bases(config: DictConfig, folder: Path, source: str) -> None:
    """Replace, in place, stages that name a YAML in `folder` by their whole config."""
    for key in STAGES:
        place = f"model.params.{key}"
        stage = OmegaConf.select(config, place, throw_on_resolution_failure=False)
        if isinstance(stage, DictConfig) and "base" in stage:
            try:
                whole = as_stage(_first_stage_of(folder / str(stage.pop("base"))))
            except UserError as error:
                raise UserError(f"{source}: {place}.base: {error}") from None
            OmegaConf.update(config, place, OmegaConf.merge(whole, stage), merge=False)


def _first_stage_of(path: Path) -> Any:
    content: Any = OmegaConf.to_container(_read_yaml(path))
    model = content.get("model")
    if not isinstance(model, dict) or "target" not in model:
        raise UserError(f"{path} has no model with a target")
    if "transformer_config" in (model.get("params") or {}):
        raise UserError(f"{path} is a transformer's, not a first stage's")
    return model


def as_stage(model: Mapping[str, Any]) -> dict[str, Any]:
    """`target` and `params` of a model, without what only its own training needs."""
    training = ("ckpt_path", "ignore_keys", "monitor", "scheduler_config")
    params = {k: v for k, v in (model.get("params") or {}).items() if k not in training}
    if "lossconfig" in params:
        params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
    return {"target": model["target"], "params": params}


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} must hold keys such as {', '.join(SECTIONS)}")
    return config


def _read_override(text: str) -> DictConfig:
    if "=" not in text or text.startswith(("-", "=")):
        raise UserError(f"'{text}' is not an override; write it as key.path=value")
    try:
        return OmegaConf.from_dotlist([text])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"override '{text}' cannot be read: {' '.join(str(error).split())}"
        ) from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or what there is to choose from."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 20 else ""


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The object at a dotted path such as `taming.models.vqgan.VQModel`."""
    string = TARGET_ALIASES.get(string, string)
    module_name, _, name = string.rpartition(".")
    if not module_name:
        raise _config_error(f"'{string}' is not a dotted path such as taming.models.vqgan.VQModel")
    module_name = MODULE_ALIASES.get(module_name, module_name)
    module = _import(module_name, string)
    if reload:
        module = importlib.reload(module)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [entry for entry in dir(module) if not entry.startswith("_")]
        hint = did_you_mean(name, public)
        raise _config_error(f"there is no '{name}' in {module_name}{hint}") from None


def _import(module_name: str, target: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _config_error(f"{target} needs the package '{error.name}': install it") from error
        hint = did_you_mean(module_name, _modules_near(module_name))
        raise _config_error(f"there is no module '{module_name}'{hint}") from None


def _modules_near(module_name: str) -> list[str]:
    """All modules of the package that `module_name` starts with (of ours, if there is none)."""
    package = module_name.partition(".")[0]
    spec = importlib.util.find_spec(package) or importlib.util.find_spec("taming")
    if spec is None or not spec.submodule_search_locations:
        return [package]
    walk = pkgutil.walk_packages(spec.submodule_search_locations, f"{spec.name}.")
    return [module.name for module in walk]


def instantiate_from_config(config: Any, key: str = "", **extra: Any) -> Any:
    """Build `config.target(**config.params, **extra)`.

    `key` names the config's place inside its parent and is used in errors. Raises `UserError`
    naming that place when the target or one of its parameters does not exist.
    """
    with _inside(key):
        node = plain(config)
        if not isinstance(node, Mapping) or "target" not in node:
            hint = ", read by taming.config.load_config" if "base" in (node or ()) else ""
            raise _config_error(f"expected a 'target' and its 'params' here{hint}")
        for name in map(str, node):
            if name != "params" and difflib.get_close_matches(name, ["params"], cutoff=0.8):
                raise _config_error(f"unknown key '{name}'; did you mean 'params'?")
        target = get_obj_from_str(node["target"])
        params = {**(node.get("params") or {}), **extra}
        with _inside("params"):
            _check_parameters(target, str(node["target"]), params)
            return target(**params)


def plain(config: Any, allow_missing: bool = False) -> Any:
    """A config as dicts and lists with its interpolations resolved; anything else unchanged.

    Raises `UserError` for a value still to be filled in (`???`) or an interpolation of nothing.
    """
    if not OmegaConf.is_config(config):
        return config
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=not allow_missing)
    except MissingMandatoryValue as error:
        raise UserError(f"set {error.full_key}=... : the config leaves it to you") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None


def _check_parameters(target: Any, name: str, params: Mapping[str, Any]) -> None:
    accepted, required, open_ended = _parameters(target)
    for param in params:
        if param not in accepted and not open_ended:
            raise _config_error(f"{name} has no parameter '{param}'{did_you_mean(param, accepted)}")
    missing = [param for param in required if param not in params]
    if missing:
        raise _config_error(f"{name} needs the parameter '{missing[0]}'")


def _parameters(target: Any) -> tuple[set[str], list[str], bool]:
    """Accepted names, required names, and whether any name at all is taken.

    A subclass that passes `**kwargs` on takes what its base classes take; what they require, it may
    give itself.
    """
    accepted: set[str] = set()
    required: list[str] | None = None
    signatures = [vars(cls)["__init__"] for cls in _lineage(target)] or [target]
    for function in signatures:
        parameters = list(inspect.signature(function).parameters.values())
        parameters = parameters[1:] if inspect.isclass(target) else parameters
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        accepted |= {parameter.name for parameter in named}
        if required is None:
            required = [p.name for p in named if p.default is p.empty]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return accepted, required, False
    return accepted, required or [], True


def _lineage(target: Any) -> Iterator[type]:
    """The project's classes, from `target` up, that have a constructor of their own."""
    for cls in target.__mro__ if inspect.isclass(target) else ():
        if cls is not object and inspect.isfunction(vars(cls).get("__init__")):
            yield cls


@contextmanager
def _inside(key: str) -> Iterator[None]:
    token = _path.set(f"{_path.get()}.{key}".strip("."))
    try:
        yield
    finally:
        _path.reset(token)


def _config_error(message: str) -> UserError:
    where = _path.get().strip(".")
    return UserError(f"{where}: {message}" if where else message)


def without_checkpoint_paths(config: Any) -> Any:
    """A plain copy of `config` with every `ckpt_path` set to None.

    A run's own checkpoint holds the weights of all its parts, so the files that it started from
    are no longer needed, and may be gone.
    """
    node = plain(config, allow_missing=True)
    if isinstance(node, Mapping):
        return {
            key: None if key == "ckpt_path" else without_checkpoint_paths(value)
            for key, value in node.items()
        }
    return [without_checkpoint_paths(value) for value in node] if isinstance(node, list) else node
