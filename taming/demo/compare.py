"""Two settings side by side, with the same seed and condition."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from taming.demo.desk import Desk
from taming.demo.drawing import Drawn
from taming.demo.history import show_new
from taming.demo.plain_text import escaped
from taming.pictures import enlarged
from taming.sampling import SampleSettings
from taming.sampling.settings import SCHEDULES


def show_comparison(desk: Desk) -> None:
    """Choose the second settings, draw with both, and look at what they give."""
    st.caption("The settings at the side (A) beside others (B), with the same seed.")
    other, changed = choose_others(desk)
    if st.button("Compare", key="compare", type="primary", disabled=desk.inputs is None):
        st.session_state.pop("comparison", None)
        first = desk.draw(desk.settings, desk.link)
        second = desk.draw(other, {**desk.link, **changed})
        show_new(second)
        show_new(first)
        st.session_state.comparison = (first, second)
        st.rerun()  # the tabs to the left show it too
    if "comparison" in st.session_state:
        show_pair(*st.session_state.comparison)


def choose_others(desk: Desk) -> tuple[SampleSettings, dict[str, str]]:
    """The second settings, and those of the link that they change."""
    own, codes, columns = desk.settings, desk.model.n_codes, st.columns(3)
    state = st.session_state
    if state.get("top_k of B", 1) > codes:
        del state["top_k of B"]
    temperature = columns[0].slider("Temperature of B", 0.0, 2.0, 0.7, 0.05, key="temperature of B")
    top_k = int(columns[1].number_input("Top k of B", 1, codes, min(100, codes), key="top_k of B"))
    top_p = columns[2].slider("Top p of B", 0.01, 1.0, 1.0, 0.01, key="top_p of B")
    changed = {"temperature": str(temperature), "top_k": str(top_k), "top_p": str(top_p)}
    other = replace(own, temperature=temperature, top_k=top_k, top_p=top_p)
    if desk.model.cond_drop:
        guidance = columns[0].slider("Guidance of B", 0.0, 10.0, 1.0, 0.25, key="guidance of B")
        schedule = columns[1].selectbox("Schedule of B", list(SCHEDULES), key="schedule of B")
        changed |= {"guidance": str(guidance), "schedule": schedule}
        other = replace(other, guidance=guidance, guidance_schedule=schedule)
    return other, changed  # in all else, such as order and steps, as A


def show_pair(first: Drawn, second: Drawn) -> None:
    """The images of both, row by row."""
    columns = st.columns(2)
    for column, name, drawn in zip(columns, "AB", (first, second), strict=True):
        column.caption(f"**{name}**: {escaped(drawn.caption)}")
        for image in drawn.images:
            column.image(enlarged(image))
