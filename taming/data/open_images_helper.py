"""Which Open Images classes are used, and which are taken as one, so that they agree with COCO's.

`open_images_classes.tsv` holds both.
"""

from __future__ import annotations

from importlib import resources


def _rows(kind: str) -> list[tuple[str, str]]:
    text = resources.files("taming.data").joinpath("open_images_classes.tsv").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line.startswith(f"{kind}\t"))
    return [(first, second) for _, first, second in rows]


# Category ids and the ids that stand for them.
open_images_unify_categories_for_coco: dict[str, str] = dict(_rows("unify"))

# The 300 most frequent classes and those that COCO has: (name, number of boxes).
top_300_classes_plus_coco_compatibility: list[tuple[str, int]] = [
    (name, int(count)) for name, count in _rows("class")
]
