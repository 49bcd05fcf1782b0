"""Several evaluators of the same images, in one pass over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taming.devices import own_share
from taming.evaluation.runner import Runner
from taming.evaluation.tasks.fidelity import (
    Evaluation,
    Features,
    FidelityEvaluator,
    ImageSet,
    features_of_set,
)


class SideBySide:
    """Evaluates sets of samples by several evaluators of one reference.

    Each set is gone through once: an image is decoded once, resized once for all evaluators that
    resize alike, and goes once through each network that they share.

    Args:
        evaluators: by name; what they share are extractors, see `make_extractors`.
    """

    def __init__(self, evaluators: Mapping[str, FidelityEvaluator], runner: Runner) -> None:
        self.evaluators, self.runner = dict(evaluators), runner
        self.reference = next(iter(self.evaluators.values())).reference
        self._reference_features: Features = None

    def __call__(self, samples: ImageSet) -> Evaluation | None:
        """The numbers by evaluator; None in processes other than that of rank 0.

        Classes and neighbors are those of the first evaluator. Raises UserError as each of them.
        """
        for each in self.evaluators.values():
            each.require_set("samples", samples)
        if self._reference_features is None and self.reference is not None:
            self._reference_features = self._features("reference", self.reference)
        features = self._features("samples", samples)
        if own_share()[0] > 0:
            return None
        found = {
            name: each.evaluation(samples, features, self._reference_features)
            for name, each in self.evaluators.items()
        }
        first = next(iter(found.values()))
        metrics = {name: evaluation.metrics for name, evaluation in found.items()}
        protocol = {name: evaluation.protocol for name, evaluation in found.items()}
        sets: dict[str, Any] = {}
        for evaluation in found.values():
            sets |= evaluation.sets
        return Evaluation(metrics, protocol, sets, first.classes, first.banks)

    def _features(self, role: str, images: ImageSet) -> Features:
        wanted = (each.requests_of(role, images) for each in self.evaluators.values())
        requests = list(dict.fromkeys(request for some in wanted for request in some))
        return features_of_set(self.runner, images, requests, role)
