from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from taming.errors import UserError
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.plots import images_at, nearest, neighbors_picture, plot_classes
from taming.evaluation.sources.folder import FolderSource
from taming.pictures import HEAD
from tests.kit.images import image_folder, noise


def shuffled_bank(features: torch.Tensor) -> FeatureBank:
    bank = FeatureBank()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    bank.update(order, features[order])
    return bank


def test_nearest_by_brute_force() -> None:
    random = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(n, 4, generator=random) for n in (9, 30))
    found = nearest(shuffled_bank(ours), shuffled_bank(theirs), rows=3, neighbors=5)
    assert list(found) == [0, 4, 8]
    for sample, places in found.items():
        order = (theirs - ours[sample]).square().sum(1).argsort()
        assert places == order[:5].tolist()
    few = nearest(shuffled_bank(ours[:2]), shuffled_bank(theirs[:3]), rows=8, neighbors=5)
    assert {sample: sorted(places) for sample, places in few.items()} == {
        0: [0, 1, 2],
        1: [0, 1, 2],
    }


def test_only_wanted_images_are_read(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 6)
    (folder / "003.png").write_bytes(b"damaged, and not asked for")
    found = {image.index: image for image in images_at(FolderSource(folder, workers=0), [5, 1])}
    assert sorted(found) == [1, 5]
    np.testing.assert_array_equal(found[5].pixels.permute(1, 2, 0), noise(seed=5))


def test_rows_of_a_picture(tmp_path: Path) -> None:
    source = FolderSource(image_folder(tmp_path, 5), workers=0)
    grid = np.asarray(neighbors_picture(source, source, {2: [2, 0], 4: [4, 1]}, side=12))
    # The cells' gaps are 8 pixels, twice as wide between the samples and the nearest images.
    assert grid.shape == (HEAD + 8 + 2 * 20, 8 + 20 + 8 + 2 * 20, 3)
    top = HEAD + 8
    np.testing.assert_array_equal(grid[top : top + 12, 8:20], noise(seed=2))
    np.testing.assert_array_equal(grid[top + 20 : top + 32, 36:48], noise(seed=4))
    np.testing.assert_array_equal(grid[top + 20 : top + 32, 56:68], noise(seed=1))


@pytest.mark.parametrize("classes", [3, 100])
def test_bars_of_classes(tmp_path: Path, classes: int) -> None:
    path = plot_classes({n: float(n % 7) for n in range(classes)}, tmp_path / "out" / "x.png")
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install"):
        plot_classes({0: 1.0}, tmp_path / "x.png")
