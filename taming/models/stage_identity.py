"""What decides a model's indices, so that codes and models of the same stages are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from taming.checkpoint.fingerprint import weights_hash
from taming.models.code_sampling import CodeSampling
from taming.models.first_stage import FirstStage, index_count, tensors_of
from taming.models.forward_settings import differing, forward_settings, option_of
from taming.user_code import name_of

Tensors = Mapping[str, Tensor]


def describe_first_stage(stage: FirstStage, weights: Tensors | None = None) -> dict[str, Any]:
    """What decides the codes of images; `weights` are the stage's own by default.

    The same weights may be those of other codes: `settings` tell them apart (FSQ, which has no
    weights, by its levels), and the class of the `quantizer`.
    """
    state = tensors_of(stage) if weights is None else weights
    return {
        "class": name_of(type(stage)),
        "n_codes": index_count(stage),
        "weights": weights_hash(state),
        "quantizer": name_of(type(stage.quantize)),
        "settings": _settings(stage),
    }


def difference(stored: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Of two descriptions of a stage: what differs, other than weights, and both values.

    What one of them does not say is no difference: earlier versions said less.
    """
    settings = [dict(each.get("settings") or {}) for each in (stored, own)]
    if (key := differing(*settings)) is not None:
        return option_of(key), settings[0][key], settings[1][key]
    names = [name for name in own if name not in ("settings", "weights") and name in stored]
    name = next((name for name in names if stored[name] != own[name]), None)
    return None if name is None else (name, stored[name], own[name])


def describe_condition(
    model: CodeSampling, weights: Tensors | None = None
) -> dict[str, Any] | None:
    """What decides the codes of conditions; None of unconditional models.

    Stages without weights, such as `CoordStage`, are told apart by their settings alone.
    """
    if model.be_unconditional:
        return None
    stage = model.cond_stage_model
    state = tensors_of(stage) if weights is None else weights
    return {
        "key": model.cond_stage_key,
        "kind": model.condition_kind,
        "class": name_of(type(stage)),
        "weights": weights_hash(state) if state else None,
        "settings": _settings(stage),
        "downsample_cond_size": model.downsample_cond_size,
    }


def _settings(stage: object) -> dict[str, Any]:
    """Those of a stage's parts; of one without weights, the plain values of its public
    attributes."""
    if isinstance(stage, nn.Module) and stage.state_dict():
        return forward_settings(stage)
    return {
        name: value
        for name, value in sorted(vars(stage).items())
        if isinstance(value, bool | int | float | str) and name[0] != "_" and name != "training"
    }
