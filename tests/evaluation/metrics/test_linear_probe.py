"""Logistic regression against what its minimum has to fulfil, and folds without leaks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics.linear_probe import (
    ProbeSettings,
    choose_decay,
    fit_logistic,
    parse_decays,
    probe,
    stratified_folds,
)


def noisy_classes(images: int, dimensions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of three classes that overlap, on scales from 1 to 1000."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    centers = torch.randn(3, dimensions, generator=generator)
    noise = torch.randn(images, dimensions, generator=generator)
    scales = torch.logspace(0, 3, dimensions)
    return (centers[labels] + noise) * scales + 5, labels


@pytest.mark.parametrize(("images", "dimensions"), [(60, 4), (30, 45)])
def test_the_gradient_vanishes_at_the_minimum(images: int, dimensions: int) -> None:
    """The objective is strictly convex in the weights: no other point has that."""
    features, labels = noisy_classes(images, dimensions)
    decay = 0.05
    classifier = fit_logistic(features, labels, 3, decay)
    x = features.double()
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    weight = classifier.weight.clone().requires_grad_()
    bias = classifier.bias.clone().requires_grad_()
    loss = F.cross_entropy(standard @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, [weight, bias]):
        assert gradient.abs().max() < 1e-7
    torch.testing.assert_close(classifier.logits(features), standard @ weight.T + bias)
    assert weight.abs().max() > 0.05


def test_a_heavy_decay_leaves_the_first_step_of_the_gradient() -> None:
    """W = mean of (one-hot class - its share) x^T / decay, to the first order in 1 / decay."""
    features, labels = noisy_classes(60, 4)
    decay = 1e5
    classifier = fit_logistic(features, labels, 3, decay)
    x = features.double()
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    residual = F.one_hot(labels).double() - 1 / 3
    expected = residual.T @ standard / len(x)
    torch.testing.assert_close(classifier.weight * decay, expected, rtol=1e-3, atol=1e-4)


def test_separable_classes_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4 + 10  # any integers
    features = torch.zeros(40, 6)
    features[torch.arange(40), labels - 10] = 1.0
    features += 0.05 * torch.randn(40, 6, generator=generator)
    scores = probe(features, labels, ProbeSettings(folds=4, repeats=2, decays=(0.01, 1.0)))
    assert (scores.accuracy, scores.std, scores.chance) == (1.0, 0.0, 0.25)
    assert len(scores.folds) == len(scores.decays) == 8
    assert (scores.classes, scores.images, scores.dimensions) == (4, 40, 6)


def test_labels_without_a_meaning_are_at_chance() -> None:
    """Also with more features than images, by which any leak of held-out images would show."""
    features, _ = noisy_classes(90, 120)
    generator = torch.Generator().manual_seed(1)
    permuted = (torch.arange(90) % 3)[torch.randperm(90, generator=generator)]
    scores = probe(features, permuted, ProbeSettings(decays=(0.01, 1.0)))
    # 90 guesses of one in three: a deviation of 0.05.
    assert abs(scores.accuracy - 1 / 3) < 3 * math.sqrt(2 / 9 / 90)


def test_chance_is_the_share_of_the_commonest_class() -> None:
    labels = torch.tensor([4] * 12 + [7] * 5 + [9] * 3)
    features = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    assert probe(features, labels, ProbeSettings(folds=3, decays=(1.0,))).chance == 12 / 20


def test_mean_and_deviation_are_those_of_the_folds() -> None:
    features, labels = noisy_classes(60, 2)
    scores = probe(features, labels, ProbeSettings(folds=3, decays=(0.1,)))
    assert len(scores.folds) == 3 and scores.decays == [0.1] * 3
    mean = sum(scores.folds) / 3
    assert scores.accuracy == pytest.approx(mean)
    deviation = math.sqrt(sum((fold - mean) ** 2 for fold in scores.folds) / 2)
    assert scores.std == pytest.approx(deviation) and deviation > 0
    assert 1 / 3 < scores.accuracy < 1


def test_folds_and_decays_are_those_by_hand() -> None:
    """No image of a fold has a part in its decay, which a third of the others decides."""
    features, labels = noisy_classes(36, 3, seed=1)
    settings = ProbeSettings(folds=3, repeats=2, seed=4, decays=(0.03, 0.3, 3.0))
    accuracies, chosen = [], []
    for seed in (4, 5):
        folds = stratified_folds(labels, 3, seed)
        for fold in range(3):
            x, y = features[folds != fold], labels[folds != fold]
            inner = stratified_folds(y, 3, seed)
            losses = {}
            for decay in settings.decays:
                fitted = fit_logistic(x[inner != 0], y[inner != 0], 3, decay)
                losses[decay] = F.cross_entropy(fitted.logits(x[inner == 0]), y[inner == 0]).item()
            chosen.append(min(losses, key=lambda decay: losses[decay]))
            guessed = fit_logistic(x, y, 3, chosen[-1]).logits(features[folds == fold]).argmax(1)
            accuracies.append((guessed == labels[folds == fold]).double().mean().item())
    found = probe(features, labels, settings)
    assert found.decays == chosen and len(set(chosen)) == 3
    assert found.folds == pytest.approx(accuracies)


def test_constant_features_change_nothing() -> None:
    features, labels = noisy_classes(60, 4)
    settings = ProbeSettings(decays=(0.1,))
    constant = torch.cat([features, torch.full((60, 1), 7.0)], dim=1)
    assert probe(constant, labels, settings).folds == probe(features, labels, settings).folds


def test_folds_are_even_in_every_class() -> None:
    labels = torch.tensor([0] * 11 + [1] * 7 + [2] * 5)
    folds = stratified_folds(labels, 5, seed=3)
    sizes = [int((folds == fold).sum()) for fold in range(5)]
    assert sorted(sizes) == [4, 4, 5, 5, 5]
    for label, count in ((0, 11), (1, 7), (2, 5)):
        of_class = torch.bincount(folds[labels == label], minlength=5)
        assert of_class.min() == count // 5 and of_class.max() == -(-count // 5)
    assert torch.equal(folds, stratified_folds(labels, 5, seed=3))
    assert not torch.equal(folds, stratified_folds(labels, 5, seed=4))


def test_the_decay_is_the_one_that_predicts_held_out_images() -> None:
    """Of pure noise the strongest penalty is the best, of clear classes a weak one."""
    noise, labels = torch.randn(60, 30, generator=torch.Generator().manual_seed(0)), None
    labels = torch.arange(60) % 3
    assert choose_decay(noise, labels, (1e-4, 1e2), seed=0) == 1e2
    clear = F.one_hot(labels).float() + 0.01 * noise[:, :3]
    assert choose_decay(clear, labels, (1e-4, 1e2), seed=0) == 1e-4


@pytest.mark.parametrize(
    ("labels", "message"),
    [([4] * 9, "all images are of one"), ([0] * 6 + [1] * 4, "the smallest has 4")],
)
def test_what_cannot_be_probed(labels: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe(torch.zeros(len(labels), 2), torch.tensor(labels), ProbeSettings())


def test_settings() -> None:
    assert parse_decays("1, 0.01,1") == (0.01, 1.0)
    for text in ("", "a", "0", "-1", "inf", "nan"):
        with pytest.raises(UserError, match="decays are numbers above 0"):
            parse_decays(text)
    for wrong in ({"folds": 2}, {"repeats": 0}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))} must be at least"):
            ProbeSettings(**wrong)
