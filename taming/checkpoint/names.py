"""Names of tensors as others save them -> those of a model of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from taming.checkpoint.layouts import renamed_layout
from taming.checkpoint.layouts.base import OPTIONAL, Tensors

# What wrappers of modules add to names, anywhere in them: DistributedDataParallel, torch.compile,
# DeepSpeed and Fabric, FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_forward_module"}
WRAPPERS |= {"_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Ends of names. Of how often codes were taken, and since when they were not, which begin anew, with
# the quantizer's option that keeps them; no other project has these.
KEPT_BY = {"idle": "revive_after", "idle.batches": "revive_after"}
KEPT_BY |= {"clusters.embed_prob": "clustering"}
REVIVAL = tuple(KEPT_BY)
STATISTICS = ("ema_vocab_hit_SV", *REVIVAL)
AVERAGES = "model_ema."
COLORS = "colorize"  # random ones, of which one set is as good as another


def is_of(name: str, parts: Iterable[str]) -> bool:
    """Whether a tensor's name is one below these parts of a model, or of a model within it."""
    return any(name.startswith(part) or f".{part}" in name for part in parts)


@dataclass
class Renaming:
    """Tensors under a model's names, and what was left out of the names, for people."""

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def renamed(tensors: Tensors, own: Collection[str] | None) -> Renaming:
    """`tensors` by the names that a model has, of which `own` are given if they are known.

    Prefixes are left out if all weights have them and the model has not: `module.`, `_orig_mod.`,
    or any other module around it, also several of them. So are wrappers' names within names. Of an
    unknown model, wrappers' prefixes alone are. Names of other projects' tokenizers
    (`taming.checkpoint.layouts`) become ours, unless the model has them.
    """
    state, notes = stripped(tensors, own)
    if layout := renamed_layout(state, own or ()):
        state = layout.to_model(state)
        notes.append(f"by {layout.title}'s names")
    return Renaming(state, notes)


def stripped(tensors: Tensors, own: Collection[str] | None) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` without prefixes and wrappers' names, as `renamed` says, and what was left out."""
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
    return {name: tensors[old] for name, old in names.items()}, notes


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


def ends_in(name: str, ends: Collection[str]) -> bool:
    """Whether the last parts of a name are one of these."""
    return any(f".{name}".endswith(f".{end}") for end in ends)


def squeezed(name: str) -> str:
    """A name without wrappers and dots, as averages of latent diffusion's are named."""
    return "".join(part for part in name.split(".") if part not in WRAPPERS)
