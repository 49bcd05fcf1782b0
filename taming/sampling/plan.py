"""What a command samples from a run: how many images, of which classes and size, and how.

`scripts/sample_fast.py` and the evaluation take the same `SamplingPlan`: its fields are flags. For
a loaded model it becomes a `SamplingJob`, the part of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from taming.command_line import flag, parse_numbers, parse_size
from taming.devices import dtype_name, own_share
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.engine import (
    OnStep,
    Sample,
    check_settings,
    rounds_by_batch,
    sample_images,
)
from taming.sampling.estimate import announced
from taming.sampling.pools import Pool, PoolSampler, ScoreFiles
from taming.sampling.rejection import (
    GROUP,
    Classifier,
    Group,
    Score,
    best_of,
    candidates,
    group_of,
)
from taming.sampling.requests import Request, labels_for, requests_for_labels
from taming.sampling.settings import SampleSettings, wrong_temperature
from taming.sampling.sizes import Sides, tokens_for, trained_shape
from taming.user_files import name_and_file

MOST_SAMPLES = 10**9  # of a class
TOP_K = 250
Finished = Callable[[int | None], set[int]]  # the numbers of a label's samples that exist


@dataclass(frozen=True)
class SamplingPlan:
    """All that decides the samples of a run, beside the run itself.

    Fields without a flag are given by the script. Values out of range are refused.
    """

    num_samples: int = flag(50_000, "per class, if there are classes", "-n")
    settings: SampleSettings = field(default_factory=lambda: SampleSettings(top_k=TOP_K))
    seed: int = flag(0, "decides each sample, together with its number")
    classes: tuple[int, ...] | None = flag(
        None, "comma list of class numbers (default: all)", parse=parse_numbers
    )
    size: Sides | None = flag(
        None, "of the images in pixels, height,width (default: as trained)", parse=parse_size
    )
    reject_ratio: float = flag(
        1.0, "keep this share, by the classifier", hidden=("--reject-ratio",)
    )
    classifier: str | None = flag(
        None,
        "torchvision model, as resnet101 or resnet101@IMAGENET1K_V1, or with own weights: "
        "resnet18:FILE",
    )
    reject_pool: str = flag(
        GROUP,
        "among which the best are: groups as small as the share allows, all of a class, or so many",
        hidden=("--reject-pool",),
        metavar="group|class|N",
    )
    base: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    batch_size: int = 25  # at once; samples depend on it where `rounds_by_batch`

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"--num_samples must be at least 1, not {self.num_samples}")
        if self.num_samples > MOST_SAMPLES:
            raise UserError(
                f"--num_samples is {self.num_samples}; at most {MOST_SAMPLES:,} are made"
            )
        if self.settings.temperature == 0:
            raise wrong_temperature(0)
        group_of(self.reject_ratio, self.reject_pool)
        if self.reject_pool != GROUP and self.classifier is None:
            raise UserError("--reject_pool needs --reject_ratio below 1 and --classifier")
        if (self.reject_ratio < 1) != (self.classifier is not None):
            raise UserError("rejection needs both --reject_ratio below 1 and --classifier")

    @property
    def group(self) -> Group:
        """How many of how many candidates are kept; 1 of 1 without rejection."""
        return group_of(self.reject_ratio, self.reject_pool, self.num_samples)

    @property
    def classifier_file(self) -> str | None:
        """The classifier's own weights, of `resnet18:FILE`."""
        return name_and_file(self.classifier or "")[1] or None

    @property
    def pooled(self) -> bool:
        """Whether candidates are compared in larger pools than groups, see `PoolSampler`."""
        return self.reject_pool != GROUP

    def describe(self) -> dict[str, Any]:
        """Everything that decides the samples, as JSON values."""
        height, width = self.size or (None, None)
        return {
            **self.settings.describe(),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "classes": None if self.classes is None else list(self.classes),
            "height": height,
            "width": width,
            "reject_ratio": self.reject_ratio,
            "classifier": self.classifier,
            **(
                {"reject_pool": self.reject_pool, "pool": list(self.group)}
                if self.classifier
                else {}
            ),
            "base": list(self.base),
            "overrides": list(self.overrides),
            "precision": dtype_name(self.dtype),
            **({"batch_size": self.batch_size} if rounds_by_batch(self.dtype) else {}),
        }

    def at_once(self, wanted: int) -> int:
        """How many are sampled at once: as many as are `wanted`, unless samples depend on it."""
        return self.batch_size if rounds_by_batch(self.dtype) else wanted

    def check(self, model: Net2NetTransformer) -> None:
        """Raise UserError for settings that the model does not sample by."""
        shape = tokens_for(model, self.size) or trained_shape(model)
        check_settings(model, self.settings, shape, self.compiled)

    def job(
        self, model: Net2NetTransformer, batch_size: int, share: tuple[int, int] | None = None
    ) -> SamplingJob:
        """The job for a loaded model; `share` is this process's, by default as torchrun says.

        Raises:
            UserError: for settings that the model does not sample by.
        """
        self.check(model)
        return SamplingJob(
            plan=self,
            model=model,
            labels=labels_for(model, self.classes),
            shape=tokens_for(model, self.size),
            score=Classifier(self.classifier, self.device) if self.classifier else None,
            batch_size=batch_size,
            share=share or own_share(),
        ).of_few_samples()


