"""Links to files of the repository, which lead to the pages that the site has of them.

So that they lead somewhere wherever the documents are read: in a clone, and in the site.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

# A file beside docs/, and its page.
PAGES = (
    (re.compile(r"^taming/(.*?)(?:/__init__)?\.py$"), "reference/python/taming.{}.md"),
    (re.compile(r"^scripts/(.*)\.ipynb$"), "notebooks/{}.md"),
    (re.compile(r"^configs/(.*)\.yaml$"), "configs/{}.md"),
    (re.compile(r"^configs/?()$"), "configs/index.md"),
    (re.compile(r"^(CONTRIBUTING|SECURITY|CHANGELOG)\.md$"), "project/{}.md"),
)
LINK = re.compile(r"\]\(\s*(\.\./[^)#\s]*)(#[^)\s]*)?\s*\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with links to pages in place of those to files."""
    folder = posixpath.dirname(page.file.src_uri)

    def to_page(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        target = page_of(place)
        if target is None:
            return match[0]
        return f"]({posixpath.relpath(target, folder or '.')}{match[2] or ''})"

    return LINK.sub(to_page, markdown)


def page_of(place: str) -> str | None:
    """The page of a file by its path in the repository; None if the site has none of it."""
    for pattern, page in PAGES:
        if found := pattern.match(place):
            name = found[1].replace("/", ".") if place.startswith("taming/") else found[1]
            return page.format(name.lower() if page.startswith("project/") else name)
    return None
