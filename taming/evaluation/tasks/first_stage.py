"""First stages compared: how near their reconstructions are, and how they use their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.config import without_checkpoint_paths
from taming.distributed import own_share
from taming.evaluation.cache import State, key_of
from taming.evaluation.metrics.base import joined_states, split_states
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fidelity import Moments, frechet_distance
from taming.evaluation.metrics.lpips import Networks
from taming.evaluation.metrics.reconstruction import SMALLEST, PairAccumulator, to_bytes
from taming.evaluation.metrics.segmentation import LabelPairs
from taming.evaluation.plots import pictures_at
from taming.evaluation.runner import Reading
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.sources.picture import Content, Picture
from taming.evaluation.sources.prepared import as_channels, model_input
from taming.evaluation.tasks.loaded_first_stages import Stage
from taming.evaluation.tasks.models import reconstruct
from taming.models.codes import CodeHistogram, codebook_use

ROUNDING = "8-bit images, values cut to [-1, 1] and rounded"


@dataclass(frozen=True)
class StageResult:
    """Numbers of a first stage, and what they are about.

    Attributes:
        metrics: `images`, those of `PairAccumulator` or `LabelPairs`, `rfid`, `codebook_usage`
            (share of the codes that occur) and `codebook_perplexity` (exp of their entropy).
        left_out: the metrics that are not there, with a reason each.
        classes: metrics of pairs by label.
        counts: how often each code occurs, int64 [n_codes].
        values: of each picture, see `PairAccumulator.values`.
        images, reconstructions: descriptions of the two sets, with the hashes of their pixels.
    """

    name: str
    metrics: dict[str, Any]
    left_out: dict[str, str]
    classes: dict[int, dict[str, Any]]
    counts: np.ndarray
    values: State
    images: dict[str, Any]
    reconstructions: dict[str, Any]


@dataclass
class FirstStageEvaluator:
    """Evaluates one or more first stages on the same images.

    Attributes:
        networks: of LPIPS.
        extractor: of the layer whose Fréchet distance is the rFID; None: no rFID.
        metrics: beside L1 and PSNR.
        device, dtype: where and how precisely the first stages compute.
        reading: batch size, cache.
        left_out: metrics that were wanted and cannot be computed, with a reason each.
    """

    networks: Networks = field(default_factory=Networks)
    extractor: Extractor | None = None
    metrics: Sequence[str] = tuple(SMALLEST)
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    reading: Reading = field(default_factory=Reading)
    left_out: Mapping[str, str] = field(default_factory=dict)
    _originals: dict[int, Moments] = field(default_factory=dict)  # by channels

    def __call__(self, stage: Stage, images: ImageSource) -> StageResult | None:
        """The numbers of a first stage; None in processes other than that of rank 0.

        Raises:
            UserError: for images that cannot be read or that the first stage does not take.
        """
        rank = own_share()[0]
        stage.model.to(self.device)

        def restored(state: State | None) -> StageTally:
            tally = StageTally(self, stage, len(images))
            if state is not None:
                tally.restore(state)
            return tally

        key = self._key(stage, images) if rank == 0 else ""
        tally = self.reading.collect(images, key, stage.name, restored)
        stage.model.cpu()
        if self.extractor is not None and stage.pictorial:
            # In all processes, so that none computes them again.
            self._originals.setdefault(stage.model.channels, tally.originals)
        return tally.result(images) if rank == 0 else None

    def _key(self, stage: Stage, images: ImageSource) -> str:
        known = stage.model.channels in self._originals
        return key_of(
            content=images.content_key(),
            checkpoint=stage.checkpoint_hash,
            model=without_checkpoint_paths(stage.config.model),
            settings=self.describe(),
            originals=known,
            torch=torch.__version__,
            device=self.device.type,
        )

    def describe(self) -> dict[str, Any]:
        """What decides the numbers beside images and first stages, as JSON values."""
        lpips = {
            f"lpips_{net}": {"version": "0.1", "backbone_sha256": digest}
            for net, digest in self.networks.hashes.items()
        }
        extractor = {} if self.extractor is None else {"rfid": self.extractor.describe()}
        return {
            "metrics": list(self.metrics),
            "compared": ROUNDING,
            "psnr": "mean of the images' own, range 255",
            "ssim": "Gaussian window of 11, sigma 1.5, inside the image; mean over channels",
            "precision": str(self.dtype).removeprefix("torch."),
            **lpips,
            **extractor,
        }

    def own_metrics(self) -> list[str]:
        """Those of `metrics` whose network is there."""
        return [name for name in self.metrics if name not in self.networks.left_out]

    def pictures(
        self, stage: Stage, images: ImageSource, indices: Sequence[int]
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Some images and their reconstructions by index, each uint8 (H, W, 3)."""
        found = {}
        stage.model.to(self.device)
        for index, pixels in pictures_at(images, indices):
            x = model_input(torch.from_numpy(pixels).permute(2, 0, 1)[None], stage.model.channels)
            _, reconstruction = reconstruct(stage.model, x.to(self.device), self.dtype)
            found[index] = (_shown(stage, x.to(self.device)), _shown(stage, reconstruction))
        return found


