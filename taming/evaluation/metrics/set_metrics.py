"""The table of metrics of sets of images.

To add one, write a file such as `kid.py` (its computation, its settings, its `Metric`) and name it
in `METRICS`: flags, requirements, layers and results follow from the `Metric`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from taming.evaluation.metrics.base import Metric, MetricSettings
from taming.evaluation.metrics.cmmd import CLIP_DISCREPANCY
from taming.evaluation.metrics.density_coverage import DENSITY_COVERAGE
from taming.evaluation.metrics.fid import FID, SFID
from taming.evaluation.metrics.fid_spread import FID_SPREAD
from taming.evaluation.metrics.inception_score import INCEPTION_SCORE
from taming.evaluation.metrics.kid import KID
from taming.evaluation.metrics.precision_recall import PRECISION_RECALL

_METRICS = (
    *(FID, FID_SPREAD, SFID, INCEPTION_SCORE, KID),
    *(PRECISION_RECALL, DENSITY_COVERAGE, CLIP_DISCREPANCY),
)
METRICS: dict[str, Metric[Any]] = {metric.name: metric for metric in _METRICS}


def metric_settings(**values: int) -> dict[str, MetricSettings]:
    """Settings by metric, of values by flag: `metric_settings(isc_splits=5, kid_subsets=50)`."""
    settings = {}
    for name, metric in METRICS.items():
        own = {entry.name for entry in fields(metric.settings)} & set(values)
        settings[name] = metric.settings(**{flag: values.pop(flag) for flag in own})
    if values:
        raise TypeError(f"no metric has the setting {next(iter(values))}")
    return settings
