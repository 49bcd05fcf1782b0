"""Accumulators of given features, for the tests of metrics."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from taming.evaluation.metrics.base import FeatureAccumulator
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.fid import Moments
from taming.evaluation.metrics.inception_score import InceptionScores

A = TypeVar("A", bound=FeatureAccumulator)


def updated(accumulator: A, features: Tensor, labels: Tensor | None = None) -> A:
    """The accumulator, once it has counted all rows, in order."""
    accumulator.update(torch.arange(len(features)), features, labels)
    return accumulator


def moments_of(features: Tensor) -> Moments:
    return updated(Moments(), features)


def bank_of(features: Tensor) -> FeatureBank:
    return updated(FeatureBank(), features)


def scores_of(logits: Tensor, splits: int = 10) -> InceptionScores:
    return updated(InceptionScores(len(logits), splits), logits)
