"""Folders of models as hubs have them: weights, and a `config.json` instead of a YAML."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from taming.errors import UserError
from taming.user_files import YAMLS, read_text

CONFIG = "config.json"
# The weights' file, in the order of preference.
WEIGHTS = tuple(
    f"{name}{ending}"
    for ending in (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    for name in ("diffusion_pytorch_model", "model", "pytorch_model")
)
PUSHED = "model.safetensors"  # by `taming push`, beside a YAML
_TARGET = "taming.models.vqgan.VQModel"
_OWN: tuple[str, ...] = ("ddconfig", "n_embed", "embed_dim", "remap", "sane_index_shape", "legacy")
_OWN += ("image_key", "colorize_nlabels", "revive_after")
_DDCONFIG: tuple[str, ...] = (
    "double_z",
    "z_channels",
    "resolution",
    "in_channels",
    "out_ch",
    "ch",
    "ch_mult",
)
_DDCONFIG += ("num_res_blocks", "attn_resolutions", "dropout", "resamp_with_conv", "attn_type")
_DDCONFIG += ("norm_groups", "decoder_ch_mult", "give_pre_end")
_USUAL_GROUPS = 32  # of diffusers as well


def snapshot_in(folder: Path) -> Path:
    """The folder with a model's files, in the folder that a cache of the hub keeps for the model.

    It is the revision that `refs/main` names, or the only one. Any other path is returned.
    """
    revisions = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    main = folder / "refs" / "main"
    named = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    found = [path for path in revisions if path.name == named] or revisions
    return found[0] if len(found) == 1 else folder


def preferred(files: Collection[str]) -> tuple[str, ...]:
    """The names of `WEIGHTS`, in the order of preference in a folder of these files.

    What was pushed into a repository with a model of diffusers is the newer one.
    """
    pushed = PUSHED in files and any(Path(file).suffix in YAMLS for file in files)
    return (PUSHED, *WEIGHTS) if pushed else WEIGHTS


def read_config(path: Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a model's config: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} cannot be read as a model's config: it has no keys")
    return config


def is_own_config(config: Mapping[str, Any]) -> bool:
    """Whether it is laid out as our YAMLs are."""
    model = config.get("model")
    return isinstance(model, Mapping) and "target" in model


def model_section(path: Path) -> dict[str, Any]:
    """The `model` section of a run for a hub's `config.json`.

    It may be of a `diffusers.VQModel`, or hold the arguments of a VQModel, with or without a
    `ddconfig` around those of encoder and decoder.

    Raises:
        UserError: for configs of other models.
    """
    config = read_config(path)
    if config.get("quantizer_config"):  # names in it would not be what the file is trusted with
        raise UserError(
            f"{path} has a quantizer_config, which is read from YAMLs alone; name that of these "
            "weights with --base (in Python: base=[...])"
        )
    try:
        if config.get("_class_name") == "VQModel":
            return {"target": _TARGET, "params": params_from_diffusers(config, path)}
        if "ddconfig" in config:
            return {"target": _TARGET, "params": {k: config[k] for k in _OWN if k in config}}
        if {"ch_mult", "z_channels", "n_embed"} <= config.keys():
            ddconfig = {key: config[key] for key in _DDCONFIG if key in config}
            sizes = {key: config[key] for key in ("n_embed", "embed_dim") if key in config}
            return {"target": _TARGET, "params": {"ddconfig": ddconfig, **sizes}}
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path} is no complete config of a VQModel ({error})") from None
    kind = config.get("_class_name") or config.get("architectures") or config.get("model_type")
    raise UserError(
        f"{path} is of {kind or 'another model'}, not of a VQModel; name the YAML of these weights "
        "with --base (in Python: base=[...])"
    )


def params_from_diffusers(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The params of a VQModel that is like the `diffusers.VQModel` of a config.

    Raises:
        UserError: for what has no counterpart here.
    """
    if config.get("norm_type", "group") != "group":
        raise UserError(f"{path}: only group normalization has a counterpart here")
    if (act := config.get("act_fn", "silu")) not in ("silu", "swish"):
        raise UserError(f"{path}: act_fn is {act}, and only silu has a counterpart here")
    widths, resolution = config["block_out_channels"], config["sample_size"]
    levels = range(len(widths))
    attention = [i for i in levels if config["down_block_types"][i].startswith("Attn")]
    middle = config.get("mid_block_add_attention", True)
    groups = config.get("norm_num_groups", _USUAL_GROUPS)
    if attention and not middle:
        raise UserError(f"{path}: attention in levels, but not in the middle, is not known here")
    return {
        "n_embed": config["num_vq_embeddings"],
        "embed_dim": config.get("vq_embed_dim") or config["latent_channels"],
        "ddconfig": {
            "double_z": False,
            "z_channels": config["latent_channels"],
            "resolution": resolution,
            "in_channels": config["in_channels"],
            "out_ch": config["out_channels"],
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [resolution // 2**level for level in attention],
            "dropout": 0.0,
            **({} if groups == _USUAL_GROUPS else {"norm_groups": groups}),
            **({} if middle else {"attn_type": "none"}),
        },
    }
