"""Explanations, naming keys of the config, of why a checkpoint does not fit a model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from taming.errors import UserError
from taming.shipped import script

Tensors = Mapping[str, Tensor]

# Numbered parts whose count the config sets: (stage, number) of a name, and the config key.
_STAGE = r"((?:first_stage_model\.|cond_stage_model\.|transformer\.)?)"
_COUNTS = (
    (_STAGE + r"blocks\.(\d+)\..*", "n_layer"),
    (_STAGE + r"encoder\.down\.(\d+)\..*", "the length of ddconfig.ch_mult"),
    (_STAGE + r"encoder\.down\.\d+\.block\.(\d+)\..*", "ddconfig.num_res_blocks"),
    (_STAGE + r"encoder\.(down\.\d+)\.attn\..*", "the number of levels in attn_resolutions"),
)

# (end of a name, dimension of its shape, config key that sets it), the most specific first.
_SIZES = (
    (r"tok_emb\.weight", 1, "n_embd"),
    (r"tok_emb\.weight", 0, "vocab_size"),
    (r"blocks\.0\.attn\.mask", 2, "block_size"),
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

# Tensors, and their dimensions, by which options of a GPT are seen; the first ones each GPT has.
_OF_EACH = {"pos_emb": 3, "blocks.0.mlp.0.weight": 2, "blocks.0.mlp.2.weight": 2}
_TELLING = {
    **_OF_EACH,
    "blocks.0.attn.mask": 4,
    "blocks.0.attn.query_gain": 1,
    "class_emb.weight": 2,
    "ln_f.bias": 1,
    "target_emb": 3,
}

_CONFIG_PATHS = {
    "first_stage_model.": "first_stage_config.params.",
    "cond_stage_model.": "cond_stage_config.params.",
    "transformer.": "transformer_config.params.",
}


def misfit(
    source: object, file: Tensors, model: Tensors, missing: Sequence[str], excess: Sequence[str]
) -> UserError | None:
    """The error for a file's tensors in a model; None if they fit.

    `missing` and `excess` are the names of needed tensors that the file or the model lacks.
    """
    difference = _wrong_kind(file, model)
    if difference is None and (missing or excess):
        difference = _wrong_count(file, model)
    difference = difference or _wrong_variant(file, model) or _wrong_shape(file, model)
    if difference is None and (missing or excess):
        difference = "; ".join([*groups(missing, "missing"), *groups(excess, "unknown")])
        difference += _parts_alone(file, model) if difference else ""
    return UserError(f"{source} does not fit the config: {difference}") if difference else None


def _wrong_kind(file: Iterable[str], model: Iterable[str]) -> str | None:
    kinds = _kind(file), _kind(model)
    if kinds == ("first stage", "transformer"):
        return (
            "it is a first stage, and the config's model a transformer; give a transformer's, or "
            "name this one in first_stage_config.params.ckpt_path"
        )
    if kinds == ("transformer", "first stage"):
        kind = "transformer" if any(n.startswith("transformer.") for n in file) else "larger model"
        return (
            f"it is a {kind}, and the config's model a first stage; take its first stage out "
            f"with {script('extract_submodel')} IN OUT first_stage_model"
        )
    return None


def _parts_alone(file: Tensors, model: Tensors) -> str:
    """How to load a file that has whole parts of the model, and no others; else nothing."""
    heads = sorted({name.partition(".")[0] for name in model})
    parts = [head for head in heads if any(name.startswith(f"{head}.") for name in file)]
    names = set(file)
    if not parts:  # those of one part alone, such as `conv_in.weight` of the encoder's
        parts = [head for head in heads if {f"{head}.{name}" for name in file} <= model.keys()][:1]
        names = {f"{head}.{name}" for name in file for head in parts}
    wanted = {name for name in model if name.startswith(tuple(f"{part}." for part in parts))}
    if not parts or wanted != names:
        return ""
    return (
        f"; to load {', '.join(parts)} alone, and leave the rest at its random start, add "
        f"--parts {','.join(parts)} (in Python: parts={parts})"
    )


def _kind(names: Iterable[str]) -> str:
    heads = {name.partition(".")[0] for name in names}
    if heads & {"transformer", "first_stage_model"}:
        return "transformer"
    return "first stage" if {"encoder", "decoder"} <= heads else ""


def _wrong_count(file: Tensors, model: Tensors) -> str | None:
    stages_of_both = set(_numbers_by_stage(_STAGE + r"(encoder|blocks)\..*", file))
    stages_of_both &= set(_numbers_by_stage(_STAGE + r"(encoder|blocks)\..*", model))
    for pattern, key in _COUNTS:
        file_numbers, model_numbers = (_numbers_by_stage(pattern, side) for side in (file, model))
        for stage in stages_of_both:
            in_model, in_file = len(model_numbers[stage]), len(file_numbers[stage])
            if in_model != in_file:
                return _difference(stage, key, in_model, in_file)
    return None


def _numbers_by_stage(pattern: str, names: Iterable[str]) -> Mapping[str, set[str]]:
    """The second groups of `pattern` in the names, by its first group, the stage."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if match := re.fullmatch(pattern, name):
            numbers[match[1]].add(match[2])
    return numbers


