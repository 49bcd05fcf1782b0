"""Options that a run goes on with, or without, and what they keep beside the weights.

Counts and averages of options that are new begin when the run goes on, and those of options that
are gone are left out. What trains, and so has an optimizer's state, cannot come or go in a run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from taming.checkpoint.hub_names import is_hub_name
from taming.checkpoint.names import AVERAGES, KEPT_BY
from taming.checkpoint.runs import normal_path
from taming.config_before import OF_DDCONFIG, defaults_of
from taming.config_files import STAGES
from taming.errors import UserError
from taming.modules.transformer.permuter import Identity
from taming.trust import canonical_name, is_dotted

PERCEPTUAL = "perceptual_weight"
# What they keep, by names -> the option.
_KEPT_BY = {
    **{rf"(.*\.)?{re.escape(end)}": option for end, option in KEPT_BY.items()},
    r"(.*\.)?penalties\.lecam_means": "lecam_weight",
    r"(.*\.)?start\.(known|share_of_known)": "disc_start",
    rf"(.*\.)?{re.escape(AVERAGES)}.*": "use_ema",
    r"(.*\.)?perceptual_loss\..*": PERCEPTUAL,
}

# What the shapes of weights do not tell, and cannot change.
_OF_GPT = ("n_head", "rope_grid", "rope_condition", "norm", "attention", "n_unmasked")
_OF_QUANTIZER = ("levels", "symmetric", "scales", "using_znorm", "quant_resi")
_UNCHANGED = tuple(f"params.transformer_config.params.{name}" for name in _OF_GPT)
_UNCHANGED += tuple(f"params.{name}" for name in (*STAGES, "permuter_config"))
_SAME_AS_NONE = f"{Identity.__module__}.{Identity.__name__}"  # of permuters
# In first stages and quantizers, which are within each other.
_OF_STAGE: tuple[str, ...] = (
    "target",
    "params.ddconfig.norm_groups",
    "params.quantizer_config.target",
)
_OF_STAGE += tuple(f"params.{name}" for name in _OF_QUANTIZER)
# Where a run has started from: its checkpoints have the weights of all parts since.
_STARTS = ("params.ckpt_path", *(f"params.{stage}.params.ckpt_path" for stage in STAGES))


def check_unchanged(before: DictConfig, now: DictConfig) -> None:
    """Refuse (`UserError`) what would make another model of the same weights, and other weights to
    start from, which would have no effect.

    Defaults may be written out, and stages may have moved from where they were.
    """
    named = [f"model.{name}" for name in (*_UNCHANGED, *_STARTS)]
    for key in (*_of_stages(before.model, now.model), *named):
        was, is_now = _meant(before, key), _meant(now, key)
        start = key.endswith(".ckpt_path")
        if was == is_now or (start and (is_now is None or _is_moved(was, is_now))):
            continue
        advice = ", which has its weights already; start a new one" if start else ""
        raise UserError(f"{key} was {was} and is now {is_now}: it cannot change in a run{advice}")


def _of_stages(before: DictConfig, now: DictConfig, place: str = "model") -> Iterator[str]:
    """What cannot change of a part, and of the parts in it that both configs write out."""
    yield from (f"{place}.{name}" for name in _OF_STAGE)
    for name in (*STAGES, "quantizer_config"):
        parts = [OmegaConf.select(one, f"params.{name}") for one in (before, now)]
        if isinstance(parts[0], DictConfig) and isinstance(parts[1], DictConfig):
            yield from _of_stages(parts[0], parts[1], f"{place}.params.{name}")


def _meant(config: DictConfig, key: str) -> Any:
    """A value in a config, or what is meant where there is none; of a part's config its class."""
    value = OmegaConf.select(config, key)
    if isinstance(value, DictConfig):
        value = value.get("target")
    if value is None:
        place, _, name = key.rpartition(".")
        target = OmegaConf.select(config, f"{place.removesuffix('.params')}.target")
        target = OF_DDCONFIG if place.endswith(".ddconfig") else target
        value = defaults_of(str(target)).get(name)
    if isinstance(value, str) and is_dotted(value):
        name = canonical_name(value)
        return None if name == _SAME_AS_NONE else name
    return list(value) if isinstance(value, tuple) else value


def _is_moved(was: object, now: object) -> bool:
    """Whether a path is of the same file as another, or that is there no more."""
    if was is None or is_hub_name(str(was)):
        return False
    before, after = normal_path(str(was)), normal_path(str(now))
    return not before.exists() or before.resolve() == after.resolve()


@dataclass(frozen=True)
class Adapted:
    """A checkpoint's tensors as a model takes them, and the options that are new or gone."""

    state: dict[str, Tensor]
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def said(self, checkpoint: Path) -> str:
        """One line; "" if there is nothing to say."""
        parts = []
        if self.new:
            parts.append(f"{checkpoint} has nothing of {_words(self.new)} yet, which begins now")
        if self.gone:
            parts.append(f"what {_words(self.gone)} kept in {checkpoint} is left out")
        return "; ".join(parts)


def adapted(state: Mapping[str, Tensor], model: nn.Module) -> Adapted:
    """A checkpoint's `state_dict` with what new options of a model begin with, and without what
    those that are gone have kept.

    Counts begin as the model was built, averages of weights at the weights.
    """
    own = model.state_dict()
    new = {name: option for name in own.keys() - state.keys() if (option := _option(name))}
    gone = {name: option for name in state.keys() - own.keys() if (option := _option(name))}
    weights = {_averaged(name): tensor for name, tensor in state.items()}
    begun = {name: weights.get(name, own[name]).clone() for name in new}
    kept = {name: tensor for name, tensor in state.items() if name not in gone}
    there = {_option(name) for name in state}  # of these, a later version may keep more
    begins = [option for option in new.values() if option not in there]
    return Adapted({**kept, **begun}, _options(begins), _options(gone.values()))


def _averaged(name: str) -> str:
    """Where a weight's average is, see `LitEma`."""
    return f"{AVERAGES}{name.replace('.', '')}"


def _option(name: str) -> str | None:
    return next((option for kept, option in _KEPT_BY.items() if re.fullmatch(kept, name)), None)


def _options(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(found)))


def _words(options: tuple[str, ...]) -> str:
    return " and ".join(options)
