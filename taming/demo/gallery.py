"""The samples: shown, downloaded, and regions of them drawn again."""

from __future__ import annotations

import streamlit as st

from taming.demo.desk import Desk
from taming.demo.drawing import Drawn, draw_again
from taming.demo.history import history, show_changed, spaced, undo
from taming.demo.paper import kept_tokens, paint_mask
from taming.demo.plain_text import escaped
from taming.demo.settings import known_to
from taming.pictures import enlarged
from taming.sampling.sizes import pixels_per_token

SIDE, WIDTH = 256, 168  # pixels of one of several images: its own, and of the screen
AT_ONCE = "Draw at every click"


def show_gallery(desk: Desk) -> None:
    """The result's images, and its files."""
    if "result" not in st.session_state:
        st.caption("Press *Sample*: the images appear here.")
        return
    result: Drawn = st.session_state.result
    if len(result.images) == 1:
        st.image(enlarged(result.image), caption=escaped(result.caption))
    else:
        names = [f"image {number}" for number in range(1, len(result.images) + 1)]
        shown = [spaced(enlarged(image, SIDE)) for image in result.images]
        st.image(shown, caption=names, width=WIDTH)
        st.caption(escaped(result.caption))
    columns = st.columns(len(result.files))
    for column, (name, (content, kind)) in zip(columns, result.files.items(), strict=True):
        column.download_button(name, content, f"sample.{name.lower()}", kind, key=name)


def show_regions(desk: Desk) -> None:
    """A sample, of which regions are drawn again where they are clicked."""
    if "result" not in st.session_state:
        st.caption("Press *Sample* first; then click what you do not like in an image.")
        return
    result: Drawn = st.session_state.result
    number = _choose_image(result)
    left, right = st.columns([3, 2])
    right.button("Undo the drawing", key="undo", on_click=undo, disabled=not history().past)
    model = desk.model_of(result)
    cell = pixels_per_token(model)
    at_once = left.toggle(AT_ONCE, True, key="at once")
    marked = paint_mask(
        "region canvas",
        result.images[number],
        cell,
        at_once=at_once,
        version=(number, history().shown),  # of each, as a mask is for one picture
    )
    pressed = not at_once and st.button(
        "Draw the region again", key="again", type="primary", disabled=marked is None
    )
    st.caption(
        "Click or paint a region: its codes are sampled again with the settings at the side and a "
        "new seed, and all other codes are kept."
    )
    if marked is not None and (at_once or pressed):
        kept, settings = kept_tokens(marked, cell), desk.settings
        if result.run != desk.run:
            settings = known_to(model, settings, result.indices[number].numel())
        show_changed(draw_again(model, result, number, kept, settings))
        st.rerun()


def _choose_image(result: Drawn) -> int:
    count = len(result.images)
    if count == 1:
        return 0
    key, state = "chosen", st.session_state
    if state.get(key, 1) not in range(1, count + 1):
        state[key] = 1
    return int(st.radio("Image", range(1, count + 1), key=key, horizontal=True)) - 1
