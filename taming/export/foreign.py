"""First stages in the checkpoints of other projects (`taming.checkpoint.layouts`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from taming.checkpoint import save_atomic
from taming.checkpoint.layouts import LAYOUTS, Layout
from taming.checkpoint.layouts.base import OPTIONAL, shapes_of
from taming.checkpoint.names import UNTRAINED
from taming.errors import UserError
from taming.export.weights import save_weights
from taming.models.codes import CodesInterface

FOREIGN = tuple(name for name in LAYOUTS if name != "diffusers")  # which is a folder


def to_layout(model: CodesInterface, name: str, target: str | Path) -> None:
    """Write a first stage as a checkpoint of a project, in the shape that its code reads.

    A `target` that ends in .safetensors holds the tensors alone.

    Raises:
        UserError: for a model that the project's code has not.
    """
    layout, target = LAYOUTS[name], Path(target)
    state = layout_state(model, layout)
    if target.suffix == ".safetensors":
        return save_weights(state, target, {"format": "pt"})
    save_atomic({layout.container: state} if layout.container else state, target)


def layout_state(model: CodesInterface, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a first stage by a project's names.

    Raises:
        UserError: for a model that the project's code has not.
    """
    own = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(OPTIONAL) and name not in UNTRAINED
    }
    state = layout.from_model(own)
    shapes = shapes_of(state)
    if not layout.recognises(shapes):
        missing = layout.missing(shapes)
        what = f"has no {', '.join(missing)}" if missing else "has tensors that this has not"
        raise UserError(
            f"{layout.title}'s layout cannot hold this model, which by its names {what}"
        )
    wanted, there = _kinds(layout.config(shapes)), _kinds_of(model)
    if wanted != there:
        raise UserError(
            f"{layout.title}'s layout is of a {wanted[0]} with {wanted[1]}, and this is a "
            f"{there[0]} with {there[1]}: its code would read these weights as another model"
        )
    return state


def _kinds(section: dict[str, Any]) -> tuple[str, str]:
    """The names of a model's class and of its quantizer's."""
    quantizer = section["params"].get("quantizer_config", {"target": "VectorQuantizer2"})
    model, kind = section["target"], quantizer["target"]
    return model.rpartition(".")[2], kind.rpartition(".")[2]


def _kinds_of(model: CodesInterface) -> tuple[str, str]:
    kind = type(model).__name__
    # Latent diffusion's class has the same weights.
    return kind.replace("VQModelInterface", "VQModel"), type(model.quantize).__name__
