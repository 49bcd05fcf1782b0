"""What model weights without a config belong to, by the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taming.checkpoint.formats import read_content
from taming.checkpoint.headers import section_in_header
from taming.checkpoint.layouts import Layout, nearest, recognised
from taming.checkpoint.layouts.base import Shapes, shapes_of
from taming.checkpoint.names import COLORS, REVIVAL, ends_in, is_counter, stripped
from taming.checkpoint.shards import require_whole
from taming.checkpoint.weight_search import weight_sets
from taming.checkpoint.weight_sets import say
from taming.errors import UserError
from taming.shipped import script

# The parts of a first stage: what is around them in names is left out.
_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
HINT = "name its YAML with --base (in Python: base=[...])"


def model_of_weights(path: Path, hint: str = HINT) -> dict[str, Any]:
    """The `model` section for a file of weights that says it, or of a known tokenizer, which is
    said.

    Raises:
        UserError: for weights of anything else; the nearest layout that is known is named, and what
            to do then, the `hint`.
    """
    if (section := section_in_header(path)) is not None:
        return section
    layout, section = recognise(read_content(path), path, hint)
    say(str(path), (f"recognised as {layout.title}'s by its tensors: {_described(section)}",))
    return section


def recognise(content: Any, source: Path, hint: str = HINT) -> tuple[Layout, dict[str, Any]]:
    """The layout of the weights in a file's content, and their `model` section.

    Raises:
        UserError: if none is known.
    """
    require_whole(content, source)
    found = list(_shapes_in(content))
    for shapes in found:
        if layout := recognised(shapes):
            try:
                return layout, layout.config(shapes)
            except LookupError as error:
                raise UserError(
                    f"{source} is like {layout.title}'s checkpoints, but its tensor {error} is "
                    f"missing; {hint}"
                ) from None
            except UserError as error:
                raise UserError(
                    f"{source} is like {layout.title}'s checkpoints, but {error}"
                ) from None
    raise UserError(f"{source} has no config beside it, {_why_unknown(found, hint)}")


def _shapes_in(content: Any) -> Iterator[Shapes]:
    """The shapes of each set of weights by names without prefixes, averages last."""
    for each in sorted(weight_sets(content), key=lambda each: each.averaged):
        tensors = {n: t for n, t in each.tensors.items() if not is_counter(n, t)}
        tensors, _ = stripped(tensors, _PARTS)
        shapes = shapes_of(tensors)
        yield {n: s for n, s in shapes.items() if not ends_in(n, (COLORS, *REVIVAL))}


def _why_unknown(found: list[Shapes], hint: str) -> str:
    """The rest of a sentence about weights that no layout recognises."""
    names = {name for shapes in found for name in shapes}
    if any(name.startswith("first_stage_model.") for name in names):
        return (
            f"and it is a larger model; {hint}, or take its first stage out with "
            f"{script('extract_submodel')} IN OUT first_stage_model"
        )
    like = [(layout, shapes) for shapes in found if (layout := nearest(shapes))]
    unknown = "and its tensors are no tokenizer's that is known here"
    if not like:
        return f"{unknown}; {hint}"
    layout, shapes = min(like, key=lambda pair: pair[0].distance(pair[1]))
    return (
        f"{unknown}: the nearest layout is {layout.title}'s, but they {layout.why_not(shapes)}; "
        f"{hint}"
    )


def _described(section: dict[str, Any]) -> str:
    """`f 16, 16384 codes of width 8`."""
    params = section["params"]
    ddconfig = params["ddconfig"]
    sizes = {**params, **params.get("quantizer_config", {}).get("params", {})}
    codes = sizes.get("n_e", sizes.get("n_embed"))
    width = sizes.get("e_dim", sizes.get("embed_dim", ddconfig["z_channels"]))
    name = section["target"].rpartition(".")[2]
    factor = 2 ** (len(ddconfig["ch_mult"]) - 1)
    return f"a {name}, f {factor}, {codes} codes of width {width}"
