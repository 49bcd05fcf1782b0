"""Markdown files as tests see them: blocks of code, commands, and links."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

PROGRAMS = ("bash", "cd", "conda", "git", "kill", "make", "pip", "pre-commit", "python", "python3")
PROGRAMS += ("source", "streamlit", "taming", "tensorboard", "torchrun")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
_FENCE = re.compile(
    r"^(?:<!-- (not run|run by): ([^>]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """Fenced code: its language, its text, and the heading that it stands under.

    The line above may say `<!-- not run: REASON -->`, or of what another test runs
    `<!-- run by: tests/x.py -->`.
    """

    language: str
    text: str
    heading: str
    not_run: str | None = None
    run_by: str | None = None

    @property
    def marked(self) -> bool:
        """Whether the tests of documents leave it alone."""
        return bool(self.not_run or self.run_by)

    @property
    def name(self) -> str:
        """For the ids of tests."""
        return f"{self.heading}: {self.text.strip().splitlines()[0][:60]}"


def blocks_of(path: Path) -> list[Block]:
    """Every fenced block of a Markdown file."""
    text = path.read_text()
    found = []
    for match in _FENCE.finditer(text):
        headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text[: match.start()]), re.MULTILINE)
        marks = {match[1].replace(" ", "_"): match[2]} if match[1] else {}
        found.append(Block(match[3], match[4], headings[-1] if headings else "", **marks))
    assert text.count("```") == 2 * len(found), f"{path.name}: a fence that is not closed"
    return found


def spans_of(document: Path | str) -> list[str]:
    """Every piece of inline code of a file or of text, on one line each."""
    text = document if isinstance(document, str) else document.read_text()
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text))]


def prose_of(path: Path) -> str:
    """A file without the tables at its end that a program has printed."""
    return path.read_text().partition("<!-- What follows is the output")[0]


def commands_in(shell: str) -> list[str]:
    """The commands of shell text, one line each, without comments."""
    lines = re.sub(r"\\\n\s*", " ", shell).splitlines()
    lines = [re.sub(r"(^|\s+)#.*$", "", line).strip() for line in lines]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def inline_commands(document: Path | str) -> list[str]:
    """Inline code that starts with a program and says what to do with it."""
    spans = [part for span in spans_of(document) for part in commands_in(span)]
    return [span for span in spans if is_command(span)]


def is_command(span: str) -> bool:
    """Whether inline code says what to do, and not just the name of a program or subcommand."""
    program, *words = span.split()
    return program in PROGRAMS and len(words) > (program in ("python", "taming"))


def links_of(path: Path) -> list[str]:
    """Targets of links and pictures, but for those of the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", path.read_text()))
    return [target for target in targets if "://" not in target]


def anchors_of(path: Path) -> set[str]:
    """What `#...` in a link can name: the headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
