"""How another project's checkpoints name the tensors of a tokenizer, and which model of ours it is.

A layout is recognised by the names and shapes of a state_dict alone: prefixes and moving averages
are taken care of by `taming.checkpoint.names` and `weight_sets` before and after.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taming.errors import UserError

Tensors = Mapping[str, Tensor]  # by name
Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name

# What only training needs.
OPTIONAL = ("loss.", "model_ema.", "discriminator.", "disc.", "perceptual_loss.", "lpips.")


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes of what a model needs to be used; losses and averages are left out."""
    return {n: tuple(t.shape) for n, t in tensors.items() if not n.startswith(OPTIONAL)}


def _anything(shapes: Shapes) -> bool:
    return True


@dataclass(frozen=True)
class Layout:
    """A project's way to save its tokenizer.

    Args:
        name: as it is named on command lines ("llamagen").
        title: for people ("LlamaGen").
        licence, source: of the code that the weights belong to, and where that is.
        marks: what names there have to be, as regular expressions of whole names, each with words
            for people.
        config: shapes of a state_dict -> the `model` section (`target`, `params`) of our config.
        lacks: what no name may be, as a regular expression.
        fits: what else the shapes have to fulfil.
        own_names: names that no model of ours has, so that `to_model` is called; None where all
            names are the same here.
        to_model: tensors by the project's names -> by ours; `from_model`: the inverse, for whole
            models.
        written: the same as `config` of tensors that were a model of ours, where shapes alone tell
            `config` too little; by default `config`.
        told_apart: options, by their names in a config, that its code is told apart from files.
        fixed: options of `ddconfig` that its code has no argument for, with its values.
        container: the entry of a checkpoint that holds the tensors; "" if they are the file.
    """

    name: str
    title: str
    licence: str
    source: str
    marks: Mapping[str, str]
    config: Callable[[Shapes], dict[str, Any]]
    lacks: str | None = None
    fits: Callable[[Shapes], bool] = _anything
    own_names: str | None = None
    to_model: Callable[[Tensors], dict[str, Tensor]] = dict
    from_model: Callable[[Tensors], dict[str, Tensor]] = dict
    written: Callable[[Shapes], dict[str, Any]] | None = None
    told_apart: Collection[str] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    container: str = "state_dict"

    def missing(self, names: Collection[str]) -> list[str]:
        """The parts that these names lack, for people."""
        return [
            words
            for mark, words in self.marks.items()
            if not any(re.fullmatch(mark, name) for name in names)
        ]

    def recognises(self, shapes: Shapes) -> bool:
        """Whether tensors of these names and shapes are this project's."""
        return self.why_not(shapes) is None

    def why_not(self, shapes: Shapes) -> str | None:
        """What is otherwise in tensors of these names and shapes, for people: they ..."""
        if missing := self.missing(shapes):
            return f"lack {', '.join(missing)}"
        if (stranger := self._stranger(shapes)) is not None:
            return f"have '{stranger}', which it has not"
        return None if self.fits(shapes) else "have other numbers of blocks, attentions or kernels"

    def distance(self, shapes: Shapes) -> float:
        """How unlike these are: the share of parts that is missing, then what may not be there."""
        missing = self.missing(shapes)
        share = len(missing) / len(self.marks)
        unfit = not missing and not self.fits(shapes)
        return share + 0.3 * (self._stranger(shapes) is not None) + 0.1 * unfit

    def _stranger(self, names: Iterable[str]) -> str | None:
        if self.lacks is None:
            return None
        return next((name for name in names if re.fullmatch(self.lacks, name)), None)

    def has_own_names(self, names: Iterable[str]) -> bool:
        """Whether these have to be renamed for a model of ours."""
        return self.own_names is not None and any(re.match(self.own_names, n) for n in names)


# ---------------------------------------------------------------------- sizes from shapes


def numbers(names: Iterable[str], pattern: str) -> list[int]:
    """The different numbers that group 1 of a pattern finds at the beginnings of names, sorted."""
    return sorted({int(match[1]) for name in names if (match := re.match(pattern, name))})


def sizes_in(shapes: Shapes, name: str, dimensions: int = 4) -> tuple[int, ...]:
    """The shape of a tensor: by default of a convolution's weight.

    Raises:
        LookupError: if there is none of that name.
        UserError: for another number of dimensions, or an empty one.
    """
    shape = shapes[name]
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"'{name}' has shape {list(shape)}, and not {dimensions} dimensions")
    return shape


def multipliers(widths: Sequence[int], ch: int) -> list[int]:
    """Widths of levels as multiples of `ch`.

    Raises:
        UserError: if they are not.
    """
    if any(width % ch for width in widths):
        raise UserError(f"its levels have widths {list(widths)}, which are no multiples of {ch}")
    return [width // ch for width in widths]


def ddconfig_of(shapes: Shapes, resolution: int) -> dict[str, Any]:
    """The `ddconfig` of taming's encoder and decoder with tensors of these shapes, by our names.

    `resolution`, which shapes do not tell, is that of the published model.

    Raises:
        UserError, LookupError: for shapes of something else.
    """
    ch, in_channels, *_ = sizes_in(shapes, "encoder.conv_in.weight")
    levels = numbers(shapes, r"encoder\.down\.(\d+)\.block\.")
    down = [sizes_in(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in levels]
    up = [sizes_in(shapes, f"decoder.up.{i}.block.0.conv1.weight")[0] for i in levels]
    attends = [i for i in levels if f"encoder.down.{i}.attn.0.norm.weight" in shapes]
    z_channels = sizes_in(shapes, "decoder.conv_in.weight")[1]
    config: dict[str, Any] = {
        "double_z": sizes_in(shapes, "encoder.conv_out.weight")[0] == 2 * z_channels,
        "z_channels": z_channels,
        "resolution": resolution,
        "in_channels": in_channels,
        "out_ch": sizes_in(shapes, "decoder.conv_out.weight")[0],
        "ch": ch,
        "ch_mult": multipliers(down, ch),
        "num_res_blocks": len(numbers(shapes, r"encoder\.down\.0\.block\.(\d+)\.")),
        "attn_resolutions": [resolution // 2**i for i in attends],
        "dropout": 0.0,
    }
    if up != down:
        config["decoder_ch_mult"] = multipliers(up, ch)
    if "encoder.mid.attn_1.norm.weight" not in shapes:
        config["attn_type"] = "none"
    if len(levels) > 1 and "encoder.down.0.downsample.conv.weight" not in shapes:
        config["resamp_with_conv"] = False
    return config


def codebook_of(shapes: Shapes) -> tuple[int, int]:
    """(number of codes, their width) by `quantize.embedding.weight`."""
    n_embed, embed_dim = sizes_in(shapes, "quantize.embedding.weight", 2)
    return n_embed, embed_dim
