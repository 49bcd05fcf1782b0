"""Reading of YAML configs and overrides, within bounds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from taming.errors import UserError, absence, reason_of, shorten
from taming.shipped import find_config
from taming.trust import Trust, own_trust, stranger, trust_in

SECTIONS = ("model", "data", "lightning")
# Parameters of a transformer that are configs of trained models.
STAGES = ("first_stage_config", "cond_stage_config")

# Far above what configs have: aliases and interpolations can make much of a small file.
_MOST_BYTES, MOST_ENTRIES, DEEPEST = 2**24, 10**6, 100
# Where a comment begins in YAML.
_COMMENT = re.compile(r"(^|\s)#")

# What YAML 1.1 takes for another number than it says, or for one at all: 1:30 is to the base of 60,
# 0512 to that of 8 and 0b11 to that of 2; 2024_11_28 is 20241128, but 1_000 is what it says.
_READ_OTHERWISE = re.compile(
    r"""(?<![\w.])
    (?: [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?
    | [-+]?0[0-7_]+ | [-+]?0b[01_]+
    | (?![-+]?[0-9]{1,3}(?:_[0-9]{3})+$) [-+]?[0-9]+_[0-9_]* )
    (?![\w.])""",
    re.VERBOSE,
)

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
    files += [(find_config(path), own) for path in paths]
    parts = []
    for number, (path, otherwise) in enumerate(files):
        trust = trust_in(path, otherwise)
        config = _read_yaml(path, trust)
        parts.append(Part(str(path), config, trust, path.parent, number < len(stored)))
    return parts + [Part(text, _read_override(text), own, Path()) for text in overrides]


def merge(parts: Sequence[Part]) -> DictConfig:
    """The configs of all parts, later ones over earlier ones.

    A stage that was given as the path of a run stays that run's where a later part changes some of
    its `params`.

    Raises:
        UserError: for a part that has a list where there are keys before it, or the reverse.
    """
    merged: Any = OmegaConf.create()
    for part in parts:
        try:
            _write_out_paths(merged, part.config)
            merged = OmegaConf.merge(merged, part.config)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{part.source} does not fit the configs that it is merged over: {reason}"
            ) from None
    assert isinstance(merged, DictConfig)
    return merged


def _write_out_paths(merged: DictConfig, later: DictConfig) -> None:
    """Stages that are paths, and of which there are changes later, as what changes merge into."""
    for key in STAGES:
        place = f"model.params.{key}"
        path = OmegaConf.select(merged, place, throw_on_resolution_failure=False)
        changes = OmegaConf.select(later, place, throw_on_resolution_failure=False)
        changed = isinstance(changes, DictConfig) and changes.keys() == {"params"}
        if changed and isinstance(path, str) and not path.startswith("__"):
            OmegaConf.update(merged, place, {"params": {"ckpt_path": path}}, merge=False)


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


# Parameters of models that a stage of another model has no use for.
OF_OWN_TRAINING = ("ckpt_path", "ignore_keys", "monitor", "scheduler_config", "use_ema")


def as_stage(model: Mapping[str, Any]) -> dict[str, Any]:
    """`target` and `params` of a model, without what only its own training needs."""
    params = {k: v for k, v in (model.get("params") or {}).items() if k not in OF_OWN_TRAINING}
    if "lossconfig" in params:
        params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
    return {"target": model["target"], "params": params}


def _read_yaml(path: Path, trust: Trust) -> DictConfig:
    if not os.path.isfile(path):  # False of impossible names, too
        raise UserError(absence("config file", path))
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
        text = path.read_text(encoding="utf-8")
        _check_aliases(path, text)
        check_numbers(path, text)
        return load(path)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OverflowError) as error:
        raise UserError(f"{path} is {kind}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None


def check_numbers(source: object, text: str) -> None:
    """Refuse 1:30 and 0512 without quotes, which YAML 1.1 takes for the numbers 90 and 330 and
    nobody else does."""
    if not _READ_OTHERWISE.search(text):
        return
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        bare = isinstance(event, yaml.ScalarEvent) and event.style is None
        if bare and _READ_OTHERWISE.fullmatch(event.value):
            number = yaml.safe_load(event.value)
            if isinstance(number, int | float):
                raise UserError(
                    f"{source}: YAML takes {event.value} for the number {number}; write that, or "
                    "put it in quotes"
                )


def _check_aliases(path: Path, text: str) -> None:
    """Refuse a file whose aliases (`*a` for what `&a` is) make more of it than a config has."""
    if "*" not in text or "&" not in text:
        return
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node, depth: int = 0) -> int:
        if depth > DEEPEST:  # an alias of what it stands in, too
            raise UserError(f"{path} is nested too deeply")
        if id(node) not in sizes:
            below = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                below = [value for _, value in below]
            sizes[id(node)] = 1 + sum(size_of(each, depth + 1) for each in below)
        return sizes[id(node)]

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and size_of(root) > MOST_ENTRIES:
        raise UserError(f"{path} has aliases that stand for more than {MOST_ENTRIES:,} entries")


def _refuse_resolvers(path: Path, config: DictConfig) -> None:
    """Strangers' configs may refer to their own entries, as `${model.params.n_embed}`, only.

    Functions as in `${oc.env:HOME}` could put what the environment holds into file names.
    """
    several = 0
    for place, text in entries(OmegaConf.to_container(config)):
        if isinstance(text, str) and "${" in text:
            if _names_resolver(text):
                raise UserError(
                    f"{as_key(place)} in {path}: '{text}' calls a function, which is off in "
                    "configs of runs that were not made on this machine; write the value out, or "
                    f"give it as {as_key(place)}=..."
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
    if not value.strip():
        raise UserError(f"override '{text}' gives no value; write {key}=null for none")
    config = _parsed_override(text, key, value)
    for place, entry in entries(OmegaConf.to_container(config)):
        if entry == MISSING:  # merging would leave it out
            raise UserError(f"override '{text}' leaves a value open: add {as_key(place)}=...")
    return config


def _parsed_override(text: str, key: str, value: str) -> DictConfig:
    try:
        cut = _COMMENT.search(value) and not value.startswith(("'", '"'))  # YAML would leave it out
        if cut or _READ_OTHERWISE.fullmatch(value.strip()):
            config = OmegaConf.create()
            OmegaConf.update(config, key, value, force_add=True)
            return config
        check_numbers(f"override '{text}'", value)
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


def as_key(place: Place) -> str:
    """A place in a config as overrides write it."""
    return ".".join(map(str, place))


def entries(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """All entries of a tree of dicts and lists, with what lies in them."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        yield (*place, key), value
        if isinstance(value, dict | list):
            yield from entries(value, (*place, key))
