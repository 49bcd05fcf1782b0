"""Text that is not ours, of links, files and errors, where Streamlit reads Markdown."""

from __future__ import annotations

import re

# What begins or ends anything in Markdown, Streamlit's colors and formulas included.
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#!&~$|]")


def escaped(text: str) -> str:
    """Markdown that shows the text as it is, in one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
