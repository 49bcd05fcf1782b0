"""The Inception Score of a set, computed in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taming.command_line import flag
from taming.errors import UserError
from taming.evaluation.metrics.base import SEED, FeatureAccumulator, Metric, MetricSettings
from taming.evaluation.sources.images import State


class InceptionScores(FeatureAccumulator):
    """The Inception Score of Salimans et al. (2016) over `splits` parts of `images` images.

    Which part an image is in depends on its index, as in torch-fidelity: the parts of a random
    permutation. Per part, only sums over the classes are kept.
    """

    of_sized_sets = True

    def __init__(self, images: int, splits: int = 10, seed: int = SEED) -> None:
        if images < splits:
            raise UserError(
                f"the Inception Score's {splits} splits need as many images at least, and there "
                f"are {images}; give --isc_splits {max(images, 1)} or less, or more images"
            )
        self.images, self.splits, self.seed = images, splits, seed
        self.sizes = torch.zeros(splits, dtype=torch.int64)
        self.negative_entropies = torch.zeros(splits, dtype=torch.float64)
        self.sums = torch.zeros(splits, 0, dtype=torch.float64)  # (splits, classes)
        self._split_of = torch.empty(images, dtype=torch.int64)
        order = torch.from_numpy(np.random.RandomState(seed).permutation(images))
        for split in range(splits):
            part = slice(split * images // splits, (split + 1) * images // splits)
            self._split_of[order[part]] = split

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Count images by their `indices` [B], below `images`; `features` are logits [B, C]."""
        logits = features.double().cpu()
        if not self.sums.numel():
            self.sums = torch.zeros(self.splits, logits.shape[1], dtype=torch.float64)
        split, p = self._split_of[indices.long().cpu()], logits.softmax(1)
        self.sizes.index_add_(0, split, torch.ones_like(split))
        self.sums.index_add_(0, split, p)
        self.negative_entropies.index_add_(0, split, (p * logits.log_softmax(1)).sum(1))

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Add what was counted of other images of the same set; ValueError for another set."""
        sums = torch.from_numpy(state["sums"].copy())
        other = state["setting"].tolist()
        widths = {one.shape[1] for one in (self.sums, sums) if one.numel()}
        if other != self._setting() or len(widths) > 1:
            raise ValueError(
                f"Inception Scores of {self._setting()} and {other}, over {widths} classes, "
                "cannot be merged"
            )
        self.sizes += torch.from_numpy(state["sizes"])
        self.negative_entropies += torch.from_numpy(state["negative_entropies"])
        if sums.numel():
            self.sums = self.sums + sums if self.sums.numel() else sums

    def _setting(self) -> list[int]:
        return [self.images, self.splits, self.seed]

    def state_dict(self) -> State:
        """Arrays of a size that does not depend on the number of images."""
        return {
            "setting": np.array(self._setting()),
            "sizes": self.sizes.numpy().copy(),
            "negative_entropies": self.negative_entropies.numpy().copy(),
            "sums": self.sums.numpy().copy(),
        }

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits; UserError if images are missing."""
        count = int(self.sizes.sum())
        if count != self.images:
            raise UserError(
                f"the Inception Score was set up for {self.images} images and {count} came; "
                "do not change the set of images while it is evaluated"
            )
        mean = self.sums / self.sizes[:, None]
        negative_entropy = self.negative_entropies / self.sizes
        scores = (negative_entropy - torch.xlogy(mean, mean).sum(1)).exp().numpy()
        return float(scores.mean()), float(scores.std())


class ConsecutiveScores(InceptionScores):
    """The Inception Score as the ADM suite has it: over parts of 5,000 images in their order."""

    def __init__(self, images: int, part: int = 5000) -> None:
        super().__init__(images, splits=-(-images // part))
        self._split_of = torch.arange(images) // part


@dataclass(frozen=True)
class InceptionScoreSettings(MetricSettings):
    """How many parts of the samples have an Inception Score each."""

    isc_splits: int = flag(10, "parts that have a score each")


INCEPTION_SCORE = Metric(
    name="isc",
    title="Inception Score",
    accumulator=InceptionScores,
    compute=lambda samples, _, settings: dict(zip(("mean", "std"), samples.compute(), strict=True)),
    settings=InceptionScoreSettings,
    options={"splits": "isc_splits"},
    smallest_set=lambda settings: settings.isc_splits,
    smallest_flag="--isc_splits",
    needs_reference=False,
)
ADM_INCEPTION_SCORE = Metric(
    name="isc",
    title="Inception Score, ADM",
    accumulator=ConsecutiveScores,
    compute=lambda samples, _, settings: samples.compute()[0],
    settings=MetricSettings,
    smallest_set=lambda settings: 1,
    facts={"isc_parts": "5000 images in their order each"},
    needs_reference=False,
)
