"""How near reconstructions are to their images: one number per image, and means over all of them.

All metrics compare the 8-bit images that would be saved, as published tables do: values in [-1, 1]
are rounded to 0..255, and what lies outside is cut. To add one, write its function and name it in
`PAIR_METRICS`: results, tables and the reasons why it may be left out follow from that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.devices import computing_in
from taming.errors import UserError
from taming.evaluation.latex import DOWN, UP
from taming.evaluation.metrics.ssim import RANGE, SMALLEST_MS_SSIM, SMALLEST_SSIM, ms_ssim, ssim
from taming.evaluation.sources.images import NO_LABEL, State
from taming.modules.losses.lpips import LPIPS, SMALLEST_IMAGES
from taming.pictures import to_uint8, to_values

Integers = Sequence[int] | Tensor
PairFunction = Callable[[Tensor, Tensor], Tensor]
"""Images and reconstructions, uint8 [B, C, H, W] -> a value per pair [B]."""


@dataclass(frozen=True)
class PairMetric:
    """A number of each image and its reconstruction."""

    name: str  # in results
    title: str  # of the column in tables
    style: str  # how a value is written there, for `str.format`
    smallest_side: int  # pixels that an image has at least, both ways
    compute: PairFunction | None = None  # its function; None for LPIPS
    backbone: str | None = None  # of LPIPS, "vgg" or "alex"

    @property
    def better(self) -> str:
        """Which end is the better one: LPIPS is a distance, all others are likenesses."""
        return UP if self.backbone is None else DOWN

    def function(self, networks: Mapping[str, LPIPS]) -> PairFunction:
        """Its function, with the prepared LPIPS of its backbone."""
        if self.compute is not None:
            return _in_float64(self.compute)
        return _lpips_distance(networks[str(self.backbone)])


PAIR_METRICS = {
    metric.name: metric
    for metric in (
        PairMetric("ssim", "SSIM", "{:.4f}", SMALLEST_SSIM, ssim),
        PairMetric("ms_ssim", "MS-SSIM", "{:.4f}", SMALLEST_MS_SSIM, ms_ssim),
        PairMetric("lpips_vgg", "LPIPS (VGG)", "{:.4f}", SMALLEST_IMAGES["vgg"], backbone="vgg"),
        PairMetric(
            "lpips_alex", "LPIPS (AlexNet)", "{:.4f}", SMALLEST_IMAGES["alex"], backbone="alex"
        ),
    )
}
FIRST_COLUMNS = ("index", "label", "l1", "mse")


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 0..255, rounded; uint8 is unchanged; UserError for NaN."""
    if images.dtype != torch.uint8 and bool(images.isnan().any()):
        raise UserError(
            "reconstructions hold NaN; the checkpoint is broken, or try --precision fp32"
        )
    return to_uint8(images)


class PairAccumulator:
    """Values of pairs by their index, so that no mean depends on batches, order or processes.

    - l1: mean absolute difference, in units of [-1, 1].
    - psnr: dB, the mean of the images' own: the one that tables give.
    - psnr_of_mean_mse: dB, of the mean squared error over all images: never larger than psnr.
    - ssim, ms_ssim: see `taming.evaluation.metrics.ssim`.
    - lpips_vgg, lpips_alex: LPIPS 0.1 (arXiv 1801.03924), by `networks`.

    Args:
        metrics: those of `PAIR_METRICS` that are wanted beside l1 and psnr.
        networks: "vgg" and "alex", prepared, on the device of the images.
    """

    def __init__(
        self,
        metrics: Iterable[str] = ("ssim", "ms_ssim"),
        networks: Mapping[str, LPIPS] | None = None,
    ) -> None:
        self.functions: dict[str, PairFunction] = {}
        for name in metrics:
            if name not in PAIR_METRICS:
                raise UserError(f"there is no metric {name}; there are {', '.join(PAIR_METRICS)}")
            self.functions[name] = PAIR_METRICS[name].function(networks or {})
        self._columns: dict[str, list[np.ndarray]] = {
            name: [] for name in (*FIRST_COLUMNS, *self.functions)
        }

    @torch.no_grad()
    def update(
        self, indices: Integers, images: Tensor, copies: Tensor, labels: Integers | None = None
    ) -> None:
        """Compare images [B, 1 or 3, H, W], float in [-1, 1] or uint8, with their reconstructions.

        Args:
            indices: places of the images in their set; none is added twice.
            labels: their classes, `NO_LABEL` for none.

        Raises UserError if the two differ in size, have other numbers of channels, or hold NaN.
        """
        _require_pairs(images, copies)
        pair = to_pixels(images), to_pixels(copies)
        without = [NO_LABEL] * len(images)
        self._append("index", np.asarray(indices, np.int64))
        self._append("label", np.asarray(without if labels is None else labels, np.int64))
        for name, values in _in_float64(_differences)(*pair).items():
            self._append(name, values.cpu().numpy())
        for name, function in self.functions.items():
            if min(images.shape[2:]) < PAIR_METRICS[name].smallest_side:
                self._append(name, np.full(len(images), np.nan))
            else:
                self._append(name, function(*pair).cpu().numpy().astype(np.float64))

    def _append(self, name: str, values: np.ndarray) -> None:
        self._columns[name].append(values)

    def state_dict(self) -> State:
        """A column per value (`index`, `label`, `l1`, `mse` and the metrics'), sorted by index."""
        columns = {
            name: np.concatenate(parts or [np.zeros(0)]) for name, parts in self._columns.items()
        }
        order = np.argsort(columns["index"], kind="stable")
        return {name: column[order] for name, column in columns.items()}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        for name in self._columns:
            self._append(name, state[name])

    def values(self) -> State:
        """As `state_dict`, with each image's psnr (infinite for equal images) in place of mse."""
        columns = self.state_dict()
        head = {name: columns.pop(name) for name in ("index", "label", "l1")}
        return head | {"psnr": _psnr(columns.pop("mse"))} | columns

    def compute(self) -> dict[str, Any]:
        """`images`, and the means; without the metrics that `left_out` names.

        Raises UserError if no pairs were added.
        """
        columns = self.state_dict()
        if not len(columns["index"]):
            raise UserError("there are no images to evaluate")
        return _means(columns, self._complete_metrics())

    def _complete_metrics(self) -> list[str]:
        left_out = self.left_out()
        return [name for name in self.functions if name not in left_out]

    def left_out(self) -> dict[str, str]:
        """Metrics that not all images are large enough for, with a reason each."""
        reasons = {}
        for name in self.functions:
            values = np.concatenate(self._columns[name] or [np.zeros(0)])
            if count := int(np.isnan(values).sum()):
                side = f"{PAIR_METRICS[name].smallest_side} pixels a side"
                reasons[name] = f"needs {side}, and {count} of {len(values)} images have less"
        return reasons

    def per_label(self) -> dict[int, dict[str, Any]]:
        """`compute` of each class by its label; empty for images without classes."""
        columns, metrics = self.state_dict(), self._complete_metrics()
        tables = {}
        for label in np.unique(columns["label"]).tolist():
            if label != NO_LABEL:
                chosen = columns["label"] == label
                own = {name: column[chosen] for name, column in columns.items()}
                tables[label] = _means(own, metrics)
        return tables


