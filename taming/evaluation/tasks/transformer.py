"""The likelihood of a dataset under a transformer."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import default_collate

from taming.errors import UserError
from taming.evaluation.metrics.base import DerivedAccumulator
from taming.evaluation.metrics.likelihood import Likelihood, update_likelihood
from taming.evaluation.runner import Runner
from taming.evaluation.sources.dataset import ItemImage, ItemSource
from taming.evaluation.sources.image import Manifest, SourceImage
from taming.models.cond_transformer import Net2NetTransformer


class ItemLikelihood(DerivedAccumulator[Likelihood]):
    """Counts how likely items are under a transformer in eval mode."""

    def __init__(self, model: Net2NetTransformer) -> None:
        super().__init__(Likelihood(model.n_codes))
        self.model = model

    def update(self, images: Sequence[SourceImage]) -> None:
        """Count a batch of `ItemImage`s.

        Raises:
            UserError: for images of several sizes.
        """
        sizes = {tuple(image.pixels.shape) for image in images}
        if len(sizes) > 1:
            raise UserError(
                f"the images have sizes {sorted(sizes)}; likelihoods are of images of one size, "
                "as in training: set a size or a crop in the data section"
            )
        items = [image.item for image in images if isinstance(image, ItemImage)]
        update_likelihood(self.counted, self.model, default_collate(items))


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
    manifest, counted = runner.run(data, lambda: ItemLikelihood(model), key, "images")
    return manifest, counted.compute()
