from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from taming.errors import UserError
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.plots import (
    NAMED_CLASSES,
    images_at,
    nearest,
    neighbors_picture,
    plot_bars,
    plot_classes,
    plot_codes,
    plot_map,
    plot_sweep,
    plotted,
    spread,
)
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


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Finds the figure that was saved at a path, without having it drawn."""
    saved: list[Any] = []

    def keep(self: Any, path: Path, **_: Any) -> None:
        saved.append(self)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", keep)

    def find(path: Path) -> Any:
        assert path.is_file()
        return saved[-1]

    return find


def heights(axes: Any) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def test_classes_go_from_the_best_to_the_worst(
    tmp_path: Path, figure: Callable[[Path], Any]
) -> None:
    (axes,) = figure(plot_classes({0: 7.0, 3: 2.0, 5: 4.0}, tmp_path / "x.png")).axes
    assert heights(axes) == [2, 4, 7]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "5", "0"]
    (axes,) = figure(plot_bars({0: 7.0, 3: 2.0}, tmp_path / "x.png", "share")).axes
    assert heights(axes) == [7, 2] and axes.get_ylabel() == "share"
    for count in (NAMED_CLASSES, NAMED_CLASSES + 1):
        named = count == NAMED_CLASSES
        numbers = dict.fromkeys(range(100, 100 + count), 1.0)
        (axes,) = figure(plot_classes(numbers, tmp_path / "x.png")).axes
        assert (axes.get_xlabel() == "class") == named
        assert (axes.get_xticklabels()[0].get_text() == "100") == named


def test_a_sweep_has_a_chart_per_metric_and_a_line_per_value(
    tmp_path: Path, figure: Callable[[Path], Any]
) -> None:
    rows = [
        {"top_k": k, "top_p": p, "fid": 10 * k + p, "isc": k - p}
        for p in (0.5, 1.0)
        for k in (9, 3, 6)
    ]
    charts = figure(plot_sweep(rows, ["top_k", "top_p"], tmp_path / "x.png")).axes
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in charts] == [
        *(("top_k", "fid"), ("top_k", "isc"))
    ]
    for axes, value in zip(charts, (lambda k, p: 10 * k + p, lambda k, p: k - p), strict=True):
        for line, p in zip(axes.lines, (0.5, 1.0), strict=True):
            assert line.get_label() == f"top_p {p:g}"
            assert list(line.get_xdata()) == [3, 6, 9]
            assert list(line.get_ydata()) == [value(k, p) for k in (3, 6, 9)]
    assert charts[0].get_legend() is not None
    mixed = [*rows, {"top_k": "3+9", "top_p": 1.0, "fid": 5.0, "isc": 1.0}]
    (axes, _) = figure(plot_sweep(mixed, ["top_k", "top_p"], tmp_path / "x.png")).axes
    assert list(axes.lines[1].get_xdata()) == ["9", "3", "6", "3+9"]


def test_codes_go_from_the_commonest_to_the_rarest(
    tmp_path: Path, figure: Callable[[Path], Any]
) -> None:
    counts = {"a": np.array([0, 1, 6, 3, 0]), "b": np.zeros(4, int)}
    charts = figure(plot_codes(counts, tmp_path / "x.png")).axes
    (steps,) = charts[0].patches
    np.testing.assert_allclose(steps.get_data().values, [0.6, 0.3, 0.1])
    assert charts[0].get_xlim() == (0, 5) and charts[0].lines[0].get_ydata()[0] == 1 / 5
    assert [axes.get_title() for axes in charts] == ["a", "b"]


def test_a_map_has_its_numbers_at_their_places(
    tmp_path: Path, figure: Callable[[Path], Any]
) -> None:
    values = np.array([[3.0, 9.0, 5.0], [4.0, 5.0, 7.0]])
    axes, bar = figure(plot_map(values, tmp_path / "x.png", "nats")).axes
    (shown,) = axes.images
    np.testing.assert_array_equal(shown.get_array(), values)
    assert shown.get_clim() == (3, 9) and bar.get_ylabel() == "nats"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top


def test_spread_from_the_first_to_the_last() -> None:
    assert spread(10, 4) == [0, 3, 6, 9] and spread(8, 3) == [0, 4, 7]
    assert spread(2, 5) == [0, 1] and spread(9, 1) == [0]


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install"):
        plot_classes({0: 1.0}, tmp_path / "x.png")
    assert plotted(plot_classes, {0: 1.0}, tmp_path / "x.png") == []
    assert "plots need matplotlib" in caplog.text
