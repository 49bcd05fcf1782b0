"""Rejection sampling: of several candidates, those that a classifier finds most like their class.

As in arXiv 2012.09841, section 4.4 and supplement, which do not say among which candidates the
best are chosen. By default that is small groups, so that a sample depends on its group alone;
larger pools, as of all candidates of a class, are in `taming.sampling.pools`.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from taming.checkpoint import read_content
from taming.checkpoint.weight_sets import choose
from taming.config import did_you_mean
from taming.errors import UserError
from taming.pictures import to_uint8, to_values
from taming.sampling.engine import Sample
from taming.sampling.requests import Request
from taming.user_files import name_and_file

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

Score = Callable[[Tensor, Tensor], Tensor]

SCORED = 16  # images at once, always so many: products of other shapes round differently
GROUP, CLASS = "group", "class"  # what candidates are compared with, beside a number of them


class Group(NamedTuple):
    """The best `kept` of `of` candidates become samples."""

    kept: int
    of: int


def group_of(ratio: float, pool: str = GROUP, num_samples: int = 1) -> Group:
    """Which candidates are compared if about `ratio` of them, 0.001 to 1, are kept.

    `pool` is "group", for as few as possible; "class", for all of the candidates that `num_samples`
    of a class are the best of; or a number of candidates.

    Raises:
        UserError: for other values, and a number of which no whole number is kept.
    """
    if not 0.001 <= ratio <= 1:
        raise UserError(f"--reject_ratio is the share that is kept, 0.001 to 1, not {ratio}")
    share = Fraction(ratio).limit_denominator(1000)
    if pool == GROUP:
        return Group(share.numerator, share.denominator)
    if pool == CLASS:
        return Group(num_samples, -(-num_samples * share.denominator // share.numerator))
    return _group_of_size(ratio, share, pool)


def _group_of_size(ratio: float, share: Fraction, pool: str) -> Group:
    if not pool.isdecimal():
        raise UserError(
            f"--reject_pool is {GROUP}, {CLASS} or a number of candidates, not '{pool}'"
        )
    kept = int(pool) * share
    if kept < 1:
        raise UserError(
            f"--reject_pool {pool} is smaller than 1 / --reject_ratio, so that none is kept; give "
            f"at least {-(-share.denominator // share.numerator)}"
        )
    if kept.denominator > 1:
        raise UserError(
            f"--reject_ratio {ratio} of --reject_pool {pool} is no whole number of images; give a "
            f"multiple of {share.denominator}"
        )
    return Group(int(kept), int(pool))


def candidates(requests: Iterable[Request], group: Group) -> Iterator[Request]:
    """The requests for all candidates of the groups that `requests`, in order, belong to."""
    kept, of = group
    for (_, place), members in groupby(requests, key=lambda r: (r.label, r.number // kept)):
        first = next(members)
        for number in range(place * of, (place + 1) * of):
            yield replace(first, number=number)


def best_of(samples: Iterable[Sample], score: Score, group: Group) -> Iterator[Sample]:
    """Of every group of candidates the best, best first, numbered as samples.

    Of equal scores the first one is the better one. `score` is as for `scored`.
    """
    kept, of = group
    iterator = scored(samples, score)
    while together := list(islice(iterator, of)):
        ranked = sorted(together, key=lambda pair: -pair[1])  # a stable order
        for place, (chosen, best) in enumerate(ranked[:kept]):
            number = chosen.number // of * kept + place
            yield replace(chosen, number=number, candidate=chosen.number, score=best)


def scored(samples: Iterable[Sample], score: Score) -> Iterator[tuple[Sample, float]]:
    """Each sample with how like its class it is, minus infinity if that is no number.

    `score(images [B, C, H, W], labels [B])` is [B], the higher the better. It gets the pixels that
    a PNG has, since what batches of other sizes round otherwise is gone there, and as many images
    at once as `SCORED` says, the last ones filled up with copies. Then an image has the same score
    whatever it is compared with.

    Raises UserError for samples without a class.
    """
    iterator = iter(samples)
    while together := list(islice(iterator, SCORED)):
        labels = [sample.label for sample in together if sample.label is not None]
        if len(labels) < len(together):
            raise UserError("rejection asks how like its class a sample is; this model has none")
        copies = SCORED - len(together)
        images = torch.stack([s.image for s in [*together, *[together[-1]] * copies]])
        scores = score(to_values(to_uint8(images)), torch.tensor(labels + labels[-1:] * copies))
        for sample, value in zip(together, scores.tolist(), strict=False):
            yield sample, -math.inf if math.isnan(value) else value


class Classifier:
    """How probable an image's class is to a torchvision classifier.

    `name` is a torchvision model with its newest published weights, `resnet101`, or with others,
    `resnet101@IMAGENET1K_V1`; or with weights of its own, `resnet18:FILE`, whose outputs are the
    model's classes in their order. Images are resized and cropped as the published weights want.

    Raises:
        UserError: for an unknown name, or weights that are not there or do not fit.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        network, file = name_and_file(name)
        weights = _published(network)
        self.transform = weights.transforms(antialias=True)
        self.network, self.device = self._load(network, file).to(device).eval(), device

    @staticmethod
    def missing_file(name: str) -> Path | None:
        """Where published weights of a classifier would be fetched to; None if they are there."""
        path = None if name_and_file(name)[1] else _file_of(_published(name))
        return None if path is None or path.is_file() else path

    @staticmethod
    def _load(network: str, file: str) -> nn.Module:
        return _with_file(network, file) if file else _with_published(network)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Of every class [B, K], for images [B, 1 or 3, H, W] in [-1, 1]."""
        pixels = images.to(self.device).clamp(-1, 1).add(1).div(2).expand(-1, 3, -1, -1)
        logits: Tensor = self.network(self.transform(pixels))  # (B, K)
        return logits.softmax(1)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Probabilities [B] of `labels` [B] for images [B, 1 or 3, H, W] in [-1, 1]."""
        probabilities = self.probabilities(images)
        require_known(int(labels.max()), probabilities)
        return probabilities.gather(1, labels.to(self.device)[:, None])[:, 0]


