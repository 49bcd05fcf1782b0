"""Names of tensors as others save them -> those of a model of ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Tensors = Mapping[str, Tensor]  # by name

# What wrappers of modules add to names, anywhere in them: DistributedDataParallel, torch.compile,
# DeepSpeed and Fabric, FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_forward_module"}
WRAPPERS |= {"_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
OPTIONAL = ("loss.", "model_ema.")  # what only training needs
UNTRAINED = {"colorize"}  # random colors, of which one set is as good as another


@dataclass
class Renaming:
    """Tensors under a model's names, and what was left out of the names, for people."""

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def renamed(tensors: Tensors, own: Collection[str] | None) -> Renaming:
    """`tensors` by the names that a model has, of which `own` are given if they are known.

    Prefixes are left out if all weights have them and the model has not: `module.`, `_orig_mod.`,
    or any other module around it, also several of them. So are wrappers' names within names. Of an
    unknown model, wrappers' prefixes alone are.
    """
    names, prefix = {name: name for name in tensors}, ""  # new name -> the file's
    heads = {name.partition(".")[0] for name in own} if own is not None else None
    while (head := _common_head(names, tensors)) and _is_holder(head, heads):
        prefix += f"{head}."
        names = _without_head(names, head)
    kept = {part for name in own or () for part in name.split(".")}
    within = WRAPPERS - kept if own is not None else ()
    inner = {_without(name, within): old for name, old in names.items()}
    notes = [f"without the prefix '{prefix}'"] if prefix else []
    if len(inner) == len(names) and inner.keys() != names.keys():
        names = inner  # wrappers that tell two weights apart stay
        notes.append("without the names of wrappers")
    state = {name: tensors[old] for name, old in names.items()}
    if is_from_diffusers(state) and not is_from_diffusers(own or ()):
        state = names_from_diffusers(state)
        notes.append("by diffusers' names")
    return Renaming(state, notes)


def _without(name: str, parts: Collection[str]) -> str:
    """A name without these parts of it, but for the first and the last."""
    first, *path = name.split(".")
    middle = [part for part in path[:-1] if part not in parts]
    return ".".join([first, *middle, *path[-1:]])


def _is_holder(head: str, heads: Collection[str] | None) -> bool:
    return head in WRAPPERS if heads is None else head not in heads


def _common_head(names: Mapping[str, str], tensors: Tensors) -> str | None:
    """The first part of all names; losses and counters need not have it."""
    weights = [name for name, old in names.items() if not is_counter(name, tensors[old])]
    weights = [name for name in weights if not name.startswith(OPTIONAL)] or weights
    heads = {name.partition(".")[0] for name in weights}
    return heads.pop() if len(heads) == 1 and all("." in name for name in weights) else None


def is_counter(name: str, tensor: Tensor) -> bool:
    """Such as `n_averaged` of torch's averages, `num_updates` of latent diffusion's."""
    return "." not in name and tensor.numel() <= 1


def _without_head(names: Mapping[str, str], head: str) -> dict[str, str]:
    return {
        name.removeprefix(f"{head}."): old
        for name, old in names.items()
        if name.startswith((f"{head}.", *OPTIONAL))
    }


def squeezed(name: str) -> str:
    """A name without wrappers and dots, as averages of latent diffusion's are named."""
    return "".join(part for part in name.split(".") if part not in WRAPPERS)


# ---------------------------------------------------------------------- diffusers

# Names within an encoder or decoder, here and in diffusers, where they differ. Levels are numbered
# from the image, but in diffusers' decoder from the codes.
_BLOCK = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_ENDS = {"norm_out": "conv_norm_out"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_from_diffusers(names: Iterable[str]) -> bool:
    """Whether these are the names of a `diffusers.VQModel`."""
    return any(re.match(r"(encoder|decoder)\.(down|up|mid)_block", name) for name in names)


def names_from_diffusers(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of a `diffusers.VQModel` as those of a `VQModel`."""
    up = (re.match(r"decoder\.up_blocks\.(\d+)\.", name) for name in tensors)
    levels = 1 + max((int(match[1]) for match in up if match), default=0)
    state = {}
    for diffusers_name, tensor in tensors.items():
        name = _model_name(diffusers_name, levels)
        state[name] = _as_conv(name, tensor)
    return state


def names_for_diffusers(tensors: Tensors, levels: int) -> dict[str, Tensor]:
    """The tensors of a `VQModel` of so many levels as those of a `diffusers.VQModel`."""
    state = {}
    for name, tensor in tensors.items():
        diffusers_name = _diffusers_name(name, levels)
        state[diffusers_name] = _as_linear(diffusers_name, tensor)
    return state


def _diffusers_name(name: str, levels: int) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    rest = re.sub(r"^mid\.block_([12])\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}.", rest)
    rest = rest.replace("mid.attn_1.", "mid_block.attentions.0.")
    rest = re.sub(r"^down\.(\d+)\.", r"down_blocks.\1.", rest)
    rest = re.sub(r"^up\.(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", rest)
    rest = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", rest)
    rest = re.sub(r"\.attn\.(\d+)\.", r".attentions.\1.", rest)
    rest = re.sub(r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv.", rest)
    return f"{side}.{_renamed_module(rest, 0, 1)}"


def _model_name(name: str, levels: int) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    for old, new in _OLD_ATTENTION.items():  # of diffusers before 0.18
        rest = re.sub(rf"\.attentions\.(\d+)\.{old}\.", rf".attentions.\1.{new}.", rest)
    rest = _renamed_module(rest, 1, 0)
    rest = re.sub(r"^mid_block\.resnets\.([01])\.", lambda m: f"mid.block_{int(m[1]) + 1}.", rest)
    rest = rest.replace("mid_block.attentions.0.", "mid.attn_1.")
    rest = re.sub(r"^down_blocks\.(\d+)\.", r"down.\1.", rest)
    rest = re.sub(r"^up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", rest)
    rest = re.sub(r"\.resnets\.(\d+)\.", r".block.\1.", rest)
    rest = re.sub(r"\.attentions\.(\d+)\.", r".attn.\1.", rest)
    rest = re.sub(r"\.(down|up)samplers\.0\.conv\.", r".\1sample.conv.", rest)
    return f"{side}.{rest}"


def _renamed_module(name: str, source: int, goal: int) -> str:
    """The last module in a name, renamed as its block's kind demands."""
    path, _, kind = name.rpartition(".")
    within = _BLOCK if ".resnets." in path else _ATTENTION if ".attentions." in path else _ENDS
    for pair in within.items():
        if path == pair[source] or path.endswith(f".{pair[source]}"):
            return f"{path.removesuffix(pair[source])}{pair[goal]}.{kind}"
    return name


def _as_linear(diffusers_name: str, tensor: Tensor) -> Tensor:
    """Attention's 1x1 convolutions [out, in, 1, 1] are linear layers [out, in] in diffusers."""
    projects = ".attentions." in diffusers_name and tensor.dim() == 4
    return tensor[:, :, 0, 0] if projects else tensor


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    projects = re.search(r"\.attn(_1|\.\d+)\.", name) is not None and tensor.dim() == 2
    return tensor[:, :, None, None] if projects else tensor
