"""Words of code and documents have one spelling, the field's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

# Spellings, as parts of words, and what the field writes.
SPELLINGS = {
    "quantis": "quantiz",
    "optimis(?!t)": "optimiz",
    "normalis": "normaliz",
    "initialis": "initializ",
    "visualis": "visualiz",
    "colour": "color",
    r"(?<![a-z])grey": "gray",
    "neighbour": "neighbor",
    "behaviour": "behavior",
    r"(?<![a-z])centre": "center",
    "labelled|labelling": "labeled, labeling",
    "data sets?": "dataset",
    r"(?<![a-z])theirs|_judge|_insist": "a name for the thing",
}
# Flags, keys of results and files that have other spellings, which earlier users know.
PUBLISHED = (
    "prc_neighbours",
    '"--neighbours"',
    "named_right_by_5_neighbours",
    "-neighbours.png",
)


def misspelled(text: str) -> Iterator[tuple[int, str]]:
    """(line, word) of spellings that are not the field's."""
    for name in PUBLISHED:
        text = text.replace(name, "")
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in SPELLINGS:
            for match in re.finditer(pattern, line, re.IGNORECASE):
                yield number, match[0]


TEXTS = [
    *sorted(ROOT.glob("taming/**/*.py")),
    *sorted(ROOT.glob("scripts/*.py")),
    ROOT / "main.py",
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_have_one_spelling(path: Path) -> None:
    assert list(misspelled(path.read_text(encoding="utf-8"))) == []


def test_other_spellings_are_noticed() -> None:
    text = "Colour\nan optimiser of a data set\n--prc_neighbours is fine, so is an optimistic color"
    assert set(misspelled(text)) == {(1, "Colour"), (2, "optimis"), (2, "data set")}
