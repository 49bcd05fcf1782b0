"""Reading of YAML configs and overrides, within bounds, and what their names are trusted with."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from taming.config_values import shorten
from taming.errors import UserError
from taming.trust import Trust, canonical_name, is_dotted, own_trust, stranger, trust_in

SECTIONS = ("model", "data", "lightning")
# Parameters of a transformer that are configs of trained models.
STAGES = ("first_stage_config", "cond_stage_config")

# Far above what configs have: aliases and interpolations can make much of a small file.
_MOST_BYTES, _MOST_ENTRIES, _DEEPEST = 2**24, 10**6, 100
# Parameters that say where the callbacks and loggers of Lightning write.
_OUTPUTS = {"ckptdir", "cfgdir", "default_root_dir", "dirpath", "log_dir", "logdir", "path"}
_OUTPUTS |= {"root_dir", "save_dir", "sub_dir", "weights_save_path"}

# Where a comment begins in YAML.
_COMMENT = re.compile(r"(^|\s)#")

# Where keys have to be, if there is anything at all.
_MAPPINGS = [(section,) for section in SECTIONS] + [("model", "params"), ("data", "params")]
_MAPPINGS += [("lightning", key) for key in ("trainer", "callbacks", "modelcheckpoint", "logger")]

Place = tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """One of the configs that are merged: its keys, trust in it, and where it is from.

    Attributes:
        source: its file, or the text of an override.
        folder: what paths in it are relative to.
        stored: whether it is of a run's folder.
    """

    source: str
    config: DictConfig
    trust: Trust
    folder: Path
    stored: bool = False


def read_parts(
    stored: Sequence[str | Path], paths: Sequence[str | Path], overrides: Sequence[str]
) -> list[Part]:
    """A run's configs, YAMLs of the user's, and overrides, in the order of merging.

    Raises:
        UserError: for a missing, malformed or much too large file, and for resolvers in strangers'.
    """
    own, others = own_trust(), stranger()
    files = [(Path(path), others) for path in stored]
    files += [(Path(path).expanduser(), own) for path in paths]
    parts = []
    for number, (path, otherwise) in enumerate(files):
        trust = trust_in(path, otherwise)
        config = _read_yaml(path, trust)
        parts.append(Part(str(path), config, trust, path.parent, number < len(stored)))
    return parts + [Part(text, _read_override(text), own, Path()) for text in overrides]


def fill_in_bases(part: Part) -> None:
    """Replace, in place, stages that name a YAML beside the part's file by their whole config."""
    for key in STAGES:
        place = f"model.params.{key}"
        stage = OmegaConf.select(part.config, place, throw_on_resolution_failure=False)
        if isinstance(stage, DictConfig) and "base" in stage:
            try:
                whole = as_stage(_first_stage_of(part.folder / str(stage.pop("base")), part.trust))
            except UserError as error:
                raise UserError(f"{part.source}: {place}.base: {error}") from None
            OmegaConf.update(part.config, place, OmegaConf.merge(whole, stage), merge=False)


def _first_stage_of(path: Path, trust: Trust) -> Any:
    content: Any = OmegaConf.to_container(_read_yaml(path, trust))
    model = content.get("model")
    if not isinstance(model, dict) or "target" not in model:
        raise UserError(f"{path} has no model with a target")
    params = model.get("params") or {}
    if not isinstance(params, dict) or "transformer_config" in params:
        raise UserError(f"{path} is a transformer's, not a first stage's")
    return model


def as_stage(model: Mapping[str, Any]) -> dict[str, Any]:
    """`target` and `params` of a model, without what only its own training needs."""
    training = ("ckpt_path", "ignore_keys", "monitor", "scheduler_config")
    params = {k: v for k, v in (model.get("params") or {}).items() if k not in training}
    if "lossconfig" in params:
        params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
    return {"target": model["target"], "params": params}


def _read_yaml(path: Path, trust: Trust) -> DictConfig:
    if not os.path.isfile(path):  # False of impossible names, too
        raise UserError(f"there is no config file {path}")
    config = load_yaml(path, OmegaConf.load)
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} must hold keys such as {', '.join(SECTIONS)}")
    if not trust.own:
        _refuse_resolvers(path, config)
    return config


