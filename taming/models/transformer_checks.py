"""Whether the parts of a transformer's config fit together."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from torch import nn

from taming.distributed import is_first_process
from taming.errors import UserError
from taming.models.batch_checks import token_count
from taming.models.code_sampling import CodeSampling
from taming.models.codes import CodesInterface, level_sizes
from taming.models.first_stage import EncodingStage, index_count
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.permuter import AbstractPermuter, Identity
from taming.modules.transformer.plain import block_size_of, check_transformer, vocabulary_of
from taming.user_code import name_of

log = logging.getLogger(__name__)
_said: WeakSet[nn.Module] = WeakSet()  # models of which it was said already


def declared_vocabulary(transformer: nn.Module, config: Mapping[str, Any]) -> int:
    """How many tokens a transformer has: `config.vocab_size`, or that of the params it is made of.

    Raises:
        UserError: if neither tells, or it is nothing that can be trained and sampled.
    """
    key = "transformer_config"
    check_transformer(transformer, key)
    size = vocabulary_of(transformer)
    if size is None:
        size = (config.get("params") or {}).get("vocab_size")
    if not isinstance(size, int):
        raise UserError(
            f"{key}: {name_of(type(transformer))} must tell how many tokens it has, by a parameter "
            "vocab_size or an attribute config with one"
        )
    return size


def check_config_fits(model: CodeSampling) -> None:
    """Look at a model that has all of its parts.

    Raises:
        UserError: if the vocabulary is too small for the codes or classes, or `cond_drop` or an
            option of the GPT do not fit the condition.
    """
    _check_parts(model)
    _check_vocabulary(model)
    _check_cond_drop(model)
    if model.masked:
        _check_masked(model)
    _check_order(model)
    if isinstance(model.transformer, GPT):
        _check_variants(model)


def _check_parts(model: CodeSampling) -> None:
    """Of stages and permuters of a user's, which need not inherit from anything."""
    first, condition, permuter = model.first_stage_model, model.cond_stage_model, model.permuter
    try:
        index_count(first)
    except AttributeError as error:
        raise UserError(
            f"first_stage_config: {name_of(type(first))} is no first stage with a codebook: {error}"
        ) from None
    for name, stage in (("first_stage_config", first), ("cond_stage_config", condition)):
        if levels := level_sizes(stage.quantize) if isinstance(stage, CodesInterface) else {}:
            raise UserError(
                f"{name}: {name_of(type(stage))} gives codes of {len(levels)} levels, "
                f"{', '.join(levels)}, and a transformer predicts a grid of one; take a first "
                "stage of one level, such as a VQModel with its own codebook"
            )
    if not isinstance(condition, EncodingStage):
        raise UserError(
            f"cond_stage_config: {name_of(type(condition))} must have a method encode(c), which "
            "returns (codes, loss or None, (_, _, indices))"
        )
    bases = (nn.Module.forward, AbstractPermuter.forward)
    unfinished = isinstance(permuter, nn.Module) and type(permuter).forward in bases
    if unfinished or not callable(permuter):
        raise UserError(
            f"permuter_config: {name_of(type(permuter))} must be a function of indices [B, n] and "
            "reverse=False, a method forward(x, reverse=False) of a module or __call__"
        )


def _check_vocabulary(model: CodeSampling) -> None:
    size = model.vocab_size
    classes = model.n_classes or 0
    start = model.sos_token + 1 if model.be_unconditional else 0
    needs = {"codes of the first stage": model.n_codes, "classes": classes}
    needs[f"tokens up to sos_token: {model.sos_token}"] = start
    if not model.be_unconditional:
        needs["tokens of the condition stage"] = token_count(model.cond_stage_model)
    for what, needed in needs.items():
        if needed > size:
            raise UserError(
                f"transformer_config.params.vocab_size is {size}, too small for the {needed} "
                f"{what}; make it at least {needed}"
            )


def _check_cond_drop(model: CodeSampling) -> None:
    if not 0 <= model.cond_drop < 1:
        raise UserError(f"cond_drop is a share, from 0 to below 1, not {model.cond_drop}")
    if model.cond_drop and model.be_unconditional:
        raise UserError("cond_drop is for conditions, and this model has none; leave it out")
    classes = model.n_classes or 0
    if model.cond_drop and classes > model.null_token:
        raise UserError(
            "cond_drop needs a token that is no class: make "
            f"transformer_config.params.vocab_size at least {classes + 1}"
        )


