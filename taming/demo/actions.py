"""What can be done on the page: a tab for each action that fits the run.

A further one is a row of `ACTIONS`: a function of the `Desk` that shows its widgets, draws
(`taming.demo.drawing`), and gives what it drew to `show_new`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import streamlit as st

from taming.demo.compare import show_comparison
from taming.demo.desk import Desk
from taming.demo.gallery import show_gallery, show_regions
from taming.demo.guided import show_guidance
from taming.demo.history import history, show_history
from taming.demo.plain_text import escaped
from taming.demo.runs import Loaded
from taming.errors import UserError, sentence


class Action(NamedTuple):
    """A tab of the page."""

    name: str
    show: Callable[[Desk], None]
    fits: Callable[[Loaded], bool] = lambda loaded: True


def _show_history(desk: Desk) -> None:
    show_history(desk.arguments.resume)


def _show_link(desk: Desk) -> None:
    st.caption(
        "This link, which is the page's address too, holds the run, the settings, the seed, the "
        "class, the example and what guides; not what is painted or uploaded."
    )
    st.code(desk.choices.address(), language=None, wrap_lines=True)


ACTIONS = (
    Action("Samples", show_gallery),
    Action("Change a region", show_regions),
    Action("Compare", show_comparison),
    Action("Guide", show_guidance),
    Action("History", _show_history),
    Action("Share", _show_link),
)


def show_actions(desk: Desk) -> None:
    """All tabs; which of them is open is known to the browser alone.

    At another place in the page they are new to it, so that the first one opens.
    """
    for _ in range(history().turns % 2):
        st.empty()
    fitting = [action for action in ACTIONS if action.fits(desk.loaded)]
    for action, tab in zip(fitting, st.tabs([action.name for action in fitting]), strict=True):
        with tab:
            try:
                action.show(desk)
            except UserError as error:  # the other tabs go on
                st.error(escaped(sentence(error)))
