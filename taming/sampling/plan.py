"""What a command samples from a run: how many images, of which classes and size, how, and where.

`scripts/sample_fast.py` and the evaluation take the same `SamplingPlan`: its fields are flags.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from taming.command_line import flag, parse_numbers, parse_size
from taming.devices import dtype_name
from taming.distributed import own_share
from taming.errors import UserError
from taming.sampling.folder import Job
from taming.sampling.rejection import Classifier, group_of
from taming.sampling.requests import labels_for
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import tokens_for


@dataclass(frozen=True)
class SamplingPlan:
    """All that decides the samples of a run, beside the run itself.

    Fields without a flag are given by the script: `overrides` (`key.path=value`), `device`,
    `dtype` and `compiled`.

    Raises:
        UserError: for values out of range.
    """

    num_samples: int = flag(50_000, "per class, if there are classes", "-n")
    settings: SampleSettings = field(default_factory=lambda: SampleSettings(top_k=250))
    seed: int = flag(0, "decides each sample, together with its number")
    classes: tuple[int, ...] | None = flag(
        None, "comma list of class numbers (default: all)", parse=parse_numbers
    )
    size: tuple[int, int] | None = flag(
        None, "of the images in pixels, height,width (default: as trained)", parse=parse_size
    )
    reject_ratio: float = flag(
        1.0, "keep this share, by the classifier", hidden=("--reject-ratio",)
    )
    classifier: str | None = flag(
        None, "torchvision model, as resnet101, or with own weights: resnet18:FILE"
    )
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
                "--temperature 0 would sample one image again and again; it must be above 0"
            )
        group_of(self.reject_ratio)
        if (self.reject_ratio < 1) != (self.classifier is not None):
            raise UserError("rejection needs both --reject_ratio below 1 and --classifier")

    def describe(self) -> dict[str, Any]:
        """Everything that decides the samples, as JSON values."""
        height, width = self.size or (None, None)
        return {
            **asdict(self.settings),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "classes": None if self.classes is None else list(self.classes),
            "height": height,
            "width": width,
            "reject_ratio": self.reject_ratio,
            "classifier": self.classifier,
            "base": list(self.base),
            "overrides": list(self.overrides),
            "precision": dtype_name(self.dtype),
        }

    def job(self, model: Any, batch_size: int, share: tuple[int, int] | None = None) -> Job:
        """The job for a loaded model; `share` is this process's, by default as torchrun says."""
        height, width = self.size or (None, None)
        return Job(
            labels=labels_for(model, self.classes),
            num_samples=self.num_samples,
            settings=self.settings,
            batch_size=batch_size,
            seed=self.seed,
            shape=tokens_for(model, height, width),
            share=share or own_share(),
            compiled=self.compiled,
            ratio=self.reject_ratio,
            score=Classifier(self.classifier, self.device) if self.classifier else None,
        )
