"""ImageNet's 1000 classes: WordNet ids and names, from `imagenet_classes.tsv` (its head says whose
they are)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from taming.errors import UserError
from taming.user_files import read_text


def _read() -> dict[str, str]:
    text = resources.files("taming.data").joinpath("imagenet_classes.tsv").read_text("utf-8")
    lines = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return dict(lines)


NAMES = _read()  # by synset
SYNSETS = list(NAMES)  # by class number


def class_indices(string: str) -> list[int]:
    """Class numbers of `"30-32, 40"`: ranges end before their second number; raises `UserError`."""
    indices: list[int] = []
    for part in string.split(","):
        first, dash, end = part.strip().partition("-")
        if not first.isdecimal() or (dash and not end.isdecimal()):
            raise UserError(f"sub_indices: {part.strip()!r} is no class number or range like 30-32")
        numbers = range(int(first), int(end) if dash else int(first) + 1)
        if not numbers or numbers[-1] >= len(SYNSETS):
            raise UserError(f"sub_indices: {part.strip()!r} holds no class from 0 to 999")
        indices += numbers
    return indices


def give_synsets_from_indices(
    indices: Sequence[int], path_to_yaml: str | Path | None = None
) -> list[str]:
    """WordNet ids of class numbers; a YAML file may say which number is which class.

    Raises `UserError` if it cannot be read, and for a number that there is not.
    """
    try:
        text = "" if path_to_yaml is None else read_text(path_to_yaml)
        synsets = dict(enumerate(SYNSETS)) if path_to_yaml is None else yaml.safe_load(text)
        return [str(synsets[index]) for index in indices]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(f"{path_to_yaml or 'ImageNet'} has no such classes ({error})") from None
