"""Guidance: codes are optimized until a text, an image or a class is found in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import streamlit as st
import torch
from PIL import Image

from taming.demo.desk import Desk
from taming.demo.drawing import Drawn, requests_for_inputs
from taming.demo.history import history, show_new
from taming.demo.links import GUIDANCE
from taming.demo.paper import kept_tokens, paint_mask
from taming.errors import UserError
from taming.guidance import CodeGrids, GuideSettings, GuideStep, Objective, Start, guide
from taming.guidance.arguments import Guide
from taming.guidance.encoders import ClassEncoder, ImageEncoder, TextEncoder
from taming.guidance.objective import Target, class_target, image_target, text_targets
from taming.guidance.start import chance_for, random_start
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import enlarged, to_pillow
from taming.sampling import Request
from taming.sampling.conditions import read_picture
from taming.sampling.sizes import pixels_per_token
from taming.sampling.uploads import IMAGE_TYPES, Upload, stored

NOBODY = (
    "Nobody guides yet. Start the page with `--clip ViT-B-32` for texts, `--features lpips` for "
    "images, or `--classifier small:FILE` for classes; the documentation of guidance lists them."
)
RANDOM, SHOWN = "random codes", "the image that is shown"
MOST_STEPS = 2_000


@dataclass(frozen=True, eq=False)
class Begun:
    """What an image starts from.

    Attributes:
        model, run: whose first stage decodes it.
        request: by which the transformer samples parts of it again, if that is asked for.
        link: what was chosen for that, see `Choices`.
        is_image: whether it is an image already.
    """

    run: str
    model: Net2NetTransformer
    request: Request
    start: Start
    link: Mapping[str, str]
    is_image: bool = False


def show_guidance(desk: Desk) -> None:
    """What to draw, from what, in how many steps; and the drawing."""
    if not desk.guide.given:
        st.caption(NOBODY)
        return
    encoder = load_guide(desk.guide, desk.model.device)
    prompts, upload, label = _choose_prompts(desk, encoder)
    begun = _choose_start(desk)
    choices = desk.choices
    steps = choices.number(
        "Steps", "guide_steps", (1, MOST_STEPS), 100, key="guide steps", place=st
    )
    rate = choices.slider(
        "Learning rate", "guide_rate", (0.01, 0.5), 0.1, key="guide rate", place=st, step=0.01
    )
    if not st.button("Guide", key="guide", type="primary", disabled=begun is None):
        return
    assert begun is not None
    targets = text_targets(encoder, prompts)
    if label is not None:
        targets.append(class_target(encoder, label))
    if upload is not None:
        with stored(upload) as (path,):
            image = (read_picture(str(path)) + 1) / 2
        targets.append(image_target(encoder, image, upload.name))
    _require_prompts(targets, begun)
    settings = GuideSettings(steps=steps, lr=rate, seed=desk.seed)
    guidance = {name: choices.values[name] for name in GUIDANCE if name in choices.values}
    link = {**begun.link, "seed": desk.link["seed"], **guidance}
    show_new(draw_guided(begun, Objective(encoder, targets), settings, link))
    history().turns += 1
    st.rerun()  # the first tab shows it


@st.cache_resource(show_spinner="Loading the guide", max_entries=1)
def load_guide(guide: Guide, device: torch.device) -> ImageEncoder:
    """The network of the command line, loaded once."""
    return guide.load(device)


def _choose_prompts(
    desk: Desk, encoder: ImageEncoder
) -> tuple[list[str], Upload | None, int | None]:
    """Texts, an image and a class, as far as the guide knows such things."""
    choices, names = desk.choices, desk.loaded.names
    texts: list[str] = []
    if isinstance(encoder, TextEncoder):
        written = choices.lines(
            "What to draw", "prompts", key="prompts", place=st, placeholder="a fox in the snow:1.0",
            help="a line for each prompt; a weight behind a colon, below 0 to get away from it",
        )  # fmt: skip
        texts = [line for line in written.splitlines() if line.strip()]
    label = None
    if isinstance(encoder, ClassEncoder):
        count = encoder.n_classes
        text_of = (lambda n: f"{n} {names[n]}") if len(names) == count else str
        label = choices.choice(
            "Class", "guide_class", range(count), key="guide class", place=st, format_func=text_of
        )
    upload = st.file_uploader("An image like which it is to be", IMAGE_TYPES, key="image prompt")
    return texts, upload, label


def _choose_start(desk: Desk) -> Begun | None:
    """Random codes by the seed, or an image of the result; None while there is no condition."""
    result: Drawn | None = st.session_state.get("result")
    starts = [RANDOM] if result is None else [RANDOM, SHOWN]
    if st.session_state.get("guide start") not in starts:
        st.session_state["guide start"] = RANDOM
    chosen = st.radio("Start from", starts, key="guide start", horizontal=True)
    if chosen == SHOWN and result is not None:
        return _of_result(desk, result)
    if desk.inputs is None:
        return None
    grids, shape = CodeGrids.of(desk.model.first_stage_model), desk.inputs.shape
    start = random_start(grids, shape, chance_for(desk.seed, 0, grids.device))
    [request] = requests_for_inputs(desk.model, desk.inputs, None, 1)
    return Begun(desk.run, desk.model, request, start, desk.link)


def _of_result(desk: Desk, result: Drawn) -> Begun:
    """One of its images, and what may change of it."""
    number, count = 0, len(result.images)
    if count > 1:
        number = int(st.number_input("Image", 1, count, 1, key="guided image")) - 1
    st.caption("Paint where it may change; with nothing painted, it may everywhere.")
    model = desk.model_of(result)
    cell, version = pixels_per_token(model), (number, history().shown)
    marked = paint_mask("guide canvas", result.images[number], cell, version=version)
    free = None if marked is None else ~kept_tokens(marked, cell)
    indices = result.indices[number]
    start = Start([indices.flatten()], (indices.shape[0], indices.shape[1]), free)
    request = result.requests[number]
    return Begun(result.run, model, request, start, result.link, is_image=True)


def _require_prompts(targets: Sequence[Target], begun: Begun) -> None:
    if not targets:
        raise UserError("say what to draw: write a prompt, or choose an image")
    if not begun.is_image and all(target.weight <= 0 for target in targets):
        raise UserError(
            "no prompt has a weight above 0, so that there is nothing to draw; add one, or start "
            f"from {SHOWN}"
        )


def draw_guided(
    begun: Begun, objective: Objective, settings: GuideSettings, link: Mapping[str, str]
) -> Drawn:
    """One image, which is shown while it comes about."""
    frames: list[Image.Image] = []
    place, bar = st.empty(), st.progress(0.0)

    def show(step: GuideStep) -> None:
        if step.is_frame:
            frames.append(to_pillow(step.image.float().cpu()))
            place.image(enlarged(frames[-1]), caption="guiding")
        bar.progress(step.done / step.total, f"{step.done} of {step.total} steps")

    stage = begun.model.first_stage_model
    guided = guide(stage, objective, settings, start=begun.start, on_step=show)
    place.empty()
    bar.empty()
    prompts = [[target.name, target.weight] for target in objective.targets]
    return Drawn(
        begun.run,
        images=(to_pillow(guided.image),),
        indices=(guided.indices[0],),
        requests=(begun.request,),
        record={**settings.describe(), "prompts": prompts, "loss": guided.losses[-1]},
        link=dict(link),
        frames=tuple(frames),
    )
