"""Widgets whose values a link holds: read from the page's address at first, written to it then.

`st.query_params` are the address's. A value of a link that the widget does not take is a sentence
on the page, and the widget stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode

import streamlit as st

from taming.config import did_you_mean
from taming.demo.plain_text import escaped
from taming.errors import UserError, shorten

T = TypeVar("T")
MOST_PARAMETERS = 40  # of a link

# What links hold, in their order, and what it is called in sentences.
NAMES = {
    "run": "run",
    "source": "source",
    "example": "example",
    "begin": "example to begin with",
    "width": "width",
    "height": "height",
    "class": "class",
    "scale": "scale",
    "keep": "part to keep",
    "box": "box to keep",
    "temperature": "temperature",
    "top_k": "top k",
    "top_p": "top p",
    "guidance": "guidance",
    "schedule": "schedule of the guidance",
    "order": "order of the codes",
    "steps": "number of steps",
    "seed": "seed",
    "count": "number of images",
    "prompts": "prompts",
    "guide_class": "class that guides",
    "guide_steps": "number of steps of the guidance",
    "guide_rate": "learning rate of the guidance",
}
GUIDANCE = ("prompts", "guide_class", "guide_steps", "guide_rate")


class Place(Protocol):
    """Where widgets go: `st`, `st.sidebar` or a container."""

    def slider(self, label: str, *args: Any, **options: Any) -> Any: ...

    def number_input(self, label: str, *args: Any, **options: Any) -> Any: ...

    def selectbox(self, label: str, *args: Any, **options: Any) -> Any: ...

    def radio(self, label: str, *args: Any, **options: Any) -> Any: ...

    def text_input(self, label: str, *args: Any, **options: Any) -> Any: ...

    def text_area(self, label: str, *args: Any, **options: Any) -> Any: ...


def number_within(low: float, high: float) -> Callable[[str], Any]:
    """A reader of numbers from `low` to `high`, whole ones if these are."""
    kind = int if isinstance(low, int) and isinstance(high, int) else float

    def read(text: str) -> Any:
        try:
            number = kind(text)
        except (ValueError, OverflowError):
            raise UserError(
                "it is no number" if kind is float else "it is no whole number"
            ) from None
        if not low <= number <= high:
            raise UserError(f"it must be from {low} to {high}")
        return number

    return read


def one_of(options: Sequence[T], name: Callable[[T], str] = str) -> Callable[[str], T]:
    """A reader of the `name` of one of the options."""

    def read(text: str) -> T:
        by_name = {name(option): option for option in options}
        if text not in by_name:
            raise UserError(f"there is no such one{did_you_mean(text, by_name)}")
        return by_name[text]

    return read


class Choices:
    """The widgets of one run of the script.

    `key` of a widget is Streamlit's, by default the name. With `keep` its value lasts while it is
    not shown, which those have no use for that are of one example or image alone.

    Attributes:
        wanted: values, as text, that a link or an entry of the history gives widgets to come.
        values: what the widgets that there were say, as text, by the names of `NAMES`.
        kept: what they said in earlier runs, as Streamlit forgets those that are not shown while
            something else has to be mended.
    """

    def __init__(self) -> None:
        state = st.session_state
        if "wanted" not in state:
            state.wanted = st.query_params.to_dict()
            state.problems = []
            state.kept = {}
            state.widgets = {}
        self.wanted: dict[str, str] = state.wanted
        self.problems: list[str] = state.problems
        self.values: dict[str, str] = {}
        self.kept: dict[str, Any] = state.kept
        self._widgets: dict[str, tuple[str, Callable[[Any], str]]] = state.widgets
        self._shown: list[str] = []

    def value(self, name: str, read: Callable[[str], T], default: T) -> T:
        """What a widget that may come later will say; the default, if it was never shown."""
        text = self.wanted.get(name)
        if text is None:
            key, text_of = self._widgets.get(name, (name, str))
            if key not in st.session_state:
                return default
            text = text_of(st.session_state[key])
        try:
            return read(text)
        except UserError:  # the widget says so
            return default

    def begin(
        self,
        name: str,
        key: str,
        default: Any,
        read: Callable[[str], Any],
        *,
        keep: bool,
        text_of: Callable[[Any], str] = str,
    ) -> None:
        """Give the widget `key` the value that is wanted of it, or else its default at first.

        A value of before that `read` does not take any more, as the run changed, is dropped.
        """
        state = st.session_state
        if name in self.wanted:
            try:
                state[key] = read(text := self.wanted.pop(name))
            except UserError as error:
                self.problems.append(f"the link's {NAMES[name]} is {shorten(text)}; {error}")
        if key not in state:
            state[key] = self.kept.get(key, default)
        self._widgets[name] = key, text_of
        if keep:
            self._shown.append(key)

    def slider(
        self,
        label: str,
        name: str,
        limits: tuple[float, float],
        default: float,
        *,
        key: str | None = None,
        keep: bool = True,
        place: Place = st.sidebar,
        **options: Any,
    ) -> float:
        """A number; `options` are of `st.slider`."""
        key = key or name
        self.begin(name, key, default, number_within(*limits), keep=keep)
        value = float(place.slider(label, *limits, key=key, **options))
        self.values[name] = str(value)
        return value

    def number(
        self,
        label: str,
        name: str,
        limits: tuple[int, int],
        default: int,
        *,
        key: str | None = None,
        keep: bool = True,
        place: Place = st.sidebar,
        **options: Any,
    ) -> int:
        """A whole number; `options` are of `st.number_input`."""
        key, state = key or name, st.session_state
        self.begin(name, key, default, number_within(*limits), keep=keep)
        if not limits[0] <= state[key] <= limits[1]:
            state[key] = default
        value = int(place.number_input(label, *limits, key=key, **options))
        self.values[name] = str(value)
        return value

    def choice(
        self,
        label: str,
        name: str,
        options: Sequence[T],
        *,
        key: str | None = None,
        keep: bool = True,
        place: Place = st.sidebar,
        default: int = 0,
        text_of: Callable[[T], str] = str,
        radio: bool = False,
        **more: Any,
    ) -> T:
        """One of several; `text_of` is what links call it."""
        key, state = key or name, st.session_state
        read = one_of(options, text_of)
        self.begin(name, key, options[default], read, keep=keep, text_of=text_of)
        if state[key] not in options:
            state[key] = options[default]
        show: Any = place.radio if radio else place.selectbox
        value: T = show(label, options, key=key, **more)
        self.values[name] = text_of(value)
        return value

    def toggle(self, label: str, key: str) -> bool:
        """A switch that no link holds, off at first and then as it was left."""
        if key not in st.session_state:
            st.session_state[key] = self.kept.get(key, False)
        self._shown.append(key)
        return bool(st.toggle(label, key=key))

    def lines(self, label: str, name: str, *, key: str, place: Place, **options: Any) -> str:
        """A text of several lines, empty at first; `options` are of `st.text_area`."""
        self.begin(name, key, "", str, keep=True)
        value = str(place.text_area(label, key=key, **options))
        self.values[name] = value
        return value

    def text(self, label: str, name: str, default: str, *, key: str, keep: bool = True) -> str:
        """A text in the sidebar."""
        self.begin(name, key, default, str, keep=keep)
        value = str(st.sidebar.text_input(label, key=key, max_chars=200))
        self.values[name] = value
        return value

    def finish(self) -> None:
        """After all widgets: the address holds their values; what no widget took is a sentence."""
        for name in list(self.wanted)[:MOST_PARAMETERS]:
            if name in NAMES:
                self.problems.append(f"the link gives the {NAMES[name]}, which has no use here")
            else:
                hint = did_you_mean(name, NAMES)
                self.problems.append(f"the link has {shorten(name)}, which is unknown{hint}")
        self.wanted.clear()
        self.kept |= {key: st.session_state[key] for key in self._shown}
        ordered = {name: self.values[name] for name in NAMES if name in self.values}
        if st.query_params.to_dict() != ordered:
            st.query_params.from_dict(ordered)

    def address(self) -> str:
        """The link to what is chosen now."""
        ordered = {name: self.values[name] for name in NAMES if name in self.values}
        page = st.context.url  # as the browser sees it
        start = f"{page.rstrip('/')}/" if page else ""
        return f"{start}?{urlencode(ordered)}"

    def show_problems(self) -> None:
        """What was wrong with the link, until something is drawn."""
        for problem in self.problems:
            st.warning(escaped(problem), icon=":material/link_off:")


def forget_problems() -> None:
    """Take back what `show_problems` shows."""
    st.session_state.problems.clear()
