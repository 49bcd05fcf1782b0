"""Small, correct datasets in the formats of all datasets, rendered instead of downloaded."""

from __future__ import annotations

from pathlib import Path

from taming.data.examples import annotated, images
from taming.data.examples.writer import ExampleWriter

WRITERS = (
    images.write_faces,
    images.write_imagenet,
    images.write_imagenet_tars,
    images.write_examples,
    images.write_sflckr,
    images.write_ade20k,
    annotated.write_coco,
    annotated.write_open_images,
    images.write_own,
)


def write_all(root: str | Path, train: int = 8, validation: int = 4) -> int:
    """Write every dataset below `root`; returns how many files there are then."""
    out = ExampleWriter(Path(root), train, validation)
    for write in WRITERS:
        write(out)
    return sum(path.is_file() for path in Path(root).rglob("*"))
