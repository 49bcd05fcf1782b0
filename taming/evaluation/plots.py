"""Pictures of evaluations: distances per class, sweeps, samples beside their nearest images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from taming.errors import UserError
from taming.evaluation.metrics.fidelity import FeatureBank
from taming.evaluation.sources.folder import ImageSource

NAMED_CLASSES = 40  # more would not be readable
MARKERS = "osD^vP*X"
log = logging.getLogger(__name__)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'taming-transformers[eval]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def plot_classes(distances: Mapping[int, float], path: Path) -> Path:
    """Bars of the Fréchet distance of every class, from the best to the worst."""
    ordered = sorted(distances.items(), key=lambda item: item[1])
    named = len(ordered) <= NAMED_CLASSES
    figure, (axes,) = _figure(max(6.0, 0.28 * min(len(ordered), NAMED_CLASSES)), 4)
    places = range(len(ordered))
    axes.bar(places, [value for _, value in ordered], width=0.8 if named else 1.0)
    if named:
        axes.set_xticks(places, [str(label) for label, _ in ordered])
    axes.set_xlabel("class" if named else f"the {len(ordered)} classes, by their distance")
    axes.set_ylabel("FID of the class")
    return _save(figure, path)


def plot_sweep(rows: Sequence[Mapping[str, Any]], swept: Sequence[str], path: Path) -> Path:
    """A chart per metric over the first of the `swept` settings; a line per value of the others."""
    metrics = [name for name in rows[0] if name not in swept]
    figure, charts = _figure(4.5 * len(metrics), 4, len(metrics))
    along, others = swept[0], swept[1:]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(", ".join(f"{name} {row[name]:g}" for name in others), []).append(row)
    for metric, axes in zip(metrics, charts, strict=True):
        for n, (name, group) in enumerate(groups.items()):
            group = sorted(group, key=lambda row: row[along])
            points = [row[along] for row in group], [row[metric] for row in group]
            axes.plot(*points, marker=MARKERS[n % len(MARKERS)], label=name)
        axes.set_xlabel(along)
        axes.set_ylabel(metric)
    if others:
        charts[0].legend()
    return _save(figure, path)


def plot_codes(counts: Mapping[str, np.ndarray], path: Path) -> Path:
    """How often each code occurs, codes from the commonest to the rarest: a panel per name.

    Codes that do not occur are where the curve has ended; the line is where all would be alike.
    """
    figure, charts = _figure(4.5 * len(counts), 3.5, len(counts))
    for (name, found), axes in zip(counts.items(), charts, strict=True):
        shares = np.sort(found)[::-1] / max(found.sum(), 1)
        used = shares[shares > 0]
        alike = 1 / len(found)
        axes.stairs(used, baseline=used.min(initial=alike) / 2, fill=True)
        axes.axhline(alike, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, len(found)), yscale="log")
        axes.set_title("\n".join(wrap(name, 40)), fontsize=10)
        axes.set_xlabel(f"the {len(found)} codes, the commonest first")
        axes.set_ylabel("share of all")
    return _save(figure, path)


@dataclass(frozen=True)
class _AllBut(Container[int]):
    wanted: Collection[int]

    def __contains__(self, index: object) -> bool:
        return index not in self.wanted


def pictures_at(source: ImageSource, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(index, uint8 (H, W, 3)) of those images of a set alone."""
    for batch in source.batches(len(indices), skip=_AllBut(frozenset(indices))):
        for picture in batch:
            yield picture.index, picture.pixels.permute(1, 2, 0).numpy()


def nearest(
    samples: FeatureBank, reference: FeatureBank, rows: int, neighbours: int
) -> dict[int, list[int]]:
    """For `rows` samples, evenly spaced, the places of the images with the nearest features."""
    theirs = torch.from_numpy(reference.array())
    ours = samples.array()
    chosen = np.unique(np.linspace(0, len(ours) - 1, min(rows, len(ours))).round().astype(int))
    distances = torch.cdist(torch.from_numpy(ours[chosen]), theirs)
    found = distances.topk(min(neighbours, len(theirs)), largest=False).indices
    return dict(zip(chosen.tolist(), found.tolist(), strict=True))


def neighbours_picture(
    samples: ImageSource,
    reference: ImageSource,
    found: Mapping[int, Sequence[int]],
    side: int = 128,
) -> Image.Image:
    """A row per sample: the sample, then its nearest images; `found` is what `nearest` gives."""
    drawn = dict(pictures_at(samples, list(found)))
    wanted = sorted({index for row in found.values() for index in row})
    real = dict(pictures_at(reference, wanted))
    gap, head = side // 4, 24
    columns = max(map(len, found.values()))
    width = (columns + 1) * side + gap
    grid = Image.new("RGB", (width, head + len(found) * side), "white")
    font = ImageFont.load_default(size=14)
    for text, x in (("sample", 4), ("nearest images of the reference", side + gap)):
        ImageDraw.Draw(grid).text((x, 4), text, fill="black", font=font)
    for row, (sample, places) in enumerate(found.items()):
        images = [drawn[sample], *(real[place] for place in places)]
        for column, pixels in enumerate(images):
            x = column * side + (gap if column else 0)
            grid.paste(Image.fromarray(pixels).resize((side, side)), (x, head + row * side))
    return grid


def plot_map(values: np.ndarray, path: Path, label: str) -> Path:
    """A number for every place of an image, (h, w), as colours."""
    figure, (axes,) = _figure(5, 4)
    shown = axes.imshow(values, interpolation="nearest")
    axes.set_xlabel("column of the code")
    axes.set_ylabel("row of the code")
    figure.colorbar(shown, label=label)
    return _save(figure, path)


def plot_bars(values: Mapping[int, float], path: Path, label: str) -> Path:
    """Bars of a number of every class, in the order of the classes."""
    named = len(values) <= NAMED_CLASSES
    figure, (axes,) = _figure(max(6.0, 0.28 * min(len(values), NAMED_CLASSES)), 4)
    axes.bar(range(len(values)), list(values.values()), width=0.8 if named else 1.0)
    if named:
        axes.set_xticks(range(len(values)), list(map(str, values)))
    axes.set_xlabel("class")
    axes.set_ylabel(label)
    return _save(figure, path)


def plotted(plot: Callable[..., Path], *arguments: Any) -> list[Path]:
    """[the picture's path], or [] where there is no matplotlib, which is said."""
    try:
        return [plot(*arguments)]
    except UserError as error:
        log.warning("%s", error)
        return []
