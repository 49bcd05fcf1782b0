"""Other projects' tokenizers, by the names and shapes of their tensors.

A new one is a file here with a `LAYOUT`, and its place in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Collection

from taming.checkpoint.layouts import (
    diffusers,
    ibq,
    llamagen,
    maskgit,
    open_magvit2,
    var,
    vqgan,
)
from taming.checkpoint.layouts.base import Layout, Shapes, Tensors

__all__ = ["LAYOUTS", "Layout", "nearest", "recognised", "renamed_layout"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (  # of those that recognise the same tensors, the first is taken
        diffusers.LAYOUT,
        llamagen.LAYOUT,
        maskgit.LAYOUT,
        open_magvit2.OPEN_MAGVIT2,
        open_magvit2.SIMVQ,
        ibq.LAYOUT,
        var.LAYOUT,
        vqgan.LAYOUT,
    )
}


def recognised(shapes: Shapes) -> Layout | None:
    """The layout of tensors with these names and shapes, if it is known."""
    return next((layout for layout in LAYOUTS.values() if layout.recognises(shapes)), None)


def nearest(shapes: Shapes) -> Layout | None:
    """The layout that these are most like, of several the most general; None if they have no part
    of any."""
    like = [one for one in LAYOUTS.values() if len(one.missing(shapes)) < len(one.marks)]
    return min(reversed(like), key=lambda layout: layout.distance(shapes), default=None)


def renamed_layout(tensors: Tensors, own: Collection[str]) -> Layout | None:
    """The layout whose names tensors have, and which are not those of a model, its `own`."""
    for layout in LAYOUTS.values():
        if layout.has_own_names(tensors) and not layout.has_own_names(own):
            return layout
    return None