class SegmentationAccumulator:
    """Counts which labels become which: a confusion matrix.

    - pixel_accuracy: share of the pixels that keep their label.
    - mean_iou: intersection over union of each label over all images, averaged over the labels
      that occur.
    """

    def __init__(self, n_labels: int) -> None:
        self.n_labels, self.images = n_labels, 0
        self.confusion = np.zeros((n_labels, n_labels), np.int64)  # (true, reconstructed)

    def update(
        self, indices: Integers, images: Tensor, copies: Tensor, labels: Integers | None = None
    ) -> None:
        """Compare label maps [B, 1, H, W], integers; indices and classes do not matter.

        Raises UserError if the two differ in size.
        """
        if images.shape != copies.shape:
            raise UserError(
                f"segmentations of {tuple(images.shape[2:])} and reconstructions of "
                f"{tuple(copies.shape[2:])} pixels cannot be compared"
            )
        pairs = images.long().flatten() * self.n_labels + copies.long().flatten()
        counts = torch.bincount(pairs.cpu(), minlength=self.n_labels**2)
        self.confusion += counts.reshape(self.n_labels, self.n_labels).numpy()
        self.images += len(images)

    def state_dict(self) -> State:
        return {"confusion": self.confusion, "images": np.array(self.images)}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.confusion = self.confusion + state["confusion"]
        self.images += int(state["images"])

    def compute(self) -> dict[str, Any]:
        """`images`, `pixel_accuracy` and `mean_iou`; UserError if no pairs were added."""
        if not self.images:
            raise UserError("there are no images to evaluate")
        right = np.diagonal(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - right
        occurs = union > 0
        return {
            "images": self.images,
            "pixel_accuracy": float(right.sum() / self.confusion.sum()),
            "mean_iou": float((right[occurs] / union[occurs]).mean()),
        }

    def left_out(self) -> dict[str, str]:
        return {}  # both numbers exist for any size

    def per_label(self) -> dict[int, dict[str, Any]]:
        return {}  # values are not kept by image

    def values(self) -> State:
        return {}


def _require_pairs(images: Tensor, reconstructions: Tensor) -> None:
    if images.shape != reconstructions.shape:
        raise UserError(
            f"images of {_size(images)} and reconstructions of {_size(reconstructions)} cannot be "
            "compared; give pairs of one size"
        )
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {_size(images)}")


def _size(images: Tensor) -> str:
    return " x ".join(map(str, images.shape[1:]))


def _differences(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Per image, float64: exact, as the sums are of integers."""
    difference = (first.int() - second.int()).flatten(1)
    return {
        "l1": difference.abs().double().mean(dim=1) / (RANGE / 2),
        "mse": difference.square().double().mean(dim=1),
    }


def _in_float64(compute: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    """`compute` on the CPU if the images' device has no float64."""

    def on_device(first: Tensor, second: Tensor) -> Any:
        if first.device.type == "mps":
            first, second = first.cpu(), second.cpu()
        return compute(first, second)

    return on_device


def _lpips_distance(network: LPIPS) -> PairFunction:
    def compute(first: Tensor, second: Tensor) -> Tensor:
        with computing_in(torch.float32, first.device):
            return network(to_values(first), to_values(second)).flatten()

    return compute


def _psnr(mse: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(RANGE**2 / mse)


def _means(columns: State, metrics: Iterable[str]) -> dict[str, Any]:
    means = {
        "images": len(columns["index"]),
        "l1": _mean(columns["l1"]),
        "psnr": _mean(_psnr(columns["mse"])),
        "psnr_of_mean_mse": float(_psnr(np.array(_mean(columns["mse"])))),
    }
    return means | {name: _mean(columns[name]) for name in metrics}


def _mean(values: np.ndarray) -> float:
    """Rounded once, so that it is the same for any order."""
    return math.fsum(values.tolist()) / len(values)
