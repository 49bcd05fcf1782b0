from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

from taming.errors import UserError
from taming.sampling import Request, Sample
from taming.sampling.rejection import (
    SCORED,
    Classifier,
    Group,
    best_of,
    candidates,
    group_of,
    scored,
)

CPU = torch.device("cpu")


def test_groups() -> None:
    assert group_of(1.0) == (1, 1)
    assert group_of(0.05) == (1, 20)
    assert group_of(0.005) == (1, 200)
    assert group_of(0.4) == (2, 5) and group_of(0.001) == (1, 1000)
    for wrong in (0.0, 1.5, -1.0):
        with pytest.raises(UserError, match="--reject_ratio"):
            group_of(wrong)


def test_larger_pools() -> None:
    assert group_of(0.05, "class", 50) == (50, 1000)
    assert group_of(0.005, "class", 50) == (50, 10_000)
    assert group_of(0.4, "class", 3) == (3, 8)  # 7.5, and none fewer
    assert group_of(0.05, "1000") == (50, 1000) and group_of(0.4, "10") == (4, 10)
    for pool, message in (
        ("199", "smaller than 1 / --reject_ratio, so that none is kept; give at least 200"),
        ("300", "no whole number of images; give a multiple of 200"),
        ("-1", "is group, class or a number of candidates, not '-1'"),
        ("classes", "not 'classes'"),
    ):
        with pytest.raises(UserError, match=message):
            group_of(0.005, pool)


def test_candidates_of_what_is_missing() -> None:
    wanted = [Request(n, (7,), 7) for n in (0, 2, 3)]
    wider = [(r.label, r.number, r.condition) for r in candidates(wanted, Group(2, 5))]
    assert wider == [(7, n, (7,)) for n in range(10)]
    assert [r.number for r in candidates(wanted[1:], Group(2, 5))] == [5, 6, 7, 8, 9]
    classes = [Request(0, (label,), label) for label in (7, 8)]
    assert [r.label for r in candidates(classes, Group(2, 5))] == [7] * 5 + [8] * 5


def test_the_best_of_every_group_pass() -> None:
    def samples() -> list[Sample]:
        brightness = [0.1, 0.9, 0.3, 0.8, 0.0, 0.5, 0.5, 0.7, 0.2, 0.6]
        empty = torch.zeros(1, dtype=torch.long)
        return [Sample(n, 3, empty, torch.full((3, 2, 2), b)) for n, b in enumerate(brightness)]

    def score(images: Tensor, labels: Tensor) -> Tensor:
        assert (labels == 3).all()
        return images.mean((1, 2, 3))

    chosen = list(best_of(samples(), score, Group(2, 5)))
    assert [(s.number, s.candidate) for s in chosen] == [(0, 1), (1, 3), (2, 7), (3, 9)]
    assert chosen[0].score == pytest.approx(242 / 127.5 - 1)  # 0.9 in 8 bits
    assert len(list(best_of(samples(), score, Group(1, 1)))) == 10
    many = [replace(s, number=n, image=s.image.round()) for n, s in enumerate(samples() * 20)]
    assert [s.candidate for s in best_of(many, score, Group(1, 100))] == [
        1,
        101,
    ]  # the first of equals


def test_scores_are_of_pixels_and_of_batches_of_one_size() -> None:
    seen: list[Tensor] = []

    def score(images: Tensor, labels: Tensor) -> Tensor:
        assert len(images) == len(labels) == SCORED
        seen.append(images)
        return torch.where(labels == 5, torch.nan, images[:, 0, 0, 0])

    samples = [
        Sample(n, 5 if n == 3 else 4, torch.zeros(1), torch.full((3, 2, 2), n / 100))
        for n in range(SCORED + 3)
    ]
    found = list(scored(samples, score))
    assert [sample.number for sample, _ in found] == list(range(SCORED + 3))
    pixels = [round((n / 100 + 1) * 127.5) / 127.5 - 1 for n in range(SCORED + 3)]
    pixels[3] = -math.inf  # what is no number is the worst
    assert [value for _, value in found] == pytest.approx(pixels, abs=1e-6)
    assert len(seen) == 2 and (seen[1][2:] == seen[1][2]).all()
    # The same, with pools of candidates and without, in whatever group.
    by_five = {s.candidate: s.score for s in best_of(samples, score, Group(5, 5))}
    by_two = {s.candidate: s.score for s in best_of(samples, score, Group(2, 2))}
    assert by_five == by_two == {sample.number: value for sample, value in found}


