"""How samples are drawn: temperature, filters, guidance, seed, how many, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st
from torch import Tensor

from taming.demo.links import Choices
from taming.demo.paper import kept_tokens, paint_mask
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.masked import STEPS
from taming.pictures import Placed, to_pillow
from taming.sampling import SampleSettings
from taming.sampling.completion import HALVES, keep_mask
from taming.sampling.inputs import SampleInputs
from taming.sampling.settings import INWARDS, ORDERS, RASTER, SCHEDULES
from taming.sampling.sizes import pixels_per_token, trained_shape

MOST_IMAGES = 16  # of one press of the button
NOTHING, BOX, MASK = "nothing", "a box", "all but what is painted"


def choose_settings(model: Net2NetTransformer, choices: Choices) -> tuple[SampleSettings, int, int]:
    """How tokens are sampled, the seed, and how many images."""
    temperature = choices.slider("Temperature", "temperature", (0.0, 2.0), 1.0, step=0.05)
    codes = model.n_codes
    top_k = choices.number("Top k", "top_k", (1, codes), min(100, codes))
    top_p = choices.slider("Top p", "top_p", (0.01, 1.0), 1.0, step=0.01)
    guidance, schedule = 1.0, "constant"
    if model.cond_drop:
        guidance = choices.slider("Guidance", "guidance", (0.0, 10.0), 1.0, step=0.25)
        schedule = choices.choice("Schedule of the guidance", "schedule", list(SCHEDULES))
    seed = choices.number("Seed", "seed", (0, 2**31), 0)
    count = choices.number("Images", "count", (1, MOST_IMAGES), 1)
    way = _choose_way(model, choices)
    return SampleSettings(temperature, top_k, top_p, guidance, schedule, **way), seed, count


def _choose_way(model: Net2NetTransformer, choices: Choices) -> dict[str, Any]:
    """In which order, and in how many steps, for models that know several."""
    height, width = trained_shape(model)
    codes = height * width
    if model.masked:
        return {"steps": choices.number("Steps", "steps", (1, codes), min(STEPS, codes))}
    if not model.reading.any:
        return {}
    usual = ORDERS.index(RASTER if model.reading.ends_by_rows else INWARDS)
    order = choices.choice("Order", "order", list(ORDERS), default=usual)
    steps = choices.number("Steps", "steps", (1, codes), codes)
    if steps < codes:
        return {"order": order, "steps": steps}
    return {} if order == ORDERS[usual] else {"order": order}


def known_to(model: Net2NetTransformer, settings: SampleSettings, codes: int) -> SampleSettings:
    """Settings that were chosen for another model: what this one has no choice of is as usual."""
    if not model.cond_drop:
        settings = replace(settings, guidance=1.0, guidance_schedule="constant")
    steps = settings.steps if model.masked or model.reading.any else None
    order = settings.order if model.reading.any else None
    return replace(settings, order=order, steps=None if steps is None else min(steps, codes))


def choose_kept(
    model: Net2NetTransformer, inputs: SampleInputs, choices: Choices
) -> tuple[str | None, Tensor | None]:
    """What is kept of the image, in words, and which tokens those are: bool (h, w)."""
    if inputs.x is None:
        return None, None
    keep = choices.choice("Keep of the image", "keep", [NOTHING, *HALVES, BOX, MASK])
    height, width = inputs.x.shape[2:]
    if keep == NOTHING:
        return None, None
    if keep == MASK:
        return _paint_kept(model, inputs.x)
    if keep == BOX:
        box = f"0,0,{width},{height // 2}"
        keep = choices.text("x0,y0,x1,y1, in pixels", "box", box, key=f"box {box}", keep=False)
    placed = Placed.whole((height, width))
    return keep, keep_mask(keep, placed, pixels_per_token(model), read_files=False)


def _paint_kept(model: Net2NetTransformer, x: Tensor) -> tuple[str | None, Tensor | None]:
    cell = pixels_per_token(model)
    st.markdown("**Paint over what is to be drawn again; the rest is kept.**")
    marked: np.ndarray | None = paint_mask("mask canvas", to_pillow(model.as_pictures(x)[0]), cell)
    if marked is None:
        st.caption("Nothing is painted yet, so that all of the image would be drawn.")
        return None, None
    return MASK, kept_tokens(marked, cell)
