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

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from taming.config_files import (
    SECTIONS,
    check_names,
    check_sections,
    fill_in_bases,
    read_parts,
)
from taming.config_values import Misfit, fitted, parameters_of, shorten
from taming.errors import UserError
from taming.limits import within_memory
from taming.trust import PACKAGES, canonical_name, in_program, is_dotted, is_listed, trusted_names

# What a place in a config expects: a subclass of the class at a dotted path, or a class with one
# of these methods.
KINDS: Mapping[str, str | tuple[str, ...]] = {
    "callback": "pytorch_lightning.Callback",
    "data module": "pytorch_lightning.LightningDataModule",
    "dataset": ("__getitem__", "__iter__"),
    "logger": "pytorch_lightning.loggers.Logger",
    "module": "torch.nn.Module",
    "schedule": ("__call__",),
}

# The config key under construction, so that an error deep in a model can name where it comes from.
_path: ContextVar[str] = ContextVar("config_path", default="")


def load_config(
    paths: Sequence[str | Path],
    overrides: Sequence[str] = (),
    sections: Sequence[str] = SECTIONS,
    *,
    stored: Sequence[str | Path] = (),
    used: Sequence[str] = SECTIONS,
) -> DictConfig:
    """Merge YAML files left to right, then `key.path=value` overrides.

    A transformer's stage may name the YAML that it was trained with, relative to the file that
    says so: `first_stage_config: {base: custom_vqgan.yaml, params: {ckpt_path: ...}}`. It is
    replaced by the model of that YAML, without its loss, with `params` merged over it.

    Args:
        sections: the top-level keys that there may be.
        stored: configs of a run's folder, merged before `paths`. `taming.trust` says what these
            may name, in the sections that are `used`.

    Raises:
        UserError: for a missing or malformed file, for a top-level key not in `sections`, and for a
            target that is not trusted.
    """
    parts = read_parts(stored, paths, overrides)
    for part in parts:
        for key in map(str, part.config):
            if key not in sections:
                hint = did_you_mean(key, sections)
                raise UserError(f"{part.source}: unknown top-level key '{key}'{hint}")
        fill_in_bases(part)
    try:
        merged = OmegaConf.merge(*(part.config for part in parts)) if parts else OmegaConf.create()
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"the configs do not fit together: {str(error).splitlines()[0]}") from None
    assert isinstance(merged, DictConfig)
    check_names(merged, parts, [key for key in used if key in merged])
    check_sections(merged, used)
    return merged


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or what there is to choose from."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 20 else ""


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The object at a dotted path such as `taming.models.vqgan.VQModel`."""
    if not isinstance(string, str) or not is_dotted(string):
        raise _config_error(f"'{string}' is not a dotted path such as taming.models.vqgan.VQModel")
    module_name, _, name = canonical_name(string).rpartition(".")
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


def instantiate_from_config(
    config: Any, key: str = "", expects: str | None = None, **extra: Any
) -> Any:
    """Build `config.target(**config.params, **extra)`.

    Args:
        key: the config's place inside its parent, for errors.
        expects: one of `KINDS`. Of this project, torch, torchvision and Lightning it takes classes
            of that kind only. Classes of other packages need not inherit from anything. Functions
            have to be listed in `--trust` by their whole name, except in calls from Python.

    Raises:
        UserError: naming the place, if the target or one of its parameters does not exist, or the
            target is of another kind.
    """
    with _inside(key):
        node = plain(config)
        if not isinstance(node, Mapping) or "target" not in node:
            based = isinstance(node, Mapping) and "base" in node
            hint = ", read by taming.config.load_config" if based else ""
            raise _config_error(f"expected a 'target' and its 'params' here{hint}")
        for name in map(str, node):
            if name != "params" and difflib.get_close_matches(name, ["params"], cutoff=0.8):
                raise _config_error(f"unknown key '{name}'; did you mean 'params'?")
        target = get_obj_from_str(node["target"])
        if expects is not None:
            _check_kind(target, node["target"], expects)
        own = node.get("params") or {}
        with _inside("params"):
            if not isinstance(own, Mapping) or not all(isinstance(name, str) for name in own):
                raise _config_error(f"names and their values are expected here, not {shorten(own)}")
            params = _checked(target, str(node["target"]), own, {**own, **extra})
            if expects != "module":
                return target(**params)
            with within_memory(_path.get(), own):
                return target(**params)


def _check_kind(target: Any, name: str, kind: str) -> None:
    if inspect.isclass(target) and _is_kind(target, kind):
        return
    home, package = str(getattr(target, "__module__", "")), name.partition(".")[0]
    if not is_listed(canonical_name(name), PACKAGES) and home.partition(".")[0] == package:
        names = trusted_names()
        if inspect.isclass(target) or name in names:
            return
        if inspect.isfunction(target) and not is_listed(name, names) and not in_program():
            return
    raise _config_error(
        f"{name} is no class of the kind that is expected here, a {kind}; a function of your own "
        f"that makes one can be allowed with --trust {name}"
    )


def _is_kind(target: type, kind: str) -> bool:
    wanted = KINDS[kind]
    if isinstance(wanted, tuple):
        return any(callable(getattr(target, method, None)) for method in wanted)
    base: type = get_obj_from_str(wanted)
    return issubclass(target, base)


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


def checked_arguments(target: Any, params: Any, key: str) -> dict[str, Any]:
    """Arguments for `target` out of a config's mapping at `key`, in the types of its hints.

    Raises:
        UserError: for a name that it does not have, one that it needs, and a value of another type.
    """
    with _inside(key):
        if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
            raise _config_error(f"names and their values are expected here, not {shorten(params)}")
        return _checked(target, target.__name__, params, params)


def _checked(
    target: Any, name: str, own: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """`params`, of which `own` are the config's."""
    accepted, required, open_ended = parameters_of(target)
    for param in params:
        if param not in accepted and not open_ended:
            raise _config_error(f"{name} has no parameter '{param}'{did_you_mean(param, accepted)}")
    missing = [param for param in required if param not in params]
    if missing:
        raise _config_error(f"{name} needs the parameter '{missing[0]}'")
    arguments = dict(params)
    for param in own.keys() & accepted.keys():
        try:
            arguments[param] = fitted(params[param], accepted[param])
        except Misfit as misfit:
            with _inside(param):
                raise _config_error(
                    f"{misfit} is expected here, not {shorten(own[param])}"
                ) from None
    return arguments


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
