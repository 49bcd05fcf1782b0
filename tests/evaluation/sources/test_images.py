"""What every set of images has: batches, hashes, and the manifest of what was read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from taming.evaluation.sources.images import (
    NO_LABEL,
    Manifest,
    SourceImage,
    by_size,
    indices_and_labels,
    pixel_digest,
)


def test_hashes_are_of_the_size_as_well() -> None:
    flat = np.arange(36, dtype=np.uint8)
    shapes = [(3, 2, 6), (3, 6, 2), (3, 3, 4)]
    assert len({pixel_digest(flat.reshape(shape)) for shape in shapes}) == 3


def test_batches_are_full_where_there_are_enough_of_a_size() -> None:
    images = (SourceImage(n, torch.zeros(3, 1, 1 + n % 7, dtype=torch.uint8)) for n in range(84))
    assert [len(batch) for batch in by_size(images, 4)] == [4] * 21


def test_few_images_wait_for_others_of_their_size() -> None:
    held: set[int] = set()
    most = 0

    def arriving() -> Any:
        nonlocal most
        for n in range(500):
            held.add(n)
            most = max(most, len(held))
            yield SourceImage(n, torch.zeros(3, 1, 1 + n % 100, dtype=torch.uint8))

    for batch in by_size(arriving(), 4):
        held -= {image.index for image in batch}
    assert not held
    assert most <= 32


def test_labels_of_batches() -> None:
    pixels = torch.zeros(3, 1, 1, dtype=torch.uint8)
    images = [SourceImage(n, pixels, label) for n, label in ((4, 7), (2, None), (0, 0))]
    indices, labels = indices_and_labels(images)
    assert indices.tolist() == [4, 2, 0] and labels.tolist() == [7, NO_LABEL, 0]
    assert NO_LABEL < 0  # no class


def test_a_manifest_says_sizes_as_width_and_height() -> None:
    images = [
        SourceImage(n, torch.zeros(3, 4, 5 + n // 3, dtype=torch.uint8), label=n) for n in range(20)
    ]
    manifest = Manifest(20)
    manifest.update(images)
    common = {f"{width}x4": 3 for width in range(5, 10)}
    assert manifest.describe()["sizes"] == {**common, "2 other sizes": 5}
    part, rest = Manifest(20), Manifest(20)
    part.update(images[:5])
    rest.update(images[5:])
    part.merge_state(rest.state_dict())
    assert part.labels.tolist() == list(range(20)) and part.describe() == manifest.describe()


def test_a_manifest_in_parts() -> None:
    images = [
        SourceImage(n, torch.full((3, 4, 5), n, dtype=torch.uint8), label=n) for n in range(4)
    ]
    whole, odd = Manifest(4), Manifest(4)
    whole.update(images)
    odd.update(images[1::2])
    part = Manifest(4)
    part.update(images[::2])
    assert part.fingerprint() != whole.fingerprint()
    two = Manifest(2)
    two.update(replace(image, index=n) for n, image in enumerate(images[::2]))
    assert part.fingerprint() == two.fingerprint()  # of those that were seen
    part.merge_state(odd.state_dict())
    assert part.describe() == whole.describe()
    assert part.labels.tolist() == [0, 1, 2, 3]
    assert part.describe()["sizes"] == {"5x4": 4} and "converted_to_rgb" not in part.describe()


def test_the_commonest_sizes_are_named() -> None:
    widths = [n for n in range(1, 9) for _ in range(n)]
    manifest = Manifest(len(widths))
    manifest.update(
        SourceImage(n, torch.zeros(3, 2, width, dtype=torch.uint8))
        for n, width in enumerate(widths)
    )
    named = {"4x2": 4, "5x2": 5, "6x2": 6, "7x2": 7, "8x2": 8}
    assert manifest.describe()["sizes"] == named | {"3 other sizes": 1 + 2 + 3}
