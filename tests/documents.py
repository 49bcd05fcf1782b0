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
PROGRAMS += ("source", "streamlit", "tensorboard", "torchrun")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """Fenced code: its language, its text, and the heading that it stands under."""

    language: str
    text: str
    heading: str

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
        found.append(Block(match[1], match[2], headings[-1] if headings else ""))
    assert text.count("```") == 2 * len(found), f"{path.name}: a fence that is not closed"
    return found


def spans_of(path: Path) -> list[str]:
    """Every piece of inline code, on one line each."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", path.read_text()))]


def commands_in(shell: str) -> list[str]:
    """The commands of shell text, one line each, without comments."""
    lines = re.sub(r"\\\n\s*", " ", shell).splitlines()
    lines = [re.sub(r"(^|\s+)#.*$", "", line).strip() for line in lines]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def inline_commands(path: Path) -> list[str]:
    """Inline code that starts with a program and says what to do with it."""
    spans = [part for span in spans_of(path) for part in commands_in(span)]
    return [span for span in spans if span.split()[0] in PROGRAMS and len(span.split()) > 1]


def links_of(path: Path) -> list[str]:
    """Targets of links and pictures, but for those of the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", path.read_text()))
    return [target for target in targets if "://" not in target]


def anchors_of(path: Path) -> set[str]:
    """What `#...` in a link can name: the headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
