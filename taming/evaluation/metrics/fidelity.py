"""The metrics of sets of images, and their settings.

To add one, write a file such as `kid.py` (its computation, its settings, its `Metric`) and name it
in `METRICS`: flags, requirements, layers and results follow from the `Metric`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from taming.config import did_you_mean
from taming.errors import UserError
from taming.evaluation.metrics.base import SEED, Metric, MetricSettings
from taming.evaluation.metrics.features import default_layer
from taming.evaluation.metrics.fid import FID
from taming.evaluation.metrics.inception_score import INCEPTION_SCORE
from taming.evaluation.metrics.kid import KID
from taming.evaluation.metrics.precision_recall import PRECISION_RECALL

METRICS: dict[str, Metric[Any]] = {
    metric.name: metric for metric in (FID, INCEPTION_SCORE, KID, PRECISION_RECALL)
}


@dataclass(frozen=True)
class FidelitySettings:
    """What decides the numbers beside images and extractors; torch-fidelity's values by default.

    Attributes:
        metrics: names in `METRICS`.
        layers: other layers of the extractor than its own choice, by metric.
        per_class: compute a Fréchet distance for every class as well.
        keep_features: keep the features of all images, to look for neighbors.
        of_metrics: the settings of metrics, by name; `metric_settings` makes them.

    Raises:
        UserError: for an unknown metric.
    """

    metrics: tuple[str, ...] = ("fid",)
    layers: Mapping[str, str] = field(default_factory=dict)
    per_class: bool = False
    keep_features: bool = False
    of_metrics: Mapping[str, MetricSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.metrics, *self.layers):
            if name not in METRICS:
                raise UserError(f"there is no metric '{name}'{did_you_mean(name, METRICS)}")
        if not self.metrics:
            raise UserError(f"--metrics names none; there are {', '.join(METRICS)}")

    def of(self, name: str) -> MetricSettings:
        """The settings of a metric."""
        return self.of_metrics.get(name) or METRICS[name].settings()

    def layer(self, name: str, extractor: str) -> str:
        """The extractor's layer that a metric takes."""
        return self.layers.get(name) or default_layer(extractor, METRICS[name].layer_of or name)

    def layers_of(self, names: Sequence[str], extractor: str) -> tuple[str, ...]:
        """The extractor's layers that these metrics take, each once."""
        return tuple(dict.fromkeys(self.layer(name, extractor) for name in names))

    def describe(self) -> dict[str, Any]:
        """The settings of those metrics that are computed, as JSON values."""
        about: dict[str, Any] = {"metrics": list(self.metrics), "seed": SEED}
        for name in self.metrics:
            about |= METRICS[name].describe(self.of(name))
        return about


def metric_settings(**values: int) -> dict[str, MetricSettings]:
    """Settings by metric, of values by flag: `metric_settings(isc_splits=5, kid_subsets=50)`."""
    settings = {}
    for name, metric in METRICS.items():
        own = {entry.name for entry in fields(metric.settings)} & set(values)
        settings[name] = metric.settings(**{flag: values.pop(flag) for flag in own})
    if values:
        raise TypeError(f"no metric has the setting {next(iter(values))}")
    return settings
