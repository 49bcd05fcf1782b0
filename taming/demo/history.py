"""What was drawn in this session: versions to go back to, thumbnails, and all of it as a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import streamlit as st
from PIL import Image, ImageOps

from taming.checkpoint.runs import name_of
from taming.demo.drawing import Drawn, zipped
from taming.demo.links import forget_problems
from taming.demo.plain_text import escaped
from taming.demo.runs import SHOWN as SHOWN_RUN
from taming.demo.runs import is_gone
from taming.pictures import enlarged

MOST_ENTRIES = 40
MOST_PIXELS = 60_000_000  # of all entries' images together
THUMBNAIL, SHOWN = 96, 4  # pixels, and how many of an entry


@dataclass
class History:
    """Entries, the newest first, and what can be undone.

    Attributes:
        past: versions of the result before regions of it were drawn again.
        count: of all entries there ever were.
    """

    entries: list[tuple[int, Drawn]] = field(default_factory=list)  # with their numbers
    past: list[Drawn] = field(default_factory=list)
    count: int = 0
    turns: int = 0  # how often the page is to open its first tab
    shown: int = 0  # how often another result was shown
    _archive: tuple[tuple[int, ...], bytes] | None = None  # of the entries of these numbers

    def add(self, drawn: Drawn) -> None:
        """A new entry; the oldest go where there are too many."""
        self.count += 1
        self.entries.insert(0, (self.count, drawn))
        del self.entries[MOST_ENTRIES:]
        while len(self.entries) > 1 and self.pixels > MOST_PIXELS:
            self.entries.pop()

    @property
    def pixels(self) -> int:
        """Of all images."""
        return sum(
            image.width * image.height for _, drawn in self.entries for image in drawn.images
        )

    def archive(self) -> bytes:
        """All images, as PNGs that say how they were made; made once for the same entries."""
        numbers = tuple(number for number, _ in self.entries)
        if self._archive is None or self._archive[0] != numbers:
            self._archive = numbers, zipped(dict(self._files()))
        return self._archive[1]

    def _files(self) -> Iterator[tuple[str, bytes]]:
        for number, drawn in reversed(self.entries):
            for place, png in enumerate(drawn.pngs):
                yield f"{number:03}_{name_of(drawn.run)}_seed{drawn.seed}/{place:06}.png", png


def history() -> History:
    """This session's."""
    if "history" not in st.session_state:
        st.session_state.history = History()
    found: History = st.session_state.history
    return found


def _show(drawn: Drawn) -> None:
    st.session_state.result = drawn
    history().shown += 1


def show_new(drawn: Drawn) -> None:
    """Make samples the result, with nothing to undo, and an entry of the history."""
    _show(drawn)
    history().past.clear()
    history().add(drawn)
    forget_problems()


def show_changed(drawn: Drawn) -> None:
    """Make a changed result the result, which can be undone."""
    history().past.append(st.session_state.result)
    _show(drawn)
    history().add(drawn)


def undo() -> None:
    """Go back to the result before its last change."""
    _show(history().past.pop())


def restore(drawn: Drawn, given: Sequence[str]) -> None:
    """Show an entry again, and set the page to what it was drawn with, if its run is still there;
    `given` are those of the command line."""
    _show(drawn)
    history().past.clear()
    history().turns += 1
    forget_problems()
    if is_gone(drawn.run, given):
        st.session_state.problems.append(
            f"the run of this entry, {name_of(drawn.run)}, is not there any more; its image is "
            "shown, but nothing can be drawn with it"
        )
        if st.session_state.get(SHOWN_RUN) == drawn.run:  # which would be said once more
            del st.session_state[SHOWN_RUN]
    else:
        st.session_state.wanted = dict(drawn.link)


def clear() -> None:
    """Forget all entries."""
    history().entries.clear()


def show_history(given: Sequence[str]) -> None:
    """The entries, and what can be done with them; `given` are the command line's runs."""
    entries = history().entries
    if not entries:
        st.caption("What you draw is listed here, until the page is closed.")
        return
    left, right = st.columns(2)
    left.download_button(
        "Download all (ZIP)", history().archive(), "history.zip", "application/zip", key="archive",
        help="every image as a PNG that says how it was made",
    )  # fmt: skip
    right.button("Clear the history", key="clear history", on_click=clear)
    for number, drawn in entries:
        with st.container(border=True):
            pictures, text = st.columns([2, 3])
            pictures.image([spaced(thumbnail(image)) for image in drawn.images[:SHOWN]])
            more = len(drawn.images) - SHOWN
            images = f" and {more} more image{'s' * (more > 1)}" if more > 0 else ""
            name = escaped(name_of(drawn.run))
            text.caption(f"**{number}. {name}**{images}  \n{escaped(drawn.caption)}")
            text.button("Restore", key=f"restore {number}", on_click=restore, args=(drawn, given))


def spaced(image: Image.Image) -> Image.Image:
    """An image with a transparent frame, as those of a row touch each other."""
    return ImageOps.expand(image.convert("RGBA"), max(image.size) // 40, (0, 0, 0, 0))


def thumbnail(image: Image.Image) -> Image.Image:
    """A small version."""
    small = enlarged(image, THUMBNAIL)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
