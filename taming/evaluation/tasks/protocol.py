"""What decides fidelity metrics beside the images and the extractor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taming.config import did_you_mean
from taming.errors import UserError
from taming.evaluation.metrics.features import METRICS
from taming.evaluation.metrics.fidelity import SEED


@dataclass(frozen=True)
class Protocol:
    """What decides the numbers beside the images and the extractor; torch-fidelity's defaults.

    Attributes:
        metrics: of "fid", "isc", "kid" and "prc" (precision and recall).
        layers: other layers of the extractor than its own choice, by metric.
        isc_splits: parts of the samples that have an Inception Score each.
        kid_subsets, kid_subset_size: random subsets that have a kernel distance each.
        prc_neighbours: how many neighbours make an image's ball.
        per_class: a Fréchet distance for every class as well.
        banks: keep the features of all images, to look for neighbours.

    Raises:
        UserError: for an unknown metric or a number out of range.
    """

    metrics: tuple[str, ...] = ("fid",)
    layers: Mapping[str, str] = field(default_factory=dict)
    isc_splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    prc_neighbours: int = 3
    per_class: bool = False
    banks: bool = False

    def __post_init__(self) -> None:
        for name in (*self.metrics, *self.layers):
            if name not in METRICS:
                raise UserError(f"there is no metric '{name}'{did_you_mean(name, METRICS)}")
        if not self.metrics:
            raise UserError(f"--metrics names none; there are {', '.join(METRICS)}")
        for name in ("isc_splits", "kid_subsets", "kid_subset_size", "prc_neighbours"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")

    def describe(self) -> dict[str, Any]:
        """The settings of those metrics that are computed, as JSON values."""
        settings: dict[str, dict[str, Any]] = {
            "isc": {"isc_splits": self.isc_splits},
            "kid": {
                "kid_subsets": self.kid_subsets,
                "kid_subset_size": self.kid_subset_size,
                "kid_kernel": "polynomial, degree 3, gamma 1 / D, coefficient 1",
            },
            "prc": {"prc_neighbours": self.prc_neighbours},
            "fid": {"covariance": "divided by N - 1"},
        }
        found: dict[str, Any] = {"metrics": list(self.metrics), "seed": SEED}
        for metric in self.metrics:
            found |= settings[metric]
        return found
