"""Images through a first stage: how near their reconstructions are, and which codes they use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.devices import computing_in
from taming.errors import UserError
from taming.evaluation.metrics.base import Accumulator
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import frechet_distance
from taming.evaluation.metrics.fid_spread import ResampledMoments, spread_of_pairs
from taming.evaluation.metrics.reconstruction import (
    PAIR_METRICS,
    PairAccumulator,
    SegmentationAccumulator,
    to_pixels,
)
from taming.evaluation.sources.images import (
    Manifest,
    SourceImage,
    State,
    indices_and_labels,
    joined_states,
    part_of,
    stack_pixels,
)
from taming.evaluation.sources.prepared import model_input
from taming.models.code_use import codebook_uses, counted_codes, counted_indices
from taming.models.codes import CodeHistogram, decoded, size_of_codes
from taming.models.first_stage import FirstStage

# What reports and scripts/reconstruct.py say of a first stage.
SCORES = (
    *("images", "l1", "psnr", "pixel_accuracy", "mean_iou"),
    *("codebook_usage", "codebook_perplexity"),
)


@torch.no_grad()
def reconstruct(
    model: FirstStage, x: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Codebook indices [B, ...] of images [B, C, H, W], and the float32 images of those."""
    with computing_in(dtype, x.device):
        indices = model.encode_to_indices(x)
        return indices, decoded(model, indices, size_of_codes(model, x)).float()


class ReconstructionAccumulator:
    """Reconstructs images by a first stage and compares: an `ImageAccumulator`.

    Args:
        images: how many the set has, for `update`.
        pairs: how pairs are compared; by default as `SCORES` needs.
        extractor: of one layer, whose Fréchet distance is the rFID; None: no rFID.
        originals: features of the originals, if another first stage has counted them.
        resamples: sets that are drawn of the images with replacement, for the rFID's spread.
        dtype: how precisely the first stage computes.
    """

    def __init__(
        self,
        model: FirstStage,
        images: int = 0,
        *,
        pairs: PairAccumulator | None = None,
        extractor: Extractor | None = None,
        originals: ResampledMoments | None = None,
        resamples: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.dtype = model, dtype
        self.extractor = None if model.reads_labels else extractor
        self.device = next(iter(model.state_dict().values())).device
        self.reconstructions = Manifest(images)
        self.codes = CodeHistogram(counted_codes(model.quantize))
        self.pairs: PairAccumulator | SegmentationAccumulator = pairs or PairAccumulator(())
        if model.reads_labels:
            self.pairs = SegmentationAccumulator(model.channels)
        self.moments = ResampledMoments(resamples)
        self.originals = originals or ResampledMoments(resamples)
        self.counts_originals = originals is None

    def update(self, images: Sequence[SourceImage]) -> None:
        x = model_input(stack_pixels(images).to(self.device), self.model)
        indices, labels = indices_and_labels(images)
        _, copies = self.update_values(indices, x, labels)
        pairs = zip(images, copies.byte().cpu(), strict=True)
        self.reconstructions.update(SourceImage(image.index, copy) for image, copy in pairs)

    def update_values(
        self, indices: Tensor, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Count images [B, C, H, W] as the first stage takes them, all but their manifest.

        Returns:
            Reconstructions [B, C, H, W], and their pixels uint8 or label numbers [B, 1, H, W].
        """
        codes, reconstructions = reconstruct(self.model, x, self.dtype)
        size = size_of_codes(self.model, x)
        self.codes.add(counted_indices(self.model.quantize, codes, size).cpu())
        pair = self._pixels(x), self._pixels(reconstructions)
        if self.extractor is not None:
            self._count_features(self.extractor, indices, *pair)
        self.pairs.update(indices, *pair, labels)
        return reconstructions, pair[1]

    def _pixels(self, x: Tensor) -> Tensor:
        return x.argmax(dim=1, keepdim=True) if self.model.reads_labels else to_pixels(x)

    def _count_features(
        self, extractor: Extractor, indices: Tensor, images: Tensor, copies: Tensor
    ) -> None:
        (layer,) = extractor.layers
        wanted = [(self.moments, copies)]
        wanted += [(self.originals, images)] if self.counts_originals else []
        for moments, pixels in wanted:
            features = extractor(pixels.expand(-1, 3, -1, -1))[layer]
            moments.update(indices, features)

    def compute(self) -> dict[str, Any]:
        """Means over all images, `rfid` and its spread, `codebook_usage` (share of the codes that
        occur) and `codebook_perplexity` (exp of their entropy), also of each level of codes.

        Raises UserError if there were no images.
        """
        metrics = self.pairs.compute()
        if self.extractor is not None and self.moments.whole.count > 1:
            metrics["rfid"] = frechet_distance(self.moments.whole, self.originals.whole)
            if self.moments.resampled:
                metrics["rfid_spread"] = spread_of_pairs(self.moments, self.originals)
        return metrics | codebook_uses(self.model.quantize, self.codes.counts_so_far())

    def left_out(self) -> dict[str, str]:
        """Metrics that the images are too small or too few for, with a reason each."""
        if self.model.reads_labels:
            return dict.fromkeys((*PAIR_METRICS, "rfid"), "segmentations have no colors")
        left_out = self.pairs.left_out()
        if self.extractor is not None and self.moments.whole.count < 2:
            left_out["rfid"] = "a covariance needs 2 images at least"
        return left_out

    def _parts(self) -> dict[str, Manifest | Accumulator]:
        names = ["reconstructions", "pairs", "moments"]
        names += ["originals"] if self.counts_originals else []
        return {name: vars(self)[name] for name in names}

    def state_dict(self) -> State:
        codes = {"counts": self.codes.counts_so_far().numpy()}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return joined_states(parts | {"codes": codes})

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        for name, part in self._parts().items():
            part.merge_state(part_of(state, name))
        self.codes.add_counts(torch.from_numpy(state["codes/counts"]))


def score_first_stage(
    model: FirstStage,
    batches: Iterable[Tensor],
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, Any]:
    """`SCORES` of a first stage on images [B, C, H, W], as it takes them.

    Args:
        on_batch: gets the images and the reconstructions of each batch.

    Raises UserError if there are no images.
    """
    accumulator, count = ReconstructionAccumulator(model), 0
    for x in batches:
        x = x.to(accumulator.device)
        indices = torch.arange(count, count + len(x))
        reconstructions, _ = accumulator.update_values(indices, x)
        if on_batch is not None:
            on_batch(x, reconstructions)
        count += len(x)
    if not count:
        raise UserError("there are no images to evaluate; check the data section of the config")
    metrics = accumulator.compute()
    levels = {name: value for name, value in metrics.items() if name.startswith("codebook_")}
    return {name: metrics[name] for name in SCORES if name in metrics} | levels
