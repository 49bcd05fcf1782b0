"""Rejection against what it is defined as: every candidate sampled, scored and sorted by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import models

from taming.evaluation.metrics.accuracy import load_classifier
from taming.pictures import to_uint8, to_values
from taming.sampling import Sample, SampleSettings
from taming.sampling.plan import SamplingJob, SamplingPlan
from taming.sampling.pools import ScoreFiles
from taming.sampling.rejection import Classifier
from tests.kit.models import tiny_model

CPU = torch.device("cpu")
LABELS = (1, 2)


def brightness(images: Tensor, labels: Tensor) -> Tensor:
    """A score that depends on the label as well."""
    return images.mean((1, 2, 3)) * (1 - 2 * (labels == 2).float())


def job(share: tuple[int, int] = (0, 1), ratio: float = 0.4, count: int = 5) -> SamplingJob:
    settings = SampleSettings(top_k=10)
    plan = SamplingPlan(count, settings, reject_ratio=ratio, classifier="resnet18")
    return SamplingJob(plan, tiny_model(), LABELS, score=brightness, batch_size=4, share=share)


def best_by_hand(kept: int, of: int, count: int) -> dict[tuple[int, int], Sample]:
    """Of every `of` samples of a class, in order, the `kept` brightest, brightest first."""
    groups = -(-count // kept)
    plan = SamplingPlan(groups * of, SampleSettings(top_k=10))
    whole = SamplingJob(plan, tiny_model(), LABELS, batch_size=4)
    found: dict[tuple[int, int], Sample] = {}
    samples = list(whole.samples(lambda label: set()))
    for label in LABELS:
        own = sorted((s for s in samples if s.label == label), key=lambda s: s.number)
        for group in range(groups):
            members = own[group * of : (group + 1) * of]
            pixels = to_values(to_uint8(torch.stack([s.image for s in members])))
            scores = brightness(pixels, torch.full((of,), label))
            ranked = sorted(zip(scores.tolist(), members, strict=True), key=lambda p: -p[0])
            for place, (_, sample) in enumerate(ranked[:kept]):
                if (number := group * kept + place) < count:
                    found[label, number] = sample
    return found


def assert_by_hand(samples: Sequence[Sample], expected: dict[tuple[int, int], Sample]) -> None:
    places = [(s.label, s.number) for s in samples]
    assert sorted(places) == sorted(expected)  # each once
    for sample in samples:
        own = expected[sample.label or 0, sample.number]
        assert sample.candidate == own.number
        torch.testing.assert_close(sample.image, own.image, rtol=0, atol=0)


def sampled(processes: int, ratio: float, finished: Mapping[int, set[int]]) -> list[Sample]:
    """What all processes sample, beside what is there."""
    return [
        sample
        for rank in range(processes)
        for sample in job((rank, processes), ratio).samples(lambda n: finished.get(n or 0, set()))
    ]


@pytest.mark.parametrize(("ratio", "kept", "of"), [(0.4, 2, 5), (0.25, 1, 4)])
def test_the_best_of_each_group_whoever_samples_it(ratio: float, kept: int, of: int) -> None:
    expected = best_by_hand(kept, of, 5)
    for processes in (1, 2, 3):
        assert_by_hand(sampled(processes, ratio, {}), expected)


def test_groups_and_pools_of_their_size_are_the_same() -> None:
    """To the last digit, by a classifier whose sums depend on how many it gets at once."""

    def score(images: Tensor, labels: Tensor) -> Tensor:
        return images.flatten(1) @ torch.linspace(-1, 1, images[0].numel())

    def chosen(pool: str) -> dict[tuple[int | None, int], tuple[int | None, float | None]]:
        own = replace(job(), plan=replace(job().plan, reject_pool=pool), score=score)
        found = own.samples(lambda label: set())
        return {(s.label, s.number): (s.candidate, s.score) for s in found}

    by_group, by_pool = chosen("group"), chosen("5")
    assert by_group == by_pool and len(by_group) == 10


def test_what_is_sampled_is_said_and_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the best of an interrupted pool are made once more; not at all where nobody is
    told."""
    asked: list[int | None] = []

    def finished(label: int | None) -> set[int]:
        asked.append(label)
        return set()

    for shape, lines, counted in (((5, 4), 1, 4), (None, 0, 2)):
        asked.clear()
        own = replace(job(), plan=replace(job().plan, reject_pool="5"), shape=shape)
        files = ScoreFiles(tmp_path, str(shape))
        for pool in own.pools(finished)[::2]:
            files.save(pool, 0, dict.fromkeys(pool.candidates, 0.5))
        asked.clear()
        assert len(list(own.samples(finished, scores=files))) == 10
        assert capsys.readouterr().out.count("tokens for each of") == lines
        assert len(asked) == counted  # of each label once for its pools, and once for the line


