"""What the names in configs are trusted with; see `taming.trust`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from taming.config_files import DEEPEST, MOST_ENTRIES, Part, Place, as_key, entries
from taming.errors import UserError
from taming.trust import canonical_name, is_dotted

# Parameters that say where the callbacks and loggers of Lightning write.
_OUTPUTS = {"ckptdir", "cfgdir", "default_root_dir", "dirpath", "log_dir", "logdir", "path"}
_OUTPUTS |= {"root_dir", "save_dir", "sub_dir", "weights_save_path"}


def check_trusted(merged: DictConfig, parts: Sequence[Part], sections: Sequence[str]) -> None:
    """Refuse targets in `sections` that the config which they come from is not trusted with.

    Nothing of what they name is imported.

    Raises:
        UserError: for such a target, and for strangers' configs that say where to write.
    """
    origins: dict[Place, Part] = {}
    for part in parts:
        origins |= dict.fromkeys(
            [place for place, _ in entries(OmegaConf.to_container(part.config))], part
        )
    # What interpolations bring to a place comes from anywhere.
    strictest = next((part for part in parts if not part.trust.own), parts[-1] if parts else None)
    foreign: dict[Place, str] = {}  # losses
    for place, value in _resolved(merged, sections):
        origin = origins.get(place, strictest)
        if isinstance(value, str) and origin is not None:
            if _is_foreign_loss(place, value, origin):
                foreign.setdefault(place[: place.index("lossconfig") + 1], value)
                continue
            _check_name(place, value, origin)
            if not origin.trust.own and place[0] == "lightning":
                _check_output(place, value, origin)
    for place, target in foreign.items():
        loss = {"target": "taming.modules.losses.base.MissingLoss", "params": {"target": target}}
        OmegaConf.update(merged, as_key(place), loss, merge=False)


def _is_foreign_loss(place: Place, value: str, origin: Part) -> bool:
    """Whether this names a loss of a stranger's package; models are used without."""
    named = place[-1] == "target" and "lossconfig" in place and is_dotted(value)
    return named and not origin.trust.own and not origin.trust.allows(canonical_name(value))


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


def _resolved(config: DictConfig, sections: Sequence[str]) -> Iterator[tuple[Place, Any]]:
    """The entries of some sections, interpolations replaced by what they stand for."""
    pending: list[tuple[Place, Any, Any]] = [((key,), config, key) for key in sections]
    count = 0
    while pending:
        place, node, key = pending.pop()
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException as error:
            if not str(place[-1]).endswith("target"):
                continue  # an interpolation of nothing, or of a stage that is a run so far
            reason = str(error).splitlines()[0]
            raise UserError(f"{as_key(place)}: {reason}") from None
        except RecursionError:
            raise UserError(f"{as_key(place)} refers to itself") from None
        count += 1
        if len(place) > DEEPEST or count > MOST_ENTRIES:
            raise UserError(f"{as_key(place[:4])}... is nested too deeply, or refers to itself")
        yield place, value
        if isinstance(value, DictConfig):
            pending += [((*place, name), value, name) for name in value]
        elif isinstance(value, ListConfig):
            pending += [((*place, i), value, i) for i in range(len(value))]
