"""What a linear classifier reads from features: logistic regression, cross-validated.

Everything is in float64, and decided by the features, the classes and the settings alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.command_line import flag
from taming.errors import UserError

FEWEST_FOLDS = 3  # with two, the half that a probe is fitted to is halved again to choose its decay
INNER_FOLDS = 3  # the decay is chosen by the third of the fitted part that is held out for it
MOST_STEPS = 1000  # of L-BFGS, which stops ...
GRADIENT = 1e-8  # ... where no entry of the gradient is larger ...
CHANGE = 1e-13  # ... or a step changes neither weights nor loss by more, as float64 allows


def parse_decays(text: str) -> tuple[float, ...]:
    """Numbers above 0 of a comma list; UserError for anything else."""
    try:
        decays = tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        decays = ()
    if not decays or not all(0 < decay < math.inf for decay in decays):
        raise UserError(f"decays are numbers above 0 such as 0.001,0.1, not '{text}'")
    return decays


@dataclass(frozen=True)
class ProbeSettings:
    """What decides a probe beside features and classes; numbers out of range are refused."""

    folds: int = flag(5, "parts of the images, each of which is predicted from all others")
    repeats: int = flag(1, "how often they are divided into folds anew")
    seed: int = flag(0, "of the first division; every further one has the next number")
    decays: tuple[float, ...] = flag(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        "weights of half the squared norm, of which every fold chooses one within the images that "
        "it is fitted to",
        parse=parse_decays,
    )

    def __post_init__(self) -> None:
        if self.folds < FEWEST_FOLDS:
            raise UserError(f"--folds must be at least {FEWEST_FOLDS}, not {self.folds}")
        if self.repeats < 1:
            raise UserError(f"--repeats must be at least 1, not {self.repeats}")

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **asdict(self),
            "decays": list(self.decays),
            "classifier": "multinomial logistic regression, mean cross-entropy + decay / 2 * "
            "squared norm of the weights, bias free; features standardized by the fitted images",
        }


@dataclass(frozen=True)
class ProbeScores:
    """Shares of the held-out images whose class was the likeliest."""

    accuracy: float  # mean over folds and repeats
    std: float  # over these, of a sample of them
    chance: float  # the share of the commonest class: what is reached without looking
    classes: int
    images: int
    dimensions: int  # of the features
    folds: list[float]  # the accuracy of each, repeat by repeat
    decays: list[float]  # that each chose


@dataclass(frozen=True)
class LinearClassifier:
    """Standardizes features and maps them to a logit per class."""

    mean: Tensor  # float64 [D]
    scale: Tensor  # float64 [D]
    weight: Tensor  # float64 [C, D], for standardized features
    bias: Tensor  # float64 [C]

    def logits(self, features: Tensor) -> Tensor:
        """[N, C] of features [N, D]."""
        standard = (features.double() - self.mean) / self.scale
        return standard @ self.weight.T + self.bias


def fit_logistic(features: Tensor, labels: Tensor, classes: int, decay: float) -> LinearClassifier:
    """The minimum of the mean cross-entropy + decay / 2 * |weight|^2 of standardized features.

    Args:
        features: [N, D]; one that is constant is left out by its weight 0.
        labels: int64 [N], below `classes`.
    """
    (classifier,) = _fit_each(features, labels, classes, (decay,))
    return classifier


def _fit_each(
    features: Tensor, labels: Tensor, classes: int, decays: Sequence[float]
) -> list[LinearClassifier]:
    """`fit_logistic` with each of the decays."""
    mean, scale = _moments(features)
    x = (features.double() - mean) / scale
    axes = None
    if len(x) < x.shape[1]:
        # The penalty keeps every row of the weights in the span of the images, whose coordinates
        # [N, N] on orthonormal axes are as good, and fewer.
        axes = torch.linalg.svd(x, full_matrices=False).Vh  # (N, D)
        x = x @ axes.T
    found = [_minimum(x, labels.to(x.device), classes, decay) for decay in decays]
    return [
        LinearClassifier(mean, scale, weight if axes is None else weight @ axes, bias)
        for weight, bias in found
    ]


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D]; the deviation of constants is infinite, which makes them 0."""
    mean = features.double().mean(0)
    deviation = features.double().std(0, correction=0)
    constant = deviation <= 1e-12 * mean.abs().clamp_min(1)
    return mean, torch.where(constant, torch.inf, deviation)


def _minimum(x: Tensor, targets: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weights [C, R] and biases [C] for features x [N, R]."""
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device)
    bias = torch.zeros(classes, dtype=torch.float64, device=x.device)
    optimizer = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=MOST_STEPS,
        tolerance_grad=GRADIENT,
        tolerance_change=CHANGE,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, targets) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold int64 [N] of every image: each class is spread over all folds as evenly as it can
    be, and folds differ by one image at most."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]  # class by class
    result = torch.empty(len(labels), dtype=torch.int64)
    result[order] = torch.arange(len(labels)) % folds
    return result


def probe(features: Tensor, labels: Tensor, settings: ProbeSettings) -> ProbeScores:
    """Cross-validated accuracy of logistic regression.

    Args:
        features: [N, D], on the device that computes.
        labels: [N], any integers.

    Raises UserError for fewer than two classes, or one of fewer images than folds.
    """
    _, targets, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise UserError("a probe tells classes apart, and all images are of one")
    if int(counts.min()) < settings.folds:
        raise UserError(
            f"--folds {settings.folds} needs as many images of every class, and the smallest has "
            f"{int(counts.min())}; give fewer folds or more images"
        )
    results = list(_scores_of_folds(features, targets, settings))
    accuracies = torch.tensor([accuracy for accuracy, _ in results], dtype=torch.float64)
    return ProbeScores(
        accuracy=float(accuracies.mean()),
        std=float(accuracies.std()),
        chance=int(counts.max()) / len(labels),
        classes=len(counts),
        images=len(labels),
        dimensions=features.shape[1],
        folds=accuracies.tolist(),
        decays=[decay for _, decay in results],
    )


def _scores_of_folds(
    features: Tensor, targets: Tensor, settings: ProbeSettings
) -> Iterator[tuple[float, float]]:
    """The accuracy of every fold, and the decay that it chose."""
    for seed in range(settings.seed, settings.seed + settings.repeats):
        places = stratified_folds(targets, settings.folds, seed)
        for fold in range(settings.folds):
            held_out = places == fold
            decay = choose_decay(features[~held_out], targets[~held_out], settings.decays, seed)
            yield _accuracy(features, targets, held_out, decay), decay


def _accuracy(features: Tensor, targets: Tensor, held_out: Tensor, decay: float) -> float:
    classes = int(targets.max()) + 1
    classifier = fit_logistic(features[~held_out], targets[~held_out], classes, decay)
    guessed = classifier.logits(features[held_out]).argmax(1).cpu()
    return float((guessed == targets[held_out]).double().mean())


def choose_decay(features: Tensor, targets: Tensor, decays: tuple[float, ...], seed: int) -> float:
    """The one with the smallest cross-entropy on a third of these images, fitted to the others."""
    if len(decays) == 1:
        return decays[0]
    held_out = stratified_folds(targets, INNER_FOLDS, seed) == 0
    classes = int(targets.max()) + 1
    classifiers = _fit_each(features[~held_out], targets[~held_out], classes, decays)
    losses = [
        float(F.cross_entropy(one.logits(features[held_out]).cpu(), targets[held_out]))
        for one in classifiers
    ]
    return decays[losses.index(min(losses))]
