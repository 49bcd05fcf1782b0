"""What decides a model's indices, so that codes and models of the same stages are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taming.checkpoint.fingerprint import weights_hash
from taming.models.code_sampling import CodeSampling
from taming.models.first_stage import FirstStage, index_count, tensors_of
from taming.user_code import name_of

Tensors = Mapping[str, Tensor]


def describe_first_stage(stage: FirstStage, weights: Tensors | None = None) -> dict[str, Any]:
    """What decides the codes of images; `weights` are the stage's own by default."""
    state = tensors_of(stage) if weights is None else weights
    return {
        "class": name_of(type(stage)),
        "n_codes": index_count(stage),
        "weights": weights_hash(state),
    }


def describe_condition(
    model: CodeSampling, weights: Tensors | None = None
) -> dict[str, Any] | None:
    """What decides the codes of conditions; None of unconditional models.

    Stages without weights, such as `CoordStage`, are told apart by their settings.
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
        "settings": {} if state else _settings(stage),
        "downsample_cond_size": model.downsample_cond_size,
    }


def _settings(stage: object) -> dict[str, Any]:
    """The plain values among a stage's public attributes."""
    return {
        name: value
        for name, value in sorted(vars(stage).items())
        if isinstance(value, bool | int | float | str) and name[0] != "_" and name != "training"
    }
