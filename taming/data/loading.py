"""How the image files of a dataset are loaded, also where other datasets wrap or join it."""

from __future__ import annotations

from taming.data.wrapping import image_files_in


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
