"""What a model computes with beside its tensors: settings that the same weights leave open.

Two models of the same names and shapes may differ in the groups of a normalization, in how codes
are compared, or in the levels that numbers are rounded to; such settings are attributes of modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from taming.checkpoint.names import OPTIONAL, REVIVAL, ends_in

# Modules that only training uses.
_OF_TRAINING = ("Dropout", "EmbeddingEMA", "IdleCodes", "ClusteredCodes", "ScaleRevival")
# Attributes that only training reads, that tell how indices are laid out, or of which shapes tell.
_LEFT_OUT = {"training", "checkpoints", "beta", "legacy", "decay", "revive_after", "kl_weight"}
_LEFT_OUT |= {"temperature", "straight_through", "momentum", "sparse", "scale_grad_by_freq"}
_LEFT_OUT |= {"sane_index_shape", "use_vqinterface", "quantize_interface", "last_z_shape"}
_LEFT_OUT |= {"resolution", "z_shape", "num_resolutions", "num_res_blocks", "temb_ch", "ch"}
_LEFT_OUT |= {"in_channels", "out_channels", "kernel_size", "in_features", "out_features"}
_LEFT_OUT |= {"num_channels", "num_embeddings", "embedding_dim", "num_features", "e_dim", "n_e"}
_LEFT_OUT |= {"re_embed", "n_embed", "embed_dim", "num_hiddens", "num_tokens", "codebook_dim"}
_REMAP = ("remap", "unknown_index")  # a file here, whose content is among the tensors; and without
# How configs name what attributes are set by.
_OPTIONS = {"GroupNorm.num_groups": "ddconfig.norm_groups", "Phi.ratio": "quant_resi"}
_OPTIONS |= {"Decoder.give_pre_end": "ddconfig.give_pre_end"}


def forward_settings(model: nn.Module) -> dict[str, Any]:
    """Plain values of a model's parts, as JSON has them, by `<class>.<attribute>`.

    Parts of one class that differ have a list of their values, each once. What the model's own
    attributes say is of its training, and left out, as are losses and averages.
    """
    found: dict[str, list[Any]] = {}
    for module in _parts(model):
        for name, value in _settings(module):
            values = found.setdefault(f"{type(module).__name__}.{name}", [])
            if value not in values:
                values.append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in sorted(found.items())}


def option_of(setting: str) -> str:
    """How a config names a key of `forward_settings`."""
    return _OPTIONS.get(setting, setting.rpartition(".")[2])


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first setting that both say, and say differently."""
    return next((key for key in one if key in other and one[key] != other[key]), None)


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        training = f"{name}.".startswith(OPTIONAL) or ends_in(name, REVIVAL)
        if name and not training and type(module).__name__ not in _OF_TRAINING:
            yield module


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    attributes = vars(module)
    remapped = attributes.get("remap") is not None
    for name, value in attributes.items():
        if name == "remap":
            yield name, remapped
        elif name[0] == "_" or name in _LEFT_OUT or (name in _REMAP and not remapped):
            continue
        elif isinstance(value, bool | int | float | str):
            yield name, value
        elif isinstance(value, tuple) and all(isinstance(x, int | float | str) for x in value):
            yield name, list(value)