def _check_order(model: CodeSampling) -> None:
    order, permuter = model.reading.order, model.permuter
    one = type(permuter).__name__
    if order == "permuter" and isinstance(permuter, Identity):
        raise UserError("order: permuter needs a permuter_config, which says what order that is")
    if order not in (None, "permuter") and not isinstance(permuter, Identity):
        raise UserError(
            f"order is {order}, but permuter_config has one order, {one}; leave one of the two out"
        )
    if model.reading.anneal is not None and order != "annealed":
        raise UserError("anneal is for order: annealed; leave it out")
    if not model.reading.any:
        if model.reading.by_rows is not None:
            raise UserError("raster_share is for order: random or annealed; leave it out")
        return
    gpt = model.transformer
    if not isinstance(gpt, GPT) or not gpt.config.target_positions:
        raise UserError(
            f"order: {order} is for GPTs that are told which position to predict; set "
            "transformer_config.params.target_positions to true"
        )
    if model.pkeep <= 0:
        raise UserError(f"order: {order} reads codes; make pkeep 1, not {model.pkeep}")
    _check_no_teacher(model, f"order: {order}")


def _check_masked(model: CodeSampling) -> None:
    what = "transformer_config.params.attention: full"
    if model.reading.order is not None or not isinstance(model.permuter, Identity):
        raise UserError(f"{what} has no order; leave order and permuter_config out")
    if model.mask_token < model.n_codes:
        raise UserError(
            f"{what} needs a token for what is masked, behind the codes: make "
            f"transformer_config.params.vocab_size at least {model.n_codes + 1}, not "
            f"{model.vocab_size}"
        )
    if model.pkeep != 1:
        raise UserError(f"{what} masks codes instead of pkeep: {model.pkeep}; leave pkeep out")
    _check_no_teacher(model, what)


def _check_no_teacher(model: CodeSampling, what: str) -> None:
    if model.ways.teacher is not None:
        raise UserError(f"a teacher reads in one order, and this model has {what}; leave one out")


def _check_variants(model: CodeSampling) -> None:
    config, classes = model.transformer.config, model.n_classes
    if config.adaln_classes and config.adaln_classes != classes:
        raise UserError(
            f"transformer_config.params.adaln_classes is {config.adaln_classes}, and the condition "
            + (f"has {classes} classes; make it {classes}" if classes else "is no class; make it 0")
        )
    if config.rope_grid is not None and not isinstance(model.permuter, Identity):
        raise UserError(
            "transformer_config.params.rope_grid is for codes in the order of rows; leave it or "
            "permuter_config out"
        )


def check_tokens(model: CodeSampling, highest: int) -> None:
    """Refuse (`UserError`) tokens of conditions, up to `highest`, beyond the vocabulary."""
    if highest >= (size := model.vocab_size):
        raise UserError(
            f"transformer_config.params.vocab_size is {size}, and the conditions of the codes "
            f"have token {highest}; make it at least {highest + 1}"
        )


def check_sequence(model: CodeSampling, shape: Sequence[int], condition: int | None) -> None:
    """Refuse sequences that the transformer was not built for, and say if samples will be of
    another size.

    Args:
        shape: (rows, columns) of an image's codes.
        condition: tokens of its condition, where they are known.

    Raises:
        UserError: for too many tokens, and what `variants.check_layout` refuses.
    """
    codes, length = math.prod(shape), condition or 1
    needed = length + codes - (not model.masked)  # the last code of an order predicts nothing
    if needed > (size := block_size_of(model.transformer)):
        raise UserError(
            f"transformer_config.params.block_size is {size}, too small for {codes} tokens of "
            f"an image and {length} of its condition; make it at least {needed}"
        )
    model.check_layout(condition, shape)
    _say_other_size(model, shape)


def grid_of(model: CodeSampling) -> tuple[int, int] | None:
    """(rows, columns) of codes by which a GPT turns queries and keys, if it does."""
    config = model.transformer.config if isinstance(model.transformer, GPT) else None
    if config is None or config.rope_grid is None:
        return None
    rows, columns = config.rope_grid
    return rows, columns


def trained_shape(model: CodeSampling) -> tuple[int, int]:
    """(height, width) in tokens of the images that the model was trained on, which samples have by
    default."""
    if (grid := grid_of(model)) is not None:
        return grid
    _, height, width = model.latent_shape()
    return height, width


def _say_other_size(model: CodeSampling, shape: Sequence[int]) -> None:
    """One line, once, if images are of another size than that which samples have by default."""
    with suppress(UserError):  # of a first stage of the user's, which may not know
        trained = trained_shape(model)
        if tuple(shape) == trained or model in _said or not is_first_process():
            return
        _said.add(model)
        height, width = (model.first_stage_model.downsampling_factor * side for side in shape)
        log.warning(
            "images of %d x %d pixels make %d x %d codes, and samples will have %d x %d, of the "
            "first stage's own size: sample with --size %d,%d, or set "
            "model.params.first_stage_config.params.ddconfig.resolution",
            *(height, width, *shape, *trained, height, width),
        )