def test_processes_have_equal_parts_of_the_work() -> None:
    requests = [len(list(job((rank, 3)).requests(lambda label: set()))) for rank in range(3)]
    assert requests == [10, 10, 10]  # of 2 classes with 3 groups of 5 each
    few = [len(list(job((r, 2), 0.25, 1).requests(lambda label: set()))) for r in range(2)]
    assert few == [4, 4]  # a class each
    assert job((0, 3)).sampled(lambda label: set()) == 10  # of 4 images, in whole groups
    assert job((0, 1), ratio=0.25).sampled(lambda label: {0, 1}) == 24  # 6 are missing


def test_what_is_missing_of_a_group_is_what_it_was() -> None:
    """Of a group that is not complete, all candidates are sampled again."""
    expected = best_by_hand(2, 5, 5)
    again = {(1, 3), (1, 4), (2, 0), (2, 2), (2, 3)}  # and those that are best beside them
    for processes in (1, 2):
        found = sampled(processes, 0.4, {1: {0, 1, 2}, 2: {1, 4}})
        places = [(s.label or 0, s.number) for s in found]
        assert again <= set(places) and len(set(places)) == len(places)
        assert_by_hand(found, {place: expected[place] for place in places})


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, torch.nn.Module]:
    torch.manual_seed(0)
    network = models.get_model("squeezenet1_1", weights=None, num_classes=4).eval()
    with torch.no_grad():  # as sure of itself as a trained one, with dropout that matters
        network.classifier[1].weight.mul_(20)
    path = tmp_path_factory.mktemp("weights") / "own.pth"
    torch.save(network.state_dict(), path)
    return f"squeezenet1_1:{path}", network


def prepared_by_hand(pixels: Tensor) -> Tensor:
    """What networks of ImageNet take, of uint8 [B, 3, H, W]: the middle 224 x 224 of images whose
    shorter side is 256, each color less its mean and over its deviation."""
    height, width = pixels.shape[2:]
    scale = 256 / min(height, width)
    size = (int(height * scale), int(width * scale))
    resized = F.interpolate(pixels / 255, size, mode="bilinear", antialias=True)
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    middle = resized[:, :, top : top + 224, left : left + 224]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (middle - mean) / deviation


@pytest.mark.parametrize("size", [(64, 96), (320, 300)])
def test_a_classifier_sees_images_as_it_was_trained_on_them(
    classifier_file: tuple[str, torch.nn.Module], size: tuple[int, int]
) -> None:
    name, network = classifier_file
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        logits = network(prepared_by_hand(pixels))
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    assert expected.std() > 0.05
    classifier = Classifier(name, CPU)
    for found in (
        classifier.probabilities(to_values(pixels)),
        load_classifier(name, CPU).probabilities(pixels),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    labels = torch.tensor([3, 1])
    of_labels = torch.stack([expected[0, 3], expected[1, 1]])
    scores = classifier(to_values(pixels), labels)
    torch.testing.assert_close(scores, of_labels, rtol=1e-4, atol=1e-5)
    assert Path(name.partition(":")[2]).is_file() and not classifier.network.training
