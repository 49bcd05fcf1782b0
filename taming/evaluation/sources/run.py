"""Images straight from a trained transformer, without files in between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taming.checkpoint import find_run, run_config
from taming.config import without_checkpoint_paths
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.sources.base import by_size
from taming.evaluation.sources.picture import Picture, pixel_digest
from taming.sampling import Sample, SampleSettings, labels_for
from taming.sampling.load import load_transformer
from taming.sampling.plan import SamplingJob, SamplingPlan
from taming.sampling.rejection import group_of


@dataclass(frozen=True)
class Drawing:
    """How a run's images are drawn; all of it is written beside the numbers.

    Attributes:
        num_samples: per class, where there are classes.
        settings: temperature and filters.
        seed: with its number and class, decides each sample.
        classes: None for all of them.
        height, width: in pixels; None as trained.
        ratio, classifier: rejection, see `taming.sampling.rejection`.
        base, overrides: YAMLs and `key.path=value`, merged over the run's config.
        device, dtype, compiled: where and how precisely the transformer computes.
    """

    num_samples: int = 50_000
    settings: SampleSettings = field(default_factory=lambda: SampleSettings(top_k=250))
    seed: int = 0
    classes: tuple[int, ...] | None = None
    height: int | None = None
    width: int | None = None
    ratio: float = 1.0
    classifier: str | None = None
    base: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"--num_samples must be at least 1, not {self.num_samples}")
        if self.settings.temperature == 0:
            raise UserError(
                "--temperature 0 would draw one image again and again; it must be above 0"
            )
        group_of(self.ratio)
        if (self.ratio < 1) != (self.classifier is not None):
            raise UserError("rejection needs both --reject_ratio below 1 and --classifier")

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **asdict(self.settings),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "classes": None if self.classes is None else list(self.classes),
            "height": self.height,
            "width": self.width,
            "reject_ratio": self.ratio,
            "classifier": self.classifier,
            "base": list(self.base),
            "overrides": list(self.overrides),
            "precision": str(self.dtype).removeprefix("torch."),
        }


class RunSource:
    """Samples of a class-conditional or unconditional transformer.

    Sample `number` of the n-th class has the index n * num_samples + number. It depends on the
    seed, its class and its number alone, and equals the PNG that scripts/sample_fast.py writes.

    Raises:
        UserError: where there is no such run, or it is a first stage.
    """

    def __init__(self, path: str | Path, drawing: Drawing | None = None) -> None:
        self.path, self.drawing = Path(path), drawing or Drawing()
        self.run = find_run(path)
        config = run_config(self.run, self.drawing.base, self.drawing.overrides)
        self.config = without_checkpoint_paths(config.model)
        if "transformer_config" not in (self.config.get("params") or {}):
            raise UserError(
                f"{path} is a first stage, which draws no samples; compare its reconstructions "
                "with scripts/evaluate_first_stage.py, or give a transformer's run"
            )
        self._fingerprint: str | None = None

    def with_drawing(self, drawing: Drawing) -> RunSource:
        """The same run, drawn otherwise; the model is loaded once for both."""
        other = RunSource(self.path, drawing)
        keys = ("base", "overrides", "device", "dtype")
        if all(getattr(drawing, key) == getattr(self.drawing, key) for key in keys):
            other.__dict__["_loaded"] = self._loaded
            other.__dict__["checkpoint_hash"] = self.checkpoint_hash
        return other

    @cached_property
    def _loaded(self) -> tuple[Any, int]:
        d = self.drawing
        model, _, step = load_transformer(self.path, d.base, d.device, d.overrides, d.dtype)
        return model, step

    @cached_property
    def labels(self) -> list[int | None]:
        """The classes that are drawn; [None] for a model without them."""
        return labels_for(self._loaded[0], self.drawing.classes)

    @cached_property
    def checkpoint_hash(self) -> str:
        """SHA-256 of the checkpoint's file."""
        return file_hash(self.run.checkpoint)

    def __len__(self) -> int:
        return len(self.labels) * self.drawing.num_samples

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "run",
            "path": str(self.path),
            "checkpoint": self.run.checkpoint.name,
            "checkpoint_hash": self.checkpoint_hash,
            "global_step": self._loaded[1],
            "sampler": self.drawing.describe(),
        }

    def content_key(self) -> str:
        """Of the checkpoint, the model's config, all settings, torch and the kind of device."""
        decides = {
            "checkpoint": self.checkpoint_hash,
            "model": self.config,
            "sampler": self.drawing.describe(),
            "classifier": self._classifier_hash(),
            "labels": self.labels,
            "torch": torch.__version__,
            "device": self.drawing.device.type,
        }
        text = json.dumps(decides, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _classifier_hash(self) -> str | None:
        _, _, file = (self.drawing.classifier or "").partition(":")
        return file_hash(file) if file and Path(file).is_file() else None

    def fingerprint(self) -> str | None:
        return None

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[Picture]]:
        job = self._job(batch_size, share)
        places = {label: place for place, label in enumerate(self.labels)}
        samples = job.samples(_Skipped(skip, places, self.drawing.num_samples))
        pictures = (self._picture(sample, places[sample.label]) for sample in samples)
        return by_size((p for p in pictures if p.index not in skip), batch_size)

    def _job(self, batch_size: int, share: tuple[int, int]) -> SamplingJob:
        d, model = self.drawing, self._loaded[0]
        plan = SamplingPlan(
            num_samples=d.num_samples,
            settings=d.settings,
            seed=d.seed,
            classes=d.classes,
            size=(d.height, d.width) if d.height or d.width else None,
            reject_ratio=d.ratio,
            classifier=d.classifier,
            device=d.device,
            compiled=d.compiled,
        )
        return plan.job(model, batch_size, share)

    def _picture(self, sample: Sample, place: int) -> Picture:
        pixels = to_pixels(sample.image)
        name = f"sample {sample.number}"
        if sample.label is not None:
            name = f"class {sample.label}, {name}"
        index = place * self.drawing.num_samples + sample.number
        return Picture(index, pixels, sample.label, name, pixel_digest(pixels.numpy()))


@dataclass(frozen=True)
class _Skipped:
    """Which samples of a class need not be drawn, from indices."""

    skip: Container[int]
    places: dict[int | None, int]
    num_samples: int

    def finished(self, label: int | None) -> set[int]:
        first = self.places[label] * self.num_samples
        return {n for n in range(self.num_samples) if first + n in self.skip}


def to_pixels(image: Tensor) -> Tensor:
    """uint8 (3, H, W) of an image (C, H, W) in [-1, 1], as a PNG of it would be read."""
    if image.shape[0] not in (1, 3, 4):
        raise UserError(f"the model draws {image.shape[0]} channels; images have 1, 3 or 4 of them")
    pixels = ((image[:3] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(3, -1, -1).contiguous()
