"""How the image files of a dataset are loaded, also where other datasets wrap or join it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taming.data.base import ImageFiles


def image_files_in(dataset: object) -> Iterator[ImageFiles]:
    """The `ImageFiles` that `dataset` is, wraps or joins, in the order of its items."""
    if isinstance(dataset, ImageFiles):
        yield dataset
        return
    # Wrappers of any project keep what they wrap in `data`; torch's in `datasets`.
    inner = getattr(dataset, "data", None)
    parts: Sequence[object] = getattr(dataset, "datasets", [] if inner is None else [inner])
    for part in parts:
        yield from image_files_in(part)


def set_loading(dataset: object, fast_decode: bool, image_bytes: bool) -> int:
    """Set how all the `ImageFiles` in `dataset` load; returns how many these are.

    Args:
        fast_decode: see `read_rgb_fast`; images that have maps or boxes keep their size.
        image_bytes: items hold `image` as uint8 0..255, which the models scale to [-1, 1].
    """
    found = list(image_files_in(dataset))
    for files in found:
        files.fast_decode, files.image_bytes = fast_decode, image_bytes
    return len(found)