def load_yaml(path: Path, load: Callable[[Path], Any], kind: str = "not valid YAML") -> Any:
    """What `load` makes of a YAML file that is no larger than a person writes.

    Raises:
        UserError: for other files, which are `kind`.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, which is too much")
        _check_aliases(path)
        return load(path)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OverflowError) as error:
        raise UserError(f"{path} is {kind}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None


def _check_aliases(path: Path) -> None:
    """Refuse a file whose aliases (`*a` for what `&a` is) make more of it than a config has."""
    text = path.read_text(encoding="utf-8")
    if "*" not in text or "&" not in text:
        return
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node, depth: int = 0) -> int:
        if depth > _DEEPEST:  # an alias of what it stands in, too
            raise UserError(f"{path} is nested too deeply")
        if id(node) not in sizes:
            below = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                below = [value for _, value in below]
            sizes[id(node)] = 1 + sum(size_of(each, depth + 1) for each in below)
        return sizes[id(node)]

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and size_of(root) > _MOST_ENTRIES:
        raise UserError(f"{path} has aliases that stand for more than {_MOST_ENTRIES:,} entries")


def _refuse_resolvers(path: Path, config: DictConfig) -> None:
    """Strangers' configs may refer to their own entries, as `${model.params.n_embed}`, only.

    Functions as in `${oc.env:HOME}` could put what the environment holds into file names.
    """
    several = 0
    for place, text in _entries(OmegaConf.to_container(config)):
        if isinstance(text, str) and "${" in text:
            if _names_resolver(text):
                raise UserError(
                    f"{as_key(place)} in {path}: '{text}' calls a function, which is off in "
                    "configs of runs that were not made on this machine; write the value out there, "
                    f"or give it as {as_key(place)}=..."
                )
            several += text.count("${") - 1
    if several > 20:  # each may double the length of what refers to it
        raise UserError(f"{path} has too many entries that are put together from others")


def _names_resolver(text: str) -> bool:
    """Whether there is a colon within `${...}`; more is refused than would be called."""
    depth = 0
    for before, letter in zip(" " + text, text, strict=False):
        depth += (before + letter == "${") - (letter == "}" and depth > 0)
        if letter == ":" and depth:
            return True
    return False


def _read_override(text: str) -> DictConfig:
    if "=" not in text or text.startswith(("-", "=")):
        raise UserError(f"'{text}' is not an override; write it as key.path=value")
    key, _, value = text.partition("=")
    try:
        if _COMMENT.search(value) and not value.startswith(("'", '"')):  # YAML would leave it out
            config = OmegaConf.create()
            OmegaConf.update(config, key, value, force_add=True)
            return config
        return OmegaConf.from_dotlist([text])
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(
            f"override '{text}' cannot be read: {' '.join(str(error).split())}"
        ) from None


def check_sections(merged: DictConfig, sections: Sequence[str]) -> None:
    """Refuse values where keys are needed, and leave out sections that are null.

    Raises:
        UserError: for such a value.
    """
    for place in _MAPPINGS:
        node: Any = merged
        if place[0] not in sections:
            continue
        try:
            for part in place:
                node = node.get(part) if isinstance(node, DictConfig) else None
        except OmegaConfBaseException as error:
            raise UserError(f"{as_key(place)}: {str(error).splitlines()[0]}") from None
        if node is not None and not isinstance(node, DictConfig):
            raise UserError(
                f"{as_key(place)} must have keys, such as target; it is {shorten(node)}"
            )
    for key in [key for key in merged if key in sections and merged.get(key) is None]:
        del merged[key]


# ---------------------------------------------------------------------- names


def check_names(merged: DictConfig, parts: Sequence[Part], sections: Sequence[str]) -> None:
    """Refuse targets in `sections` that the config which they come from is not trusted with.

    Nothing of what they name is imported.

    Raises:
        UserError: for such a target, and for strangers' configs that say where to write.
    """
    origins: dict[Place, Part] = {}
    for part in parts:
        origins |= dict.fromkeys(_places(OmegaConf.to_container(part.config)), part)
    # What interpolations bring to a place comes from anywhere.
    strictest = next((part for part in parts if not part.trust.own), parts[-1] if parts else None)
    for place, value in _resolved(merged, sections):
        origin = origins.get(place, strictest)
        if isinstance(value, str) and origin is not None:
            _check_name(place, value, origin)
            if not origin.trust.own and place[0] == "lightning":
                _check_output(place, value, origin)


def _check_name(place: Place, value: str, origin: Part) -> None:
    if not str(place[-1]).endswith("target") or not is_dotted(value):
        return  # what is no name cannot be called either
    if origin.trust.allows(canonical_name(value)):
        return
    package = value.partition(".")[0]
    allowed = (
        "configs may name classes of taming, torch, torchvision, pytorch_lightning and of modules "
        "in the current folder"
        if origin.trust.own
        else "configs of runs that were not made on this machine may name classes of taming and "
        "harmless ones of torch, torchvision and pytorch_lightning"
    )
    raise UserError(
        f"{as_key(place)} in {origin.source}: {value} is not trusted, as {allowed}; if you know "
        f"what it does, add --trust {package}, or set TAMING_TRUST={package}"
    )


def _check_output(place: Place, value: str, origin: Part) -> None:
    """Callbacks of strangers' configs write to the run's folder, as they do by default."""
    outside = value.startswith(("/", "\\", "~")) or ".." in value or ":\\" in value
    if place[-1] in _OUTPUTS or outside:
        raise UserError(
            f"{as_key(place)} in {origin.source} is '{value}': configs of runs that were not made "
            f"on this machine may not say where files are written; add {as_key(place)}=null, or a "
            "folder of yours"
        )


def as_key(place: Place) -> str:
    """A place in a config as overrides write it."""
    return ".".join(map(str, place))


def _entries(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """All entries of a tree of dicts and lists, with what lies in them."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        yield (*place, key), value
        if isinstance(value, dict | list):
            yield from _entries(value, (*place, key))


def _places(node: Any) -> Iterator[Place]:
    return (place for place, _ in _entries(node))


def _resolved(config: DictConfig, sections: Sequence[str]) -> Iterator[tuple[Place, Any]]:
    """The entries of some sections, interpolations replaced by what they stand for."""
    pending: list[tuple[Place, Any, Any]] = [((key,), config, key) for key in sections]
    count = 0
    while pending:
        place, node, key = pending.pop()
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException:
            continue  # an interpolation of nothing, which can be used for nothing
        except RecursionError:
            raise UserError(f"{as_key(place)} refers to itself") from None
        count += 1
        if len(place) > _DEEPEST or count > _MOST_ENTRIES:
            raise UserError(f"{as_key(place[:4])}... is nested too deeply, or refers to itself")
        yield place, value
        if isinstance(value, DictConfig):
            pending += [((*place, name), value, name) for name in value]
        elif isinstance(value, ListConfig):
            pending += [((*place, i), value, i) for i in range(len(value))]