def _shown(stage: Stage, image: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of an image [1, C, H, W]; labels get a colour each."""
    if not stage.pictorial:
        one_hot = torch.zeros_like(image).scatter_(1, image.argmax(dim=1, keepdim=True), 1)
        image = stage.model.to_rgb(one_hot)
    return to_bytes(image)[0].expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()


class StageTally:
    """What is counted of a first stage's reconstructions; see `metrics.base.Tally`."""

    def __init__(self, evaluator: FirstStageEvaluator, stage: Stage, images: int) -> None:
        self.evaluator, self.stage = evaluator, stage
        self.content, self.reconstructions = Content(images), Content(images)
        self.codes = CodeHistogram(stage.model.quantize.n_e)
        channels = stage.model.channels
        self.pairs: PairAccumulator | LabelPairs
        if stage.pictorial:
            self.pairs = PairAccumulator(evaluator.own_metrics(), evaluator.networks.ready)
        else:
            self.pairs = LabelPairs(channels)
        self.moments = Moments()
        known = evaluator._originals.get(channels)
        self.knows_originals = known is not None
        self.originals = known or Moments()

    def add(self, pictures: Sequence[Picture]) -> None:
        """Reconstruct pictures of one size and compare."""
        evaluator, channels = self.evaluator, self.stage.model.channels
        pixels = torch.stack([p.pixels for p in pictures]).to(evaluator.device)
        indices, found = reconstruct(
            self.stage.model, model_input(pixels, channels), evaluator.dtype
        )
        self.codes.add(indices.cpu())
        if self.stage.pictorial:
            pixels, second = as_channels(pixels, channels), to_bytes(found)
            self._add_features(pixels, second)
        else:
            second = found.argmax(dim=1, keepdim=True).byte()
        places, labels = [p.index for p in pictures], [p.label for p in pictures]
        self.pairs.add(places, pixels, second, labels)
        self.content.add(pictures)
        self.reconstructions.add(map(Picture, places, second.cpu()))

    def _add_features(self, images: Tensor, reconstructions: Tensor) -> None:
        extractor = self.evaluator.extractor
        if extractor is None:
            return
        (layer,) = extractor.layers
        self.moments.add(extractor(reconstructions.expand(-1, 3, -1, -1))[layer])
        if not self.knows_originals:
            self.originals.add(extractor(images.expand(-1, 3, -1, -1))[layer])

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"content": self.content, "reconstructions": self.reconstructions}
        parts |= {"pairs": self.pairs, "moments": self.moments}
        return parts if self.knows_originals else parts | {"originals": self.originals}

    def state(self) -> State:
        counts = {"counts": self.codes.counts_so_far().numpy()}
        return joined_states({n: p.state() for n, p in self._parts().items()} | {"codes": counts})

    def restore(self, state: State) -> None:
        """Become the tally that had this state."""
        states = split_states(state)
        self.content = Content.from_state(states["content"])
        self.reconstructions = Content.from_state(states["reconstructions"])
        self.pairs.merge(states["pairs"])
        self.codes.add_counts(torch.from_numpy(states["codes"]["counts"]))
        self.moments = Moments.from_state(states["moments"])
        if not self.knows_originals:
            self.originals = Moments.from_state(states["originals"])

    def merge(self, other: StageTally) -> None:
        for name in ("content", "reconstructions", "moments"):
            getattr(self, name).merge(getattr(other, name))
        self.pairs.merge(other.pairs.state())
        self.codes.add_counts(other.codes.counts_so_far())
        if not self.knows_originals:
            self.originals.merge(other.originals)

    def result(self, images: ImageSource) -> StageResult:
        """Of the images that were counted."""
        left_out = {**self.evaluator.left_out, **self.evaluator.networks.left_out}
        metrics = self.pairs.summary()
        if self.stage.pictorial:
            left_out |= self.pairs.left_out()
            if self.evaluator.extractor is not None and self.moments.count > 1:
                metrics["rfid"] = frechet_distance(self.moments, self.originals)
            elif self.evaluator.extractor is not None:
                left_out["rfid"] = "a covariance needs 2 images at least"
        else:
            left_out = dict.fromkeys((*SMALLEST, "rfid"), "segmentations have no colours")
        counts = self.codes.take()
        metrics["codebook_usage"], metrics["codebook_perplexity"] = codebook_use(counts)
        return StageResult(
            self.stage.name,
            metrics,
            left_out,
            self.pairs.per_label(),
            counts.numpy(),
            self.pairs.values(),
            {**images.describe(), **self.content.describe()},
            {**self.stage.describe(), **self.reconstructions.describe()},
        )
