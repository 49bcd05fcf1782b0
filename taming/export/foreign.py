"""First stages in the checkpoints of other projects (`taming.checkpoint.layouts`)."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from taming.checkpoint import save_atomic
from taming.checkpoint.layouts import LAYOUTS, Layout
from taming.checkpoint.layouts.base import OPTIONAL, Shapes, shapes_of
from taming.checkpoint.names import COLORS, REVIVAL, ends_in
from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.export.weights import save_weights
from taming.models.codes import CodesInterface
from taming.models.forward_settings import differing, forward_settings, option_of

log = logging.getLogger(__name__)
_INSTEAD = "the format safetensors holds every model"
FOREIGN = tuple(name for name in LAYOUTS if name != "diffusers")  # which is a folder


def to_layout(model: CodesInterface, name: str, target: str | Path) -> None:
    """Write a first stage as a checkpoint of a project, in the shape that its code reads.

    A `target` that ends in .safetensors holds the tensors alone. What its code has no argument for,
    and is otherwise in this model, is logged.

    Raises:
        UserError: for a model that the project's code has not.
    """
    layout, target = LAYOUTS[name], Path(target)
    state = layout_state(model, layout)
    _say_what_is_fixed(layout, shapes_of(state))
    if target.suffix == ".safetensors":
        return save_weights(state, target)
    save_atomic({layout.container: state} if layout.container else state, target)


def layout_state(model: CodesInterface, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a first stage by a project's names.

    Raises:
        UserError: for a model that the project's code has not.
    """
    own = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(OPTIONAL) and not ends_in(name, (COLORS, *REVIVAL))
    }
    state = layout.from_model(own)
    shapes = shapes_of(state)
    if wrong := layout.why_not(shapes):
        raise UserError(
            f"{layout.title}'s layout cannot hold this model, whose tensors {wrong}; {_INSTEAD}"
        )
    with torch.device("meta"):
        wanted = instantiate_from_config((layout.written or layout.config)(shapes))
    if not isinstance(model, type(wanted)) or type(model.quantize) is not type(wanted.quantize):
        raise UserError(
            f"{layout.title}'s layout is of a {_kinds(wanted)}, and this is a {_kinds(model)}: its "
            f"code would read these weights as another model; {_INSTEAD}"
        )
    _check_settings(model, wanted, layout)
    return state


def _check_settings(model: CodesInterface, wanted: CodesInterface, layout: Layout) -> None:
    """Refuse (`UserError`) options that neither names nor shapes tell, unless they are as in the
    model that is read from the file."""
    of_file, own = (
        {k: v for k, v in forward_settings(each).items() if option_of(k) not in layout.told_apart}
        for each in (wanted, model)
    )
    key = differing(own, of_file) or min(own.keys() ^ of_file.keys(), default=None)
    if key is not None:
        option, values = option_of(key), [_value(each.get(key)) for each in (own, of_file)]
        raise UserError(
            f"this model has {option} {values[0]} and {layout.title}'s layout means {option} "
            f"{values[1]}, of which its files say nothing: its code would read these weights as "
            f"another model; {_INSTEAD}"
        )


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _say_what_is_fixed(layout: Layout, shapes: Shapes) -> None:
    """One line about options that the project's code would have to be changed for."""
    ddconfig = (layout.written or layout.config)(shapes)["params"]["ddconfig"]
    fixed = {name: value for name, value in layout.fixed.items() if ddconfig[name] != value}
    if fixed:
        log.warning(
            "this model has %s: %s's code has %s fixed, and reads the file with that changed alone",
            " and ".join(f"{name} {ddconfig[name]}" for name in fixed),
            layout.title,
            " and ".join(f"{name} {value}" for name, value in fixed.items()),
        )


def _kinds(model: CodesInterface) -> str:
    return f"{type(model).__name__} with {type(model.quantize).__name__}"