@dataclass(frozen=True)
class SamplingJob:
    """The samples of a plan that one process makes, with a loaded model."""

    plan: SamplingPlan
    model: Net2NetTransformer
    labels: Sequence[int | None]  # the classes, or [None]
    shape: tuple[int, int] | None = None  # height and width in tokens; None: the training's
    score: Score | None = None  # of candidates, with rejection (see `best_of`)
    batch_size: int = 25
    share: tuple[int, int] = (0, 1)  # (n, processes): this is the n-th that shares the plan

    @property
    def rounds_by_batch(self) -> bool:
        """Whether samples depend on how many are computed at once, as they do in bf16."""
        return rounds_by_batch(self.plan.dtype)

    def of_few_samples(self) -> SamplingJob:
        """Not with larger batches than there are samples, which would be filled up.

        Where samples depend on it, that is the same in any number of processes.
        """
        kept, of = self.plan.group
        most = -(-self.plan.num_samples // kept) if self.plan.pooled else self.plan.num_samples
        total = len(self.labels) * most * (of if self.score else 1)
        most = total if self.rounds_by_batch else -(-total // self.share[1])
        return replace(self, batch_size=min(self.batch_size, most))

    def count(self, finished: Finished) -> int:
        """How many images this process has to sample, without candidates that are rejected."""
        most = self.plan.num_samples
        existing = sum(n < most for label in self.labels for n in finished(label))
        return -(-(len(self.labels) * most - existing) // self.share[1])

    def sampled(self, finished: Finished) -> int:
        """How many images this process has to sample, with candidates that are rejected."""
        kept, tried = self.plan.group if self.score else Group(1, 1)
        if self.plan.pooled:
            return -(-len(self.pools(finished)) * tried // self.share[1])
        return -(-self.count(finished) // kept) * tried

    def pools(self, finished: Finished) -> list[Pool]:
        """The pools of candidates of which samples are missing, the same in all processes."""
        group, pools = self.plan.group, []
        for label in self.labels:
            (request,) = requests_for_labels(self.model, [label], 1, shape=self.shape)
            missing = set(range(self.plan.num_samples)) - finished(label)
            for number in sorted({n // group.kept for n in missing}):
                wanted = frozenset(n for n in missing if n // group.kept == number)
                pools.append(Pool(request, number, group, wanted))
        return pools

    def requests(self, finished: Finished) -> Iterator[Request]:
        """What this process has to sample: with rejection, the candidates of whole groups."""
        requests = requests_for_labels(
            self.model,
            self.labels,
            self.plan.num_samples,
            finished=finished,
            shape=self.shape,
            share=self.share,
            block=self.plan.group.kept if self.score else 1,
        )
        return candidates(requests, self.plan.group) if self.score else requests

    def samples(
        self,
        finished: Finished,
        on_step: OnStep | None = None,
        scores: ScoreFiles | None = None,
        on_candidate: Callable[[], object] = lambda: None,
    ) -> Iterator[Sample]:
        """The samples that do not exist yet; of large sizes it is said how long they take.

        Of pools (`SamplingPlan.pooled`), `scores` are written to files, and `on_candidate` is
        called after each candidate.
        """
        model, settings = self.model, self.plan.settings

        def draw(requests: Iterable[Request]) -> Iterator[Sample]:
            return sample_images(
                model,
                requests,
                settings,
                batch_size=self.batch_size,
                seed=self.plan.seed,
                on_step=on_step,
                shape=self.shape,
                compiled=self.plan.compiled,
                filled=self.rounds_by_batch,
            )

        def announce(requests: Iterable[Request]) -> Iterator[Request]:
            count = partial(self.sampled, finished)
            return announced(model, requests, settings, self.batch_size, self.shape, count=count)

        if self.score is None:
            return draw(announce(self.requests(finished)))
        if self.plan.pooled:
            pools = PoolSampler(
                self.pools(finished),
                draw,
                self.score,
                self.share,
                files=scores,
                announce=announce,
                on_candidate=on_candidate,
            )
            return iter(pools)
        chosen = best_of(draw(announce(self.requests(finished))), self.score, self.plan.group)
        return (sample for sample in chosen if sample.number < self.plan.num_samples)
