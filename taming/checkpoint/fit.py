"""Why a checkpoint does not fit a model, or what of it was used, in words that name the config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from taming.errors import UserError

Shapes = Mapping[str, Sequence[int]]

# Numbered parts whose count the config sets: (stage, number) of a name, and the config key.
_STAGE = r"((?:first_stage_model\.|cond_stage_model\.|transformer\.)?)"
_COUNTS = (
    (_STAGE + r"blocks\.(\d+)\..*", "n_layer"),
    (_STAGE + r"encoder\.down\.(\d+)\..*", "the length of ddconfig.ch_mult"),
    (_STAGE + r"encoder\.down\.\d+\.block\.(\d+)\..*", "ddconfig.num_res_blocks"),
    (_STAGE + r"encoder\.(down\.\d+)\.attn\..*", "the number of levels in attn_resolutions"),
)

# (end of a name, dimension of its shape, config key that sets it), the surest sign first.
_SIZES = (
    (r"tok_emb\.weight", 1, "n_embd"),
    (r"tok_emb\.weight", 0, "vocab_size"),
    (r"pos_emb", 1, "block_size"),
    (r"quantize\.(embedding|embed)\.weight", 0, "n_embed"),
    (r"quantize\.(embedding|embed)\.weight", 1, "embed_dim"),
    (r"quantize\.used", 0, "the number of codes in remap"),
    (r"colorize", 1, "n_labels (or colorize_nlabels)"),
    (r"encoder\.conv_in\.weight", 0, "ddconfig.ch"),
    (r"encoder\.conv_in\.weight", 1, "ddconfig.in_channels"),
    (r"decoder\.conv_out\.weight", 0, "ddconfig.out_ch"),
    (r"decoder\.conv_in\.weight", 1, "ddconfig.z_channels"),
    (r"encoder\.conv_out\.weight", 0, "z_channels (twice that with double_z)"),
    (r"(encoder|decoder)\..*", 0, "a width by ddconfig.ch and ch_mult"),
    (r"discriminator\.main\.0\.weight", 1, "lossconfig.params.disc_in_channels"),
    (r"discriminator\.main\.0\.weight", 0, "lossconfig.params.disc_ndf"),
    (r"discriminator\..*", 0, "a width by lossconfig.params.disc_num_layers and disc_ndf"),
    (r"C", 0, "ncluster"),
)

_CONFIG_PATHS = {
    "first_stage_model.": "first_stage_config.params.",
    "cond_stage_model.": "cond_stage_config.params.",
    "transformer.": "transformer_config.params.",
}


def misfit(
    source: object, given: Shapes, own: Shapes, missing: Sequence[str], excess: Sequence[str]
) -> UserError | None:
    """The error for weights of shapes `given` in a model of shapes `own`, None if they fit.

    `missing` and `excess` are the names of needed tensors that one side lacks.
    """
    told = _wrong_kind(given, own)
    if told is None and (missing or excess):
        told = _wrong_count(given, own)
    told = told or _wrong_shape(given, own)
    if told is None and (missing or excess):
        told = "; ".join([*groups(missing, "missing"), *groups(excess, "unknown")])
    return UserError(f"{source} does not fit the config: {told}") if told else None


def _wrong_kind(given: Iterable[str], own: Iterable[str]) -> str | None:
    kinds = _kind(given), _kind(own)
    if kinds == ("first stage", "transformer"):
        return (
            "it is a first stage, and the config's model a transformer; give a transformer's, or "
            "name this one in first_stage_config.params.ckpt_path"
        )
    if kinds == ("transformer", "first stage"):
        return (
            "it is a transformer, and the config's model a first stage; take its first stage out "
            "with scripts/extract_submodel.py IN OUT first_stage_model"
        )
    return None


def _kind(names: Iterable[str]) -> str:
    heads = {name.partition(".")[0] for name in names}
    if "transformer" in heads:
        return "transformer"
    return "first stage" if {"encoder", "decoder"} <= heads else ""


def _wrong_count(given: Shapes, own: Shapes) -> str | None:
    sides = [set(_numbers(_STAGE + r"(encoder|blocks)\..*", names)) for names in (given, own)]
    stages = sides[0] & sides[1]
    for pattern, key in _COUNTS:
        theirs, ours = _numbers(pattern, given), _numbers(pattern, own)
        for stage in stages:
            counts = len(ours.get(stage, ())), len(theirs.get(stage, ()))
            if counts[0] != counts[1]:
                return _is_but(stage, key, *counts)
    return None


def _numbers(pattern: str, names: Iterable[str]) -> dict[str, set[str]]:
    """What `pattern` captures second, by the stage that it captures first."""
    found: dict[str, set[str]] = {}
    for name in names:
        if match := re.fullmatch(pattern, name):
            found.setdefault(match[1], set()).add(match[2])
    return found


def _wrong_shape(given: Shapes, own: Shapes) -> str | None:
    wrong = [name for name in own if name in given and tuple(given[name]) != tuple(own[name])]
    for pattern, dimension, key in _SIZES:
        for name in wrong:
            if not re.fullmatch(r"(.*\.)?" + pattern, name) or dimension >= len(own[name]):
                continue
            theirs, ours = given[name][dimension : dimension + 1], own[name][dimension]
            if tuple(theirs) != (ours,):
                told = _is_but(name, key, ours, *theirs)
                return f"{told} ('{name}' has shape {list(given[name])})"
    for name in wrong:
        return f"'{name}' has shape {list(given[name])}, but the config makes it {list(own[name])}"
    return None


def _is_but(name: str, key: str, ours: int, *theirs: int) -> str:
    place = next((path for stage, path in _CONFIG_PATHS.items() if name.startswith(stage)), "")
    spaced = key.startswith(("the ", "a "))
    where = f"{key} in {place.rstrip('.')}" if spaced and place else place + key
    return f"{where} is {ours}, but {theirs[0] if theirs else 'something else'} in the checkpoint"


def groups(names: Sequence[str], what: str) -> list[str]:
    """`["discriminator: 24 keys missing (main.0.weight ...)", ...]`, one entry per part."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(_part(name), []).append(name)
    return [
        f"{part}: {len(keys)} {'key' if len(keys) == 1 else 'keys'} {what} "
        f"({keys[0]}{' ...' if len(keys) > 1 else ''})"
        for part, keys in parts.items()
    ]


def _part(name: str) -> str:
    """What a reader calls the part of the model that a tensor belongs to."""
    parts = name.split(".")
    stage = [parts.pop(0)] if f"{parts[0]}." in _CONFIG_PATHS and len(parts) > 1 else []
    if parts[0] == "loss" and len(parts) > 1:
        parts.pop(0)
    return ".".join([*stage, parts[0]])