def _published(network: str) -> WeightsEnum:
    """torchvision's weights of `resnet101`, or of `resnet101@IMAGENET1K_V1`; UserError if it has
    none of that name."""
    from torchvision import models  # takes long, and is needed for rejection only

    architecture, at, version = network.partition("@")
    known = models.list_models(module=models)
    if architecture not in known:
        close = did_you_mean(architecture, known) or "; try resnet101"
        raise UserError(f"torchvision has no classifier '{architecture}'{close}")
    weights = models.get_model_weights(architecture)
    if not at:
        return weights.DEFAULT
    if version not in weights.__members__:
        names = ", ".join(weights.__members__)
        raise UserError(f"{architecture} has no weights '{version}'; there are {names}")
    return weights[version]


def _file_of(weights: WeightsEnum) -> Path:
    """Where torchvision keeps published weights."""
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])


def _with_file(network: str, file: str) -> nn.Module:
    from torchvision import models

    architecture = network.partition("@")[0]
    state = choose(read_content(file), file).tensors
    try:
        with torch.device("meta"):
            last = list(models.get_model(architecture, weights=None).state_dict())[-1]
        # By its name: files of safetensors have their tensors in the order of the alphabet.
        sizes = {"num_classes": len(state[last])} if last in state else {}
        made: nn.Module = models.get_model(architecture, weights=None, **sizes)
        made.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{file} holds no weights of {architecture}: {reason}") from None
    return made


def _with_published(network: str) -> nn.Module:
    from torchvision import models

    weights = _published(network)
    path = _file_of(weights)
    there = path.is_file()
    other = f"name a file of them as {network}:FILE"
    try:
        made: nn.Module = models.get_model(network.partition("@")[0], weights=weights)
    except OSError as error:
        raise UserError(
            f"the weights of {network} could not be fetched ({error}); {other}"
        ) from None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        damaged = f"{path} is damaged" if there else "what was fetched is not what was published"
        again = "delete it" if there else "try again"
        raise UserError(
            f"the weights of {network} cannot be used, as {damaged} ({reason}); {again}, or {other}"
        ) from None
    return made


def require_known(label: int, probabilities: Tensor) -> None:
    """Refuse a label beyond the classes of `probabilities` [B, K]."""
    last = probabilities.shape[1] - 1
    if label > last:
        raise UserError(
            f"the classifier knows classes 0 to {last}, and the samples are of class {label}"
        )
