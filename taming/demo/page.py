"""The page: a run, what it starts from, how to sample, and what can be done with the samples."""

from __future__ import annotations

import streamlit as st
from PIL import Image
from streamlit.delta_generator import DeltaGenerator
from torch import Tensor

from taming.data.seeding import SeededDataset
from taming.demo.actions import show_actions
from taming.demo.arguments import PageArguments, read_page_arguments
from taming.demo.desk import Desk
from taming.demo.gallery import WIDTH
from taming.demo.history import history, show_new, spaced
from taming.demo.links import Choices, number_within
from taming.demo.painting import MOST_PIXELS
from taming.demo.plain_text import escaped
from taming.demo.runs import Loaded, choose_run, load
from taming.demo.settings import choose_kept, choose_settings
from taming.demo.sources import PAINTING, choose_inputs
from taming.errors import UserError, sentence
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import enlarged, to_pillow
from taming.sampling.arguments import RunArguments
from taming.sampling.inputs import SampleInputs, condition_images
from taming.sampling.sizes import pixels_per_token

READS = "Show what the model reads"
MOST_RATIO = 1.5  # width by height of a canvas that leaves room beside it


def show() -> None:
    """The whole page; `UserError` for what the user can mend."""
    arguments, data, guide = read_page_arguments()  # first, as it may be asked for --help alone
    require_local_server()
    choices = Choices()
    run = choose_run(choices, arguments.resume)
    run_arguments = arguments.of(run)
    loaded = load(run_arguments, data)
    st.caption(escaped(loaded.text))
    if loaded.problem:
        st.error(escaped(f"the examples cannot be opened: {loaded.problem}"))
    painting = choices.value("source", str, "") == PAINTING
    above = st.container()
    left, right = columns_for(painting, choices)
    with left:
        inputs, keep, kept = choose_beginning(loaded, choices, arguments)
    settings, seed, count = choose_settings(loaded.model, choices)
    with left:
        # Every stroke would compute them, so that while painting they are there for the asking.
        if inputs is not None and (not painting or choices.toggle(READS, "reads")):
            show_pictures(pictures_of(loaded, inputs, kept, run_arguments))
    desk = Desk(
        run,
        loaded,
        inputs,
        keep,
        kept,
        settings=settings,
        seed=seed,
        count=count,
        link=dict(choices.values),
        choices=choices,
        arguments=arguments,
        data=data,
        guide=guide,
    )
    with right:
        pressed = st.button("Sample", key="sample", type="primary", disabled=inputs is None)
        with st.container():  # there always, so that the tabs below stay where they are
            if pressed:
                sample(desk)
        show_actions(desk)
    choices.finish()  # once the tabs have their widgets too
    with above:
        choices.show_problems()


def sample(desk: Desk) -> None:
    """Draw samples, which the first tab shows; what cannot be drawn is said in their place."""
    st.session_state.pop("result", None)
    history().turns += 1
    try:
        show_new(desk.draw(desk.settings, desk.link))
    except UserError as error:
        st.error(escaped(sentence(error)))


def choose_beginning(
    loaded: Loaded, choices: Choices, arguments: PageArguments
) -> tuple[SampleInputs | None, str | None, Tensor | None]:
    """The inputs, and what is kept of them, in words and as tokens bool (h, w).

    Where something has to be mended first, that is said here, and there are none: the rest of the
    page, with its settings and what was drawn before, is shown all the same.
    """
    try:
        inputs = choose_inputs(loaded, choices, arguments.names)
        if inputs is None:
            return None, None, None
        return inputs, *choose_kept(loaded.model, inputs, choices)
    except UserError as error:
        st.error(escaped(sentence(error)))
        return None, None, None


@st.cache_data(show_spinner="Reading the condition", max_entries=20)
def condition_pictures(
    key: str,
    run_arguments: RunArguments,
    version: int,
    _model: Net2NetTransformer,
    _dataset: SeededDataset | None,
    _inputs: SampleInputs,
) -> dict[str, Image.Image]:
    """What the condition looks like, by name; the first three tell calls apart."""
    images = condition_images(_model, _inputs, _dataset)
    return {name: enlarged(to_pillow(image)) for name, image in images.items()}


def pictures_of(
    loaded: Loaded, inputs: SampleInputs, kept: Tensor | None, run_arguments: RunArguments
) -> dict[str, Image.Image]:
    """The image and the condition by name, as far as there are any."""
    model, shown = loaded.model, {}
    if inputs.x is not None:
        name, x = "image", model.as_pictures(inputs.x)[0]
        if kept is not None:
            factor = pixels_per_token(model)
            x = x.where(kept.repeat_interleave(factor, 0).repeat_interleave(factor, 1), 0.0)
            name = "what is kept of the image"
        shown[name] = enlarged(to_pillow(x))
    key = inputs.condition_hash
    return shown | condition_pictures(
        *(key, run_arguments, loaded.version), _model=model, _dataset=loaded.dataset, _inputs=inputs
    )


def show_pictures(pictures: dict[str, Image.Image]) -> None:
    """Pictures beside each other as far as there is room, small enough for two on a phone."""
    if pictures:
        shown = [spaced(picture) for picture in pictures.values()]
        st.image(shown, caption=[escaped(name) for name in pictures], width=WIDTH)


def columns_for(painting: bool, choices: Choices) -> tuple[DeltaGenerator, DeltaGenerator]:
    """Where inputs go, and where samples go: side by side, if no wide canvas needs the room."""
    side = number_within(1, MOST_PIXELS)
    width, height = (choices.value(name, side, 1) for name in ("width", "height"))
    if painting and width > MOST_RATIO * height:
        return st.container(), st.container()
    left, right = st.columns([5, 4] if painting else [2, 3], gap="medium")
    return left, right


def require_local_server() -> None:
    """Refuse to work where streamlit listens on all interfaces because nobody said otherwise."""
    if not st.get_option("server.address"):
        raise UserError(
            "streamlit opens this page to all of your network: start it from the repository's "
            "folder, or with --server.address localhost before the script's name; to open it on "
            "purpose, name an address there, such as 0.0.0.0"
        )


def main() -> None:
    """The page, or what is wrong in a sentence."""
    try:
        show()
    except UserError as error:
        st.error(escaped(sentence(error)))
