"""YAML files and overrides become a config; a config's `target:` and `params:` become objects."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from taming.config_files import (
    SECTIONS,
    STAGES,
    as_key,
    check_sections,
    entries,
    fill_in_bases,
    merge,
    read_parts,
)
from taming.config_keys import check_keys
from taming.config_names import check_trusted
from taming.config_schema import arguments_for, check_arguments, check_node
from taming.config_targets import (
    KINDS,
    config_error,
    current_key,
    did_you_mean,
    get_obj_from_str,
    inside,
    is_installed,
    note_own_code,
    params_of,
    target_of,
)
from taming.config_values import Arguments
from taming.errors import UserError
from taming.limits import within_memory
from taming.user_code import calling

# In errors of OmegaConf: what an interpolation names.
_NAMED = re.compile(r"(?:Interpolation key '|trying to access )([\w.]+)")

__all__ = [
    "KINDS",
    "check_config",
    "checked_arguments",
    "did_you_mean",
    "get_obj_from_str",
    "instantiate_from_config",
    "instantiate_with",
    "is_installed",
    "left_open",
    "load_config",
    "missing_keys",
    "plain",
    "reading",
    "without_checkpoint_paths",
]


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
        UserError: for a missing or malformed file, for keys that nothing reads, and for a target
            that is not trusted.
    """
    parts = read_parts(stored, paths, overrides)
    for part in parts:
        fill_in_bases(part)
    merged = merge(parts)
    check_trusted(merged, parts, [key for key in used if key in merged])
    check_sections(merged, used)
    check_keys(merged, parts, sections)
    return merged


def check_config(
    config: Any, key: str, expects: str | None = None, extra: Collection[str] = ()
) -> None:
    """Refuse what `instantiate_from_config` would, and of all configs in it, without building.

    `extra` are the names of what that will be given besides.
    """
    check_node(plain(config), key, expects, extra)


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
        UserError: naming the place, before anything is built: if a target or one of its parameters,
            here or in a config among these, does not exist or is not what is expected there.
    """
    return instantiate_with(extra, config, key, expects)


def instantiate_with(
    extra: Mapping[str, Any], config: Any, key: str = "", expects: str | None = None
) -> Any:
    """`instantiate_from_config`, also of parameters `extra` that are called as one of its own."""
    node = plain(config)
    check_node(node, key, expects, extra)
    with inside(key):
        target, name = target_of(node, expects), str(node["target"])
        own = params_of(node)
        with inside("params"):
            params = arguments_for(target, name, own, {**own, **extra})
            note_own_code(target)
            limit = within_memory(current_key(), own) if expects == "module" else nullcontext()
            with calling(target, f"{current_key()}: {name}".strip(": ")), limit:
                return _made(target, name, params)


def _made(target: Any, name: str, params: Mapping[str, Any]) -> Any:
    """Build, with the place before what is wrong with the parameters together."""
    try:
        return target(**params)
    except UserError as error:
        place = current_key()
        section = place.partition(".")[0]
        if type(error) is not UserError or section not in SECTIONS or f"{section}." in str(error):
            raise
        raise UserError(f"{place}: {error}") from error
    except MemoryError:
        raise config_error(f"{name} takes more memory than is free with these values") from None
    except ModuleNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise config_error(f"{name} needs a package that is not installed ({reason})") from error


def plain(config: Any, allow_missing: bool = False) -> Any:
    """A config as dicts and lists with its interpolations resolved; anything else unchanged.

    Raises `UserError` for values still to be filled in (`???`) or an interpolation of nothing.
    """
    if not OmegaConf.is_config(config):
        return config
    with reading(config):
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=not allow_missing)


@contextmanager
def reading(config: Any) -> Iterator[None]:
    """Raise `UserError` for what `plain` does, where values of `config` are read one by one."""
    try:
        yield
    except MissingMandatoryValue as error:
        keys = missing_keys(config)
        found = next((key for key in keys if str(error.full_key).endswith(key)), "")
        above = str(error.full_key).removesuffix(found)
        raise UserError(left_open([above + key for key in keys])) from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        if nothing := _null_above(config, reason):
            raise UserError(f"{nothing} is null, and {error.full_key} refers to it") from None
        raise UserError(f"{error.full_key}: {reason}") from None


def _null_above(config: Any, reason: str) -> str:
    """Of an interpolation of nothing, the place above what it names that is null, or ""."""
    named = _NAMED.search(reason)
    keys = named[1].split(".") if named else []
    for length in range(1, len(keys)):
        place = ".".join(keys[:length])
        if OmegaConf.select(config, place, default=0) is None:
            return place
    return ""


def missing_keys(config: Any) -> list[str]:
    """Where a config leaves values to the user (`???`), in its own order."""
    content = OmegaConf.to_container(config)
    return [as_key(place) for place, value in entries(content) if value == "???"]


def left_open(keys: Sequence[str]) -> str:
    """A sentence that asks for all values that a config leaves open: the stages of a model first,
    as their runs know places of data, too (see `taming.checkpoint.inherit_data`)."""
    ending = ".params.ckpt_path"
    of_stages = [f"model.params.{stage}{end}" for stage in STAGES for end in ("", ending)]
    asked = [key for key in of_stages if key in keys]
    others = [key for key in keys if key not in asked]
    verb = "is" if len(keys) == 1 else "are"
    text = f"{_in_words([*asked, *others])} {verb} left to you: add "
    if asked:
        text += " ".join(f"{key.removesuffix(ending)}=logs/<run>" for key in asked)
        text += ", the run that it was" if len(asked) == 1 else ", the runs that they were"
        text += " trained in" + (", and " if others else "")
    text += " ".join(f"{key}=..." for key in others)
    if asked and others and all(key.startswith("data.params.") for key in others):
        text += ", unless the data are those of that run"
    return text


def _in_words(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def checked_arguments(params: Any, key: str, *targets: type) -> dict[str, Any]:
    """A config's mapping at `key` as arguments for each of `targets`, in the types of their hints.

    Raises:
        UserError: for a name that they do not have, one that they need, and a value that is not
            what its hint says.
    """
    with inside(key):
        return check_arguments(params, Arguments(*targets))


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
