"""How probable a transformer finds the codes of images: as a whole, by class and by position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from taming.errors import UserError
from taming.evaluation.metrics.base import CountsByClass
from taming.evaluation.sources.dataset import LABEL, ItemImage
from taming.evaluation.sources.images import SourceImage, State
from taming.models.cond_transformer import Net2NetTransformer

# Nats are added up as multiples of 2**-32: sums of integers do not depend on their order, and a
# token of 20 nats leaves room for 2**26 images.
FIXED = 2**32


@dataclass(frozen=True)
class LikelihoodScores:
    """Of a transformer's image indices, given the true ones before them.

    What the code loses of an image is not in them: they compare models of one first stage only.
    """

    images: int  # how many there were
    nats_per_token: float  # mean cross-entropy
    bits_per_token: float  # the same in bits
    uniform_nats_per_token: float  # log of the codebook's size, what knowing nothing gives
    nats_per_dimension: float  # the whole code's nats over the image's values (C * H * W)
    bits_per_dimension: float  # the same in bits
    top_1: float  # share of the tokens whose true index was the likeliest of all


class Likelihood:
    """Adds up cross-entropies and hits; exact sums, so that neither batches nor order matter."""

    def __init__(self, n_codes: int) -> None:
        self.n_codes, self.images = n_codes, 0
        self.shape: tuple[int, int] | None = None  # in tokens, from the first image on
        self.dimensions = 0  # values of an image, C * H * W
        self.nats = np.zeros(0, np.int64)  # [h * w], row by row: sums in multiples of 1 / FIXED
        self.hits = np.zeros(0, np.int64)  # [h * w]: images that had this token predicted right
        self.classes = CountsByClass()  # images, nats, hits

    def add(
        self, nats: Tensor, hits: Tensor, size: tuple[int, int, int], labels: Any = None
    ) -> None:
        """Add a batch: cross-entropies and whether the true index was the likeliest.

        Args:
            nats, hits: [B, h * w], tokens row by row.
            size: channels, height and width of the images in pixels.
            labels: ints [B], if images have classes.

        Raises UserError for images of another size than before.
        """
        channels, height, width = size
        side = isqrt(height * width // nats.shape[1])  # of the square that a token stands for
        self._start((height // side, width // side), channels * height * width)
        fixed = (nats.double() * FIXED).round().long().cpu().numpy()
        right = hits.long().cpu().numpy()
        self.images += len(fixed)
        self.nats = self.nats + fixed.sum(0)
        self.hits = self.hits + right.sum(0)
        if labels is not None:
            rows = np.stack([np.ones(len(fixed), np.int64), fixed.sum(1), right.sum(1)], axis=1)
            self.classes.add(torch.as_tensor(labels).tolist(), rows)

    def _start(self, shape: tuple[int, int], dimensions: int) -> None:
        if self.shape is None:
            self.shape, self.dimensions = shape, dimensions
            self.nats = self.hits = np.zeros(shape[0] * shape[1], np.int64)
        elif (shape, dimensions) != (self.shape, self.dimensions):
            raise UserError(
                f"the images have codes of {self.shape} and of {shape} tokens; likelihoods are of "
                "images of one size, as in training: set a size or a crop in the data section"
            )

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Add what was counted of other images; UserError for images of another size."""
        height, width = state["shape"].tolist()
        if not height:
            return
        images, dimensions = state["counts"].tolist()
        self._start((height, width), dimensions)
        self.images += images
        self.nats, self.hits = self.nats + state["nats"], self.hits + state["hits"]
        self.classes.merge_state(state)

    def state_dict(self) -> State:
        return {
            "shape": np.array(self.shape or (0, 0)),
            "counts": np.array([self.images, self.dimensions]),
            "nats": self.nats,
            "hits": self.hits,
            **self.classes.state_dict(),
        }

    def compute(self) -> LikelihoodScores:
        """Means over all tokens; UserError if there were no images."""
        if not self.images:
            raise UserError("there are no images to evaluate; check the data section of the config")
        tokens = self.images * len(self.nats)
        per_token = int(self.nats.sum()) / FIXED / tokens
        per_dimension = per_token * len(self.nats) / self.dimensions
        return LikelihoodScores(
            images=self.images,
            nats_per_token=per_token,
            bits_per_token=per_token / math.log(2),
            uniform_nats_per_token=math.log(self.n_codes),
            nats_per_dimension=per_dimension,
            bits_per_dimension=per_dimension / math.log(2),
            top_1=int(self.hits.sum()) / tokens,
        )

    def map(self) -> np.ndarray:
        """Mean nats float64 [h, w] of the token at every place of the image."""
        return (self.nats / FIXED / self.images).reshape(self.shape)

    def by_class(self) -> dict[int, dict[str, float]]:
        """For every label its `images`, `nats_per_token` and `top_1`."""
        table = {}
        for label, row in sorted(self.classes.items()):
            images, nats, hits = row.tolist()
            tokens = images * len(self.nats)
            scores = {"nats_per_token": nats / FIXED / tokens, "top_1": hits / tokens}
            table[label] = {"images": images, **scores}
        return table


class ModelLikelihood(Likelihood):
    """How likely image indices are under a transformer in eval mode.

    Each cross-entropy is that of the true index given the condition and the true indices before
    it, in the order of the model's permuter; sums are by the place in the image.
    """

    def __init__(self, model: Net2NetTransformer) -> None:
        if model.masked:
            raise UserError(
                "a likelihood is of models that predict one code after the other, and this one "
                "fills in masked codes (attention: full)"
            )
        super().__init__(model.n_codes)
        self.model = model

    @torch.no_grad()
    def add_batch(self, batch: Mapping[str, Any]) -> None:
        """Count a batch as the model reads it; classes, if it has `class_label`."""
        model = self.model
        x, c = (part.to(model.device) for part in model.get_xc(batch))
        factor = model.first_stage_model.downsampling_factor
        self._start((x.shape[2] // factor, x.shape[3] // factor), x[0].numel())  # before the model
        logits, target = model(x, c)  # (B, h * w, V), (B, h * w)
        nats = F.cross_entropy(logits.float().mT, target, reduction="none")  # (B, h * w)
        hits = logits.argmax(-1) == target
        nats, hits = (model.permuter(part, reverse=True) for part in (nats, hits))
        self.add(nats, hits, (x.shape[1], x.shape[2], x.shape[3]), batch.get(LABEL))

    def update(self, images: Sequence[SourceImage]) -> None:
        """Count a batch of `ItemImage`s."""
        self.add_batch(default_collate([i.item for i in images if isinstance(i, ItemImage)]))


def measure_likelihood(
    model: Net2NetTransformer, batches: Iterable[Mapping[str, Any]]
) -> Likelihood:
    """The likelihood of all images of `batches`, as the model reads them."""
    likelihood = ModelLikelihood(model)
    for batch in batches:
        likelihood.add_batch(batch)
    return likelihood