def _wrong_variant(file: Tensors, model: Tensors) -> str | None:
    differences = [
        _difference(stage, key, wanted, found[key])
        for stage in ("", "transformer.")
        for found in [_variants(file, stage)]
        for key, wanted in _variants(model, stage).items()
        if found.get(key, wanted) != wanted
    ]
    return " and ".join(differences) or None


def _variants(tensors: Tensors, stage: str) -> dict[str, str]:
    """Options of the GPT whose names begin with `stage`, as far as its tensors tell of them."""
    found = {name: tensors[stage + name].shape for name in _TELLING if stage + name in tensors}
    shapes = {name: shape for name, shape in found.items() if len(shape) == _TELLING[name]}
    if not shapes.keys() >= _OF_EACH.keys():
        return {}
    classes = shapes["class_emb.weight"][0] - 1 if "class_emb.weight" in shapes else 0
    gated = shapes["blocks.0.mlp.0.weight"][0] == 2 * shapes["blocks.0.mlp.2.weight"][1]
    options = {
        "adaln_classes": str(classes),
        "mlp": "swiglu" if gated else "gelu",
        "qk_norm": "true" if "blocks.0.attn.query_gain" in shapes else "false",
    }
    if not classes:  # else normalizations have no parameters
        options["norm"] = "layer" if "ln_f.bias" in shapes else "rms"
    options["target_positions"] = "true" if "target_emb" in shapes else "false"
    if "blocks.0.attn.mask" in shapes:
        turned = _turned(shapes, tensors[f"{stage}blocks.0.attn.mask"])
        options["rope_grid"] = f"one of {turned} codes" if turned else "null"
    return options


def _turned(shapes: Mapping[str, Sequence[int]], mask: Tensor) -> int:
    """How many codes of a GPT have no learned position, by the shapes of `_TELLING`; see
    `GPTConfig.whole`."""
    size, learned = mask.shape[-1], shapes["pos_emb"][1]
    # Where the first position sees the last one, that is read, too; without values nothing tells.
    all_read = not mask.is_meta and size > 1 and bool(mask[0, 0, 0, -1])
    return 0 if learned == size else size + (not all_read) - learned


def _wrong_shape(file: Tensors, model: Tensors) -> str | None:
    shapes = {n: (list(file[n].shape), list(model[n].shape)) for n in model if n in file}
    wrong = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    for pattern, dimension, key in _SIZES:
        for name, (in_file, in_model) in wrong.items():
            if not re.fullmatch(r"(.*\.)?" + pattern, name) or dimension >= len(in_model):
                continue
            size = in_file[dimension] if dimension < len(in_file) else None
            if size != in_model[dimension]:
                difference = _difference(name, key, in_model[dimension], size)
                return f"{difference} ('{name}' has shape {in_file})"
    for name, (in_file, in_model) in wrong.items():
        return f"'{name}' has shape {in_file}, but the config makes it {in_model}"
    return None


def _difference(name: str, key: str, in_model: int | str, in_file: int | str | None) -> str:
    """`name`, of a tensor or a stage, says in which part of the config the key is."""
    place = next((path for stage, path in _CONFIG_PATHS.items() if name.startswith(stage)), "")
    spaced = key.startswith(("the ", "a "))
    where = f"{key} in {place.rstrip('.')}" if spaced and place else place + key
    other = "something else" if in_file is None else in_file
    return f"{where} is {in_model}, but {other} in the checkpoint"


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
    """The part of the model that a tensor belongs to, for example "first_stage_model.encoder"."""
    parts = name.split(".")
    stage = [parts.pop(0)] if f"{parts[0]}." in _CONFIG_PATHS and len(parts) > 1 else []
    if parts[0] == "loss" and len(parts) > 1:
        parts.pop(0)
    return ".".join([*stage, parts[0]])
