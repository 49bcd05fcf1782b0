"""Images straight from a trained transformer, without files in between."""

from __future__ import annotations

from collections.abc import Container
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from taming.checkpoint import find_run, run_config
from taming.config import without_checkpoint_paths
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.checkpoints import describe_checkpoint
from taming.evaluation.sources.images import (
    ALONE,
    Batches,
    ImageSource,
    Share,
    SourceImage,
    by_size,
    key_of,
    pixel_digest,
)
from taming.evaluation.sources.resize import Size
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import to_rgb_pixels
from taming.sampling import Sample, labels_for
from taming.sampling.load import load_transformer
from taming.sampling.plan import SamplingJob, SamplingPlan
from taming.sampling.pools import ScoreFiles
from taming.sampling.sizes import pixels_per_token, tokens_for, trained_shape
from taming.shipped import script
from taming.weight_choice import weight_choice


class RunSource(ImageSource):
    """Samples of a class-conditional or unconditional transformer.

    Sample `number` of the n-th class has the index n * num_samples + number. It depends on the
    seed, its class and its number alone, and in bf16 on the plan's batch size; it equals the PNG
    that scripts/sample_fast.py writes, in bf16 with the same batch size.

    Raises UserError if there is no such run, or it is a first stage.
    """

    def __init__(self, path: str | Path, plan: SamplingPlan | None = None) -> None:
        self.path, self.plan = Path(path), plan or SamplingPlan()
        self.run = find_run(path)
        self._unfinished: Path | None = None
        config = run_config(self.run, self.plan.base, self.plan.overrides, ["model"])
        self.config = without_checkpoint_paths(config.model)
        if "transformer_config" not in (self.config.get("params") or {}):
            raise UserError(
                f"{path} is a first stage, which gives no samples; compare its reconstructions "
                f"with {script('evaluate_first_stage')}, or give a transformer's run"
            )

    def with_plan(self, plan: SamplingPlan) -> Self:
        """The same model, sampled otherwise; it and hashes are read once for both.

        `plan` has the same `base`, `overrides`, `device` and `dtype`.
        """
        self.content_key()
        other = copy(self)
        other.plan = plan
        other.__dict__.pop("labels", None)
        return other

    @cached_property
    def _loaded(self) -> tuple[Net2NetTransformer, int]:
        plan = self.plan
        model, _, step = load_transformer(
            self.path, plan.base, plan.device, plan.overrides, plan.dtype
        )
        return model, step

    @property
    def model(self) -> Net2NetTransformer:
        """The transformer, in eval mode."""
        return self._loaded[0]

    @cached_property
    def labels(self) -> list[int | None]:
        """The classes that are sampled; [None] for a model without classes."""
        return labels_for(self.model, self.plan.classes)

    @cached_property
    def checkpoint_hash(self) -> str:
        """SHA-256 of the checkpoint's file."""
        return file_hash(self.run.checkpoint)

    def __len__(self) -> int:
        return len(self.labels) * self.plan.num_samples

    def has_classes(self) -> bool:
        return self.labels != [None]

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "run",
            "path": str(self.path),
            **describe_checkpoint(self.run, self._loaded[1], self.checkpoint_hash),
            "sampler": self.plan.describe(),
            **self.resizing.describe(),
        }

    def own_image_size(self) -> Size | None:
        model, shape = self.model, tokens_for(self.model, self.plan.size)
        rows, columns = shape or trained_shape(model)
        factor = pixels_per_token(model)
        return rows * factor, columns * factor

    def content_key(self) -> str:
        """Of the checkpoint, the model's config, all settings, torch and the kind of device."""
        return key_of(
            checkpoint=self.checkpoint_hash,
            model=self.config,
            weights=weight_choice(),
            sampler=self.plan.describe(),
            classifier=self._classifier_hash(),
            labels=self.labels,
            torch=torch.__version__,
            device=self.plan.device.type,
            **self.resizing.key(),
        )

    def _classifier_hash(self) -> str | None:
        file = self.plan.classifier_file
        return file_hash(file) if file and Path(file).is_file() else None

    def keep_unfinished_in(self, folder: Path | None) -> None:
        """Where the scores of candidates are written down, in pools that are not finished."""
        self._unfinished = folder

    def forget_unfinished(self) -> None:
        if self._unfinished is not None and self.plan.pooled:
            shape = tokens_for(self.model, self.plan.size)
            job = SamplingJob(self.plan, self.model, self.labels, shape)
            self._scores(self._unfinished).delete(job.pools(lambda label: set()))

    def _scores(self, folder: Path) -> ScoreFiles:
        return ScoreFiles(folder, self.content_key()[:16])

    def batches(self, batch_size: int, share: Share = ALONE, skip: Container[int] = ()) -> Batches:
        places = {label: place for place, label in enumerate(self.labels)}

        def finished(label: int | None) -> set[int]:
            """Which samples of a class need not be made."""
            first = places[label] * self.plan.num_samples
            return {n for n in range(self.plan.num_samples) if first + n in skip}

        at_once = self.plan.at_once(batch_size)
        job = self.plan.job(self.model, at_once, share)
        scores = None if self._unfinished is None else self._scores(self._unfinished)
        samples = job.samples(finished, scores=scores)
        images = (self._image(sample, places[sample.label]) for sample in samples)
        return by_size((image for image in images if image.index not in skip), batch_size)

    def _image(self, sample: Sample, place: int) -> SourceImage:
        name = f"sample {sample.number}"
        if sample.label is not None:
            name = f"class {sample.label}, {name}"
        return self._resized(sample, place * self.plan.num_samples + sample.number, name)

    def _resized(self, sample: Sample, index: int, name: str) -> SourceImage:
        """A sample with the pixels that a PNG of it would have, resized."""
        pixels = self.resizing.planes(to_rgb_pixels(sample.image).numpy())
        digest = pixel_digest(pixels)
        return SourceImage(index, torch.from_numpy(pixels), sample.label, name, digest)
