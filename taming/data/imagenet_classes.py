"""ImageNet's 1000 classes: WordNet ids and names, from `imagenet_classes.tsv` (its head says whose
they are)."""

from __future__ import annotations

from importlib import resources


def _read() -> dict[str, str]:
    text = resources.files("taming.data").joinpath("imagenet_classes.tsv").read_text("utf-8")
    lines = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return dict(lines)


NAMES = _read()  # by synset
SYNSETS = list(NAMES)  # by class number
