"""Pictures of evaluations: distances per class, sweeps, samples beside their nearest images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image

from taming.errors import UserError
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.sources.images import ImageSource, SourceImage
from taming.figures import new_figure, save_figure
from taming.pictures import grid

NAMED_CLASSES = 40  # more would not be readable
MARKERS = "osD^vP*X"
SHARES = ("acceptance",)  # swept settings whose values are of several orders of magnitude
log = logging.getLogger(__name__)


def plot_classes(distances: Mapping[int, float], path: Path) -> Path:
    """Bars of the Fréchet distance of every class, from the best to the worst."""
    ordered = dict(sorted(distances.items(), key=lambda item: item[1]))
    many = f"the {len(ordered)} classes, by their distance"
    return plot_bars(ordered, path, "FID of the class", many)


def plot_sweep(rows: Sequence[Mapping[str, Any]], swept: Sequence[str], path: Path) -> Path:
    """A chart per metric over the first of the `swept` settings; a line per value of the others.

    If a value of the first one is a text ("100+200", a mixture), its values are not to scale.
    """
    metrics = [name for name in rows[0] if name not in swept]
    figure, charts = new_figure(4.5 * len(metrics), 4, len(metrics))
    along, others = swept[0], swept[1:]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(", ".join(f"{name} {_text(row[name])}" for name in others), []).append(
            row
        )
    to_scale = not any(isinstance(row[along], str) for row in rows)
    for metric, axes in zip(metrics, charts, strict=True):
        for n, (name, group) in enumerate(groups.items()):
            if to_scale:
                group = sorted(group, key=lambda row: row[along])
            at = [row[along] if to_scale else _text(row[along]) for row in group]
            points = at, [row[metric] for row in group]
            axes.plot(*points, marker=MARKERS[n % len(MARKERS)], label=name)
        axes.set(xlabel=along, ylabel=metric, xscale="log" if along in SHARES else "linear")
    if others:
        charts[0].legend()
    return save_figure(figure, path)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def plot_codes(counts: Mapping[str, np.ndarray], path: Path) -> Path:
    """How often each code occurs, codes from the commonest to the rarest: a panel per name.

    Codes that do not occur are right of the curve's end; the dashed line is the share of each code
    if all were equally common.
    """
    figure, charts = new_figure(4.5 * len(counts), 3.5, len(counts))
    for (name, numbers), axes in zip(counts.items(), charts, strict=True):
        shares = np.sort(numbers)[::-1] / max(numbers.sum(), 1)
        used = shares[shares > 0]
        alike = 1 / len(numbers)
        axes.stairs(used, baseline=used.min(initial=alike) / 2, fill=True)
        axes.axhline(alike, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, len(numbers)), yscale="log")
        axes.set_title("\n".join(wrap(name, 40)), fontsize=10)
        axes.set(xlabel=f"the {len(numbers)} codes, the commonest first", ylabel="share of all")
    return save_figure(figure, path)


def images_at(source: ImageSource, indices: Sequence[int]) -> Iterator[SourceImage]:
    """Those images of a set alone; the others are neither read nor sampled."""
    others = set(range(len(source))).difference(indices)
    for batch in source.batches(len(indices), skip=others):
        yield from batch


def nearest(
    samples: FeatureBank, reference: FeatureBank, rows: int, neighbors: int
) -> dict[int, list[int]]:
    """For `rows` samples, evenly spaced, the indices of the images with the nearest features."""
    sampled, real = samples.compute(), torch.from_numpy(reference.compute())
    chosen = spread(len(sampled), rows)
    distances = torch.cdist(torch.from_numpy(sampled[chosen]), real)
    indices = distances.topk(min(neighbors, len(real)), largest=False).indices
    return dict(zip(chosen, indices.tolist(), strict=True))


def spread(count: int, rows: int) -> list[int]:
    """Up to `rows` indices below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(rows, count)).round().astype(int)).tolist()


def neighbors_picture(
    samples: ImageSource, reference: ImageSource, nearest: Mapping[int, list[int]], side: int = 128
) -> Image.Image:
    """A row per sample: the sample, then its nearest images, by their indices in `nearest`."""
    sampled = _pictures_at(samples, list(nearest))
    real = _pictures_at(reference, sorted({index for row in nearest.values() for index in row}))
    rows = [
        [sampled[sample], None, *(real[index] for index in indices)]
        for sample, indices in nearest.items()
    ]
    return grid(rows, {0: "sample", 2: "nearest images of the reference"}, side=side)


def _pictures_at(source: ImageSource, indices: Sequence[int]) -> dict[int, np.ndarray]:
    """Images uint8 (H, W, 3) by index."""
    images = images_at(source, indices)
    return {image.index: image.pixels.permute(1, 2, 0).numpy() for image in images}


def plot_map(values: np.ndarray, path: Path, label: str) -> Path:
    """A number for every place of an image, (h, w), as colors."""
    figure, (axes,) = new_figure(5, 4)
    shown = axes.imshow(values, interpolation="nearest")
    axes.set(xlabel="column of the code", ylabel="row of the code")
    figure.colorbar(shown, label=label)
    return save_figure(figure, path)


def plot_bars(values: Mapping[int, float], path: Path, label: str, many: str = "class") -> Path:
    """Bars of every class's number, in order; `many` stands for too many classes to name each."""
    named = len(values) <= NAMED_CLASSES
    figure, (axes,) = new_figure(max(6.0, 0.28 * min(len(values), NAMED_CLASSES)), 4)
    axes.bar(range(len(values)), list(values.values()), width=0.8 if named else 1.0)
    if named:
        axes.set_xticks(range(len(values)), list(map(str, values)))
    axes.set(xlabel="class" if named else many, ylabel=label)
    return save_figure(figure, path)


def plotted(plot: Callable[..., Path], *arguments: Any) -> list[Path]:
    """[the picture's path], or [], with a warning, without matplotlib."""
    try:
        return [plot(*arguments)]
    except UserError as error:
        log.warning("%s", error)
        return []
