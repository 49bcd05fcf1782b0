"""How near reconstructions are to their images: one number per image, and means over all of them.

All metrics compare the 8-bit images that would be saved, as published tables do: values in [-1, 1]
are rounded to 0..255, and what lies outside is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.devices import computing_in
from taming.errors import UserError
from taming.evaluation.metrics.ssim import RANGE, SMALLEST_MS_SSIM, SMALLEST_SSIM, ms_ssim, ssim
from taming.modules.losses.lpips import LPIPS, SMALLEST_IMAGES

State = dict[str, np.ndarray]

NETWORKS = {"lpips_vgg": "vgg", "lpips_alex": "alex"}
SIMILARITIES = {"ssim": ssim, "ms_ssim": ms_ssim}
# Metrics that can be left out, and the pixels that each needs at least along a side.
SMALLEST = {
    "ssim": SMALLEST_SSIM,
    "ms_ssim": SMALLEST_MS_SSIM,
    "lpips_vgg": SMALLEST_IMAGES["vgg"],
    "lpips_alex": SMALLEST_IMAGES["alex"],
}
NO_LABEL = -1


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 0..255, rounded; those that are uint8 already unchanged.

    Raises:
        UserError: for NaN.
    """
    if images.dtype == torch.uint8:
        return images
    if bool(images.isnan().any()):
        raise UserError(
            "reconstructions hold NaN; the checkpoint is broken, or try --precision fp32"
        )
    return ((images.float() + 1) * (RANGE / 2)).round().clamp(0, RANGE).byte()


class PairAccumulator:
    """Values of pairs by their index, so that no mean depends on batches, order or processes.

    - l1: mean absolute difference, in units of [-1, 1].
    - psnr: dB, the mean of the images' own: the one that tables give.
    - psnr_of_mean_mse: dB, of the mean squared error over all images: lower where they differ.
    - ssim, ms_ssim: see `taming.evaluation.metrics.ssim`.
    - lpips_vgg, lpips_alex: LPIPS 0.1 (arXiv 1801.03924), by `networks`.

    Args:
        metrics: those of `SMALLEST` that are wanted beside l1 and psnr.
        networks: "vgg" and "alex", prepared, on the device of the images.
    """

    def __init__(
        self, metrics: Iterable[str] = SIMILARITIES, networks: Mapping[str, LPIPS] | None = None
    ) -> None:
        self.metrics: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        for name in metrics:
            if name not in SMALLEST:
                raise UserError(f"there is no metric {name}; there are {', '.join(SMALLEST)}")
            self.metrics[name] = (
                _exactly(SIMILARITIES[name])
                if name in SIMILARITIES
                else _distance((networks or {})[NETWORKS[name]])
            )
        self._columns: dict[str, list[np.ndarray]] = {}

    @torch.no_grad()
    def add(
        self,
        indices: Sequence[int],
        images: Tensor,
        reconstructions: Tensor,
        labels: Sequence[int | None] | None = None,
    ) -> None:
        """Compare images [B, 1 or 3, H, W], float in [-1, 1] or uint8, with their reconstructions.

        Args:
            indices: places of the images in their set; none is added twice.
            labels: their classes.

        Raises:
            UserError: where the two differ in size, are no pictures, or hold NaN.
        """
        _check(images, reconstructions)
        first, second = to_bytes(images), to_bytes(reconstructions)
        numbers = [NO_LABEL if label is None else int(label) for label in labels or ()]
        self._put("index", np.asarray(indices, np.int64))
        self._put("label", np.asarray(numbers or [NO_LABEL] * len(first), np.int64))
        for name, value in _exactly(_differences)(first, second).items():
            self._put(name, value.cpu().numpy())
        for name, compute in self.metrics.items():
            small = min(first.shape[2:]) < SMALLEST[name]
            value = np.full(len(first), np.nan) if small else compute(first, second).cpu().numpy()
            self._put(name, value.astype(np.float64))

    def _put(self, name: str, values: np.ndarray) -> None:
        self._columns.setdefault(name, []).append(values)

    def state(self) -> State:
        """A column per value (`index`, `label`, `l1`, `mse` and the metrics'), sorted by index."""
        names = ("index", "label", "l1", "mse", *self.metrics)
        columns = {name: np.concatenate(self._columns.get(name, [np.zeros(0)])) for name in names}
        order = np.argsort(columns["index"], kind="stable")
        return {name: column[order] for name, column in columns.items()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the pairs of another accumulator's `state`."""
        for name in ("index", "label", "l1", "mse", *self.metrics):
            self._put(name, state[name])

    def values(self) -> State:
        """As `state`, with each image's psnr (infinite where nothing differs) in place of mse."""
        columns = self.state()
        head = {name: columns.pop(name) for name in ("index", "label", "l1")}
        return head | {"psnr": _psnr(columns.pop("mse"))} | columns

    def summary(self) -> dict[str, Any]:
        """`images`, and the means; without the metrics that `left_out` names.

        Raises:
            UserError: where no pairs were added.
        """
        columns = self.state()
        if not len(columns["index"]):
            raise UserError("there are no images to evaluate")
        return _means(columns, [name for name in self.metrics if name not in self.left_out()])

    def left_out(self) -> dict[str, str]:
        """Metrics that not all images are large enough for, with a reason each."""
        columns = self.state()
        reasons = {}
        for name in self.metrics:
            count = int(np.isnan(columns[name]).sum())
            if count:
                side = f"{SMALLEST[name]} pixels a side"
                reasons[name] = (
                    f"needs {side}, and {count} of {len(columns[name])} images have less"
                )
        return reasons

    def per_label(self) -> dict[int, dict[str, Any]]:
        """`summary` of each class by its label; empty where images have none."""
        columns = self.state()
        metrics = [name for name in self.metrics if name not in self.left_out()]
        tables = {}
        for label in np.unique(columns["label"]).tolist():
            if label != NO_LABEL:
                chosen = columns["label"] == label
                part = {name: column[chosen] for name, column in columns.items()}
                tables[label] = _means(part, metrics)
        return tables


def _check(images: Tensor, reconstructions: Tensor) -> None:
    if images.shape != reconstructions.shape:
        raise UserError(
            f"images of {_size(images)} and reconstructions of {_size(reconstructions)} cannot be "
            "compared; give pairs of one size"
        )
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"pictures have 1 or 3 channels, not {_size(images)}")


def _size(images: Tensor) -> str:
    return " x ".join(map(str, images.shape[1:]))


def _differences(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Per image, float64: exact, as the sums are of integers."""
    difference = (first.int() - second.int()).flatten(1)
    return {
        "l1": difference.abs().double().mean(dim=1) / (RANGE / 2),
        "mse": difference.square().double().mean(dim=1),
    }


def _exactly(compute: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    """On the CPU where the device has no float64."""

    def on_device(first: Tensor, second: Tensor) -> Any:
        if first.device.type == "mps":
            first, second = first.cpu(), second.cpu()
        return compute(first, second)

    return on_device


def _distance(network: LPIPS) -> Callable[[Tensor, Tensor], Tensor]:
    def compute(first: Tensor, second: Tensor) -> Tensor:
        scaled = [images / (RANGE / 2) - 1 for images in (first, second)]
        with computing_in(torch.float32, first.device):
            return network(*scaled).flatten()

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
