"""The likelihood of a dataset under a transformer."""

from __future__ import annotations

from taming.evaluation.metrics.likelihood import Likelihood, ModelLikelihood
from taming.evaluation.runner import Runner
from taming.evaluation.sources.dataset import ItemSource
from taming.evaluation.sources.images import Manifest
from taming.models.cond_transformer import Net2NetTransformer


def evaluate_transformer(
    model: Net2NetTransformer, data: ItemSource, identity: str, runner: Runner
) -> tuple[Manifest, Likelihood]:
    """The likelihood of all items; complete in the process of rank 0 alone.

    Args:
        identity: hash of what decides the model: weights, config, precision.
        runner: batch size, on which numbers do not depend but for rounding, and cache.

    Raises:
        UserError: for items that the model cannot read.
    """
    key = runner.key_for(data, likelihood=identity)
    return runner.run(data, lambda: ModelLikelihood(model), key, "images")