def test_classless_samples() -> None:
    sample = Sample(0, None, torch.zeros(1), torch.zeros(3, 2, 2))
    with pytest.raises(UserError, match="this model has none"):
        list(best_of([sample], lambda images, labels: labels, Group(1, 2)))


def test_a_classifier_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.get_model("squeezenet1_1", weights=None, num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    classifier = Classifier(f"squeezenet1_1:{tmp_path / 'own.pth'}", CPU)
    grey = torch.rand(2, 1, 16, 16) * 2 - 1
    each = torch.stack([classifier(grey, torch.full((2,), label)) for label in range(4)])
    torch.testing.assert_close(each.sum(0), torch.ones(2))
    assert classifier.transform.antialias is True
    with torch.inference_mode():
        seen = classifier.transform(((grey + 1) / 2).expand(-1, 3, -1, -1))  # pixels in [0, 1]
        torch.testing.assert_close(each.T, network(seen).softmax(1), rtol=0, atol=0)
        sharp = torch.where(grey < 0, -1.0, 1.0)
        assert classifier.probabilities(5 * sharp).equal(classifier.probabilities(sharp))
    network = models.get_model("resnet18", weights=None, num_classes=3)
    save_file(network.state_dict(), tmp_path / "own.safetensors")  # its last tensor is no class's
    other = Classifier(f"resnet18:{tmp_path / 'own.safetensors'}", CPU)
    assert other.probabilities(grey[:1]).shape == (1, 3)
    with pytest.raises(UserError, match="classes 0 to 3, and the samples are of class 4"):
        classifier(grey, torch.tensor([0, 4]))
    with pytest.raises(UserError, match="no weights of resnet18"):
        Classifier(f"resnet18:{tmp_path / 'own.pth'}", CPU)


def test_images_are_resized_as_the_named_weights_want(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "_load", lambda *_: torch.nn.Identity())
    names = ("resnet101", "resnet101@IMAGENET1K_V1", "resnet101@IMAGENET1K_V1:own.pth")
    assert [Classifier(name, CPU).transform.resize_size for name in names] == [[232], [256], [256]]


def test_unknown_classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no classifier 'resnet1'; did you mean 'resnet18'"):
        Classifier("resnet1", CPU)
    with pytest.raises(UserError, match="no classifier 'x'; try resnet101"):
        Classifier("x", CPU)
    fetched = []

    def get_model(name: str, **options: object) -> None:
        fetched.append((name, options))
        raise OSError("no network")

    monkeypatch.setattr(models, "get_model", get_model)
    sentence = (
        r"resnet101 could not be fetched \(no network\); name a file of them as resnet101:FILE"
    )
    with pytest.raises(UserError, match=sentence):
        Classifier("resnet101", CPU)
    assert fetched == [("resnet101", {"weights": models.ResNet101_Weights.DEFAULT})]
    with pytest.raises(UserError, match="name a file of them as resnet101@IMAGENET1K_V1:FILE"):
        Classifier("resnet101@IMAGENET1K_V1", CPU)
    assert fetched[1] == ("resnet101", {"weights": models.ResNet101_Weights.IMAGENET1K_V1})
    with pytest.raises(UserError, match="no weights 'V3'; there are IMAGENET1K_V1, IMAGENET1K_V2"):
        Classifier("resnet101@V3", CPU)
    with pytest.raises(UserError, match="there is no checkpoint"):
        Classifier(f"resnet18:{tmp_path}/nothing.pth", CPU)


def test_published_weights_that_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either what arrives has another hash than was published, or the file of an earlier time."""

    def get_model(name: str, **options: object) -> None:
        raise RuntimeError('invalid hash value (expected "f37072fd", got "0")')

    with monkeypatch.context() as patch:
        patch.setattr(models, "get_model", get_model)
        patch.setenv("TORCH_HOME", str(tmp_path))
        fetched = (
            "the weights of resnet18 cannot be used, as what was fetched is not what was publi"
        )
        with pytest.raises(
            UserError, match=rf"{fetched}shed \(invalid hash .*\); try again, or name"
        ):
            Classifier("resnet18", CPU)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = Classifier.missing_file("resnet18")
    assert file is not None
    file.parent.mkdir(parents=True)
    for content in (b"", b"PK cut off", b"<html>"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"as {file} is damaged \(.+\); delete it, or name"):
            Classifier("resnet18", CPU)
