"""Linear probes of first stages: how much of an image's class its codes and latents show.

Three kinds of features of an image, [D] each:

- histogram: the share of its positions that have each code, [n_codes]; where they are is lost.
- codes: the codebook vectors, averaged over the cells of a grid, [e_dim * grid * grid].
- latents: what the quantizer takes in, averaged likewise.

What codes have less than latents is what quantization costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.config import did_you_mean
from taming.devices import computing_in
from taming.errors import UserError
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.linear_probe import ProbeScores, ProbeSettings, probe
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import (
    NO_LABEL,
    Manifest,
    SourceImage,
    State,
    indices_and_labels,
    joined_states,
    part_of,
    stack_pixels,
)
from taming.evaluation.sources.prepared import PreparedSource, model_input
from taming.models.code_use import counted_codes, counted_indices
from taming.models.codes import codes_of, size_of_codes
from taming.models.first_stage import FirstStage, GivesLatents

HISTOGRAM, CODES, LATENTS = "histogram", "codes", "latents"
KINDS = (HISTOGRAM, CODES, LATENTS)
OF_SIZES = "the images have codes of different sizes; give --size, or a --grid that all have"


def parse_kinds(text: str) -> tuple[str, ...]:
    """Some of `KINDS`, a comma list; UserError for others."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or ("",):
        if name not in KINDS:
            hint = did_you_mean(name, KINDS)
            raise UserError(f"there are no features '{name}'{hint}; there are {', '.join(KINDS)}")
    return names


def pooled(maps: Tensor, grid: int) -> Tensor:
    """[B, C, h, w] -> [B, C * rows * columns], means over a grid of at most `grid` cells a side.

    With 0 cells, every position is one of its own.
    """
    height, width = (min(grid or side, side) for side in maps.shape[2:])
    return F.adaptive_avg_pool2d(maps.float(), (height, width)).flatten(1)


@dataclass(frozen=True)
class FeatureKinds:
    """Which features, and how they are computed."""

    names: tuple[str, ...] = KINDS
    grid: int = 4  # see `pooled`
    dtype: torch.dtype = torch.float32  # of the first stage

    @torch.no_grad()
    def of(self, model: FirstStage, x: Tensor) -> dict[str, Tensor]:
        """float32 [B, D] by kind, of images x [B, C, H, W]."""
        with computing_in(self.dtype, x.device):
            features = {}
            if HISTOGRAM in self.names:
                codes, size = model.encode_to_indices(x), size_of_codes(model, x)
                indices = counted_indices(model.quantize, codes, size)
                features[HISTOGRAM] = shares(indices, counted_codes(model.quantize))
            if CODES in self.names:
                features[CODES] = pooled(codes_of(model, x), self.grid)
            if LATENTS in self.names and isinstance(model, GivesLatents):
                features[LATENTS] = pooled(model.encode_to_prequant(x), self.grid)
        return features


def shares(indices: Tensor, n_codes: int) -> Tensor:
    """float32 [B, n_codes]: the share of each image's positions [B, ...] that have each code."""
    flat = indices.flatten(1)  # (B, h * w)
    counts = torch.zeros(len(flat), n_codes, device=flat.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32)) / flat.shape[1]


class ProbedFeatures:
    """The features of a set of images under a first stage: an `ImageAccumulator`."""

    def __init__(self, model: FirstStage, kinds: FeatureKinds) -> None:
        self.model, self.kinds = model, kinds
        self.device = next(iter(model.state_dict().values())).device
        known = isinstance(model, GivesLatents)
        names = [name for name in kinds.names if name != LATENTS or known]
        self.banks = {name: FeatureBank() for name in names}
        self._widths: dict[str, int] = {}

    def update(self, images: Sequence[SourceImage]) -> None:
        x = model_input(stack_pixels(images).to(self.device), self.model)
        indices, _ = indices_and_labels(images)
        for name, features in self.kinds.of(self.model, x).items():
            if self._widths.setdefault(name, features.shape[1]) != features.shape[1]:
                raise UserError(OF_SIZES)
            self.banks[name].update(indices, features)

    def state_dict(self) -> State:
        return joined_states({name: bank.state_dict() for name, bank in self.banks.items()})

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        for name, bank in self.banks.items():
            bank.merge_state(part_of(state, name))


def keep_per_class(images: PreparedSource, count: int) -> None:
    """Leave out all but the first `count` images of every class folder.

    Raises UserError for images of a dataset, whose classes show only when they are read.
    """
    if not isinstance(images.source, FolderSource) or images.source.labels is None:
        raise UserError("--per_class chooses among class folders; give them by --images")
    seen: Counter[int] = Counter()
    beyond = set()
    for index, label in enumerate(images.source.labels):
        seen[label] += 1
        if seen[label] > count:
            beyond.add(index)
    images.leave_out(beyond)


def probe_all(
    manifest: Manifest, counted: ProbedFeatures, settings: ProbeSettings
) -> dict[str, ProbeScores]:
    """The scores of every kind of features.

    Raises UserError for images without classes, or of sizes whose grids differ.
    """
    if (manifest.labels == NO_LABEL).any():
        raise UserError(
            "a probe needs the images' classes: give a folder with a folder per class, or a "
            "dataset with 'class_label'"
        )
    labels = torch.from_numpy(manifest.labels)
    exact = counted.device.type != "mps"  # which has no float64
    device = counted.device if exact else torch.device("cpu")
    return {
        name: probe(_matrix(bank).to(device), labels, settings)
        for name, bank in counted.banks.items()
    }


def _matrix(bank: FeatureBank) -> Tensor:
    """float64 [N, D], without features that are zero for all images (codes that do not occur)."""
    try:
        features = torch.from_numpy(bank.compute()).double()
    except ValueError:
        raise UserError(OF_SIZES) from None
    return features[:, features.any(dim=0)]
