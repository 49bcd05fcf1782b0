"""Distances of sets against their definitions, torch-fidelity's command and scikit-learn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from taming.errors import UserError
from taming.evaluation.metrics.base import SEED, FeatureAccumulator
from taming.evaluation.metrics.density_coverage import DENSITY_COVERAGE, DensitySettings
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import Moments, PerClass, class_distances, frechet_distance
from taming.evaluation.metrics.inception_score import INCEPTION_SCORE, InceptionScores
from taming.evaluation.metrics.kid import KID, KernelSettings, kernel_distance
from taming.evaluation.metrics.precision_recall import (
    PRECISION_RECALL,
    PrecisionRecallSettings,
    precision_recall,
)
from taming.evaluation.sources.images import NO_LABEL
from tests.evaluation.features import bank_of, moments_of, scores_of, updated
from tests.kit.extractor import register_tiny
from tests.kit.images import read_images, scene_folder

COMMAND = """
from torch_fidelity.fidelity import main
from tests.kit.extractor import register_tiny
register_tiny()
main()
"""


@dataclass(frozen=True)
class Known:
    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


def features_of(seed: int, count: int, width: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(count, width, generator=generator) @ mixing + 3 + shift


def test_equal_to_torch_fidelitys_command(tmp_path: Path) -> None:
    folders = [scene_folder(tmp_path / "a", 40), scene_folder(tmp_path / "b", 32, 100, 0.95)]
    options = "--cpu --isc --fid --kid --prc --kid-subset-size 20 --isc-splits 4 --save-cpu-ram"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            COMMAND,
            *options.split(),
            "--feature-extractor",
            "tiny",
            "--input1",
            str(folders[0]),
            "--input2",
            str(folders[1]),
            "--json",
            "--no-cache",
        ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(result.stdout)
    extractor = Extractor(register_tiny())
    samples, reference = (extractor(read_images(folder)) for folder in folders)
    pair = [bank_of(found["16"]) for found in (samples, reference)]
    distance = frechet_distance(moments_of(samples["16"]), moments_of(reference["16"]))
    assert expected["frechet_inception_distance"] == pytest.approx(distance, rel=1e-6)
    mean, std = scores_of(samples["logits"], 4).compute()
    assert expected["inception_score_mean"] == pytest.approx(mean, rel=1e-6)
    assert expected["inception_score_std"] == pytest.approx(std, rel=1e-6)
    mean, std = kernel_distance(*pair, subset_size=20)
    assert expected["kernel_inception_distance_mean"] == pytest.approx(mean, rel=1e-6)
    assert expected["kernel_inception_distance_std"] == pytest.approx(std, rel=1e-6)
    names = ("precision", "recall", "f_score")
    found = precision_recall(*pair)
    assert [expected[name] for name in names] == pytest.approx(found, rel=1e-6)
    assert 0 < found[0] < 1 and 0 < found[1] < 1


def test_known_gaussians_give_the_analytic_distance() -> None:
    means = np.array([1.0, 2.0]), np.array([0.5, 4.0])
    a, b = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    # Of 2 x 2 matrices, tr (ab)^(1/2) = (tr ab + 2 det(ab)^(1/2))^(1/2).
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 0.25 + 4 + np.trace(a) + np.trace(b) - 2 * root
    known = [Known(*pair) for pair in zip(means, (a, b), strict=True)]
    assert frechet_distance(*known) == pytest.approx(expected, rel=1e-12)


def test_gaussians_without_variance_in_some_directions() -> None:
    a, b = np.diag([4.0, 1.0, 0.0, 0.0]), np.diag([1.0, 0.0, 9.0, 0.0])
    zero = np.zeros(4)
    expected = (2 - 1) ** 2 + 1 + 9
    for count in (None, 3):
        found = frechet_distance(Known(zero, a, count), Known(zero, b, count))
        assert found == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(Known(zero + 1, np.zeros((4, 4))), Known(zero, a)) == 9
    # Some of these have a Cholesky factor by luck, of rounding errors that would be 1e-8 off.
    for seed in range(60):
        rows = np.random.RandomState(seed).randn(6, 8)
        flat, round_ = Known(np.zeros(8), rows.T @ rows), Known(np.zeros(8), np.eye(8))
        expected = np.square(rows).sum() + 8 - 2 * np.linalg.svd(rows, compute_uv=False).sum()
        assert frechet_distance(flat, round_) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    ("counts", "width", "tolerance"),
    [((300, 200), 32, 1e-9), ((300, 20), 32, 1e-6), ((9, 12), 64, 1e-6)],
)
def test_frechet_distance_equals_torch_fidelitys(
    counts: tuple[int, int], width: int, tolerance: float
) -> None:
    """Its eigenvalues that should be 0 are not, which shows in few pictures of many features."""
    pair = [features_of(seed, count, width, seed) for seed, count in enumerate(counts)]
    statistics = [fid_features_to_statistics(features.double()) for features in pair]
    expected = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    moments = [moments_of(features) for features in pair]
    assert frechet_distance(*moments) == pytest.approx(expected, rel=tolerance)
    for known_counts in (counts, (None, None)):
        known = [
            Known(one.mean, one.covariance, count)
            for one, count in zip(moments, known_counts, strict=True)
        ]
        assert frechet_distance(*known) == pytest.approx(frechet_distance(*moments), rel=1e-9)


@pytest.mark.parametrize("count", [5, 60])
def test_a_set_has_no_distance_from_itself(count: int) -> None:
    features = features_of(0, count, 24) * torch.logspace(0, -6, 24)
    moments = moments_of(features)
    assert 0 <= frechet_distance(moments, moments) < 1e-12
    same = Known(moments.mean, moments.covariance, count)
    assert frechet_distance(same, moments) < 1e-9
    shifted = moments_of(features.double() + torch.eye(24)[0])
    assert frechet_distance(moments, shifted) == pytest.approx(1, rel=1e-4)
    for seed in range(30):  # rounding goes both ways
        few = moments_of(features_of(seed, 12, 3))
        assert frechet_distance(few, few) >= 0


def test_moments_are_those_of_all_features() -> None:
    features = features_of(0, 50, 12) + 1000  # a large mean costs no digits
    moments = moments_of(features[:7])
    for part in features[7:].split(9):
        updated(moments, part)
    expected = features.double().numpy()
    np.testing.assert_allclose(moments.mean, expected.mean(0), rtol=1e-13)
    np.testing.assert_allclose(
        moments.covariance, np.cov(expected, rowvar=False), rtol=1e-10, atol=1e-12
    )


def numbers(accumulator: Any, other: Any) -> list[float]:
    if isinstance(accumulator, Moments):
        return [frechet_distance(accumulator, other)]
    if isinstance(accumulator, InceptionScores):
        return list(accumulator.compute())
    if isinstance(accumulator, PerClass):
        pairs = ((accumulator.moments[label], other.moments[label]) for label in range(3))
        return [frechet_distance(*pair) for pair in pairs]
    pair = accumulator, other
    return [*kernel_distance(*pair, subsets=5, subset_size=10), *precision_recall(*pair)]


ACCUMULATORS: list[Callable[[], FeatureAccumulator]] = [
    Moments,
    lambda: InceptionScores(60, 5),
    FeatureBank,
    PerClass,
]


@pytest.mark.parametrize("create", ACCUMULATORS)
@pytest.mark.parametrize("width", [8, 100])
def test_portions_order_and_processes_do_not_matter(
    create: Callable[[], FeatureAccumulator], width: int
) -> None:
    features, labels = features_of(0, 60, width), torch.arange(60) % 3
    reference = updated(create(), features_of(1, 60, width, 0.5), labels)
    together = updated(create(), features, labels)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    parts = [create() for _ in range(3)]
    for number, indices in enumerate(order.split(7)):
        rank = number % 2  # the third process has no share
        parts[rank].update(indices, features[indices], labels[indices])
        restored = create()
        restored.merge_state(parts[rank].state_dict())
        parts[rank] = restored
    merged = parts[2]
    for part in parts[:2]:
        merged.merge_state(part.state_dict())
    assert numbers(merged, reference) == pytest.approx(numbers(together, reference), rel=1e-9)


def test_moments_merge_alike_with_and_without_a_state() -> None:
    parts = [moments_of(features_of(seed, 20, 16)) for seed in range(3)]
    merged, of_states = Moments(), Moments()
    for part in parts:
        merged.merge(part)
        of_states.merge_state(part.state_dict())
    np.testing.assert_array_equal(merged.mean, of_states.mean)
    np.testing.assert_array_equal(merged.covariance, of_states.covariance)


def test_scores_of_other_sets_are_not_merged() -> None:
    scores = scores_of(features_of(0, 30, 5))
    otherwise = updated(InceptionScores(30, seed=1), features_of(0, 30, 5))
    apart = scores_of(features_of(0, 31, 5)), scores_of(features_of(0, 30, 6)), otherwise
    for other in apart:
        with pytest.raises(ValueError, match="cannot be merged"):
            scores.merge_state(other.state_dict())


def test_memory_does_not_grow_with_the_images() -> None:
    sizes = {}
    for count in (100, 1000):
        moments, scores = Moments(), InceptionScores(count)
        for indices in torch.arange(count).split(10):
            moments.update(indices, features_of(int(indices[0]), len(indices), 16))
            scores.update(indices, features_of(int(indices[0]), len(indices), 5))
        sizes[count] = [
            sum(array.nbytes for array in one.state_dict().values()) for one in (moments, scores)
        ]
    limit = 16 * 16 * (8 + 4) + 16 * 8 + 8  # scatter, rows that wait to be folded, mean, count
    assert max(sizes[100][0], sizes[1000][0]) <= limit
    assert sizes[100][1] == sizes[1000][1]


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_equals_torch_fidelitys(splits: int) -> None:
    logits = features_of(0, 47, 9)
    expected = isc_features_to_metric(logits, splits)
    mean, std = scores_of(logits, splits).compute()
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("neighbors", [1, 3])
def test_precision_and_recall_by_brute_force(neighbors: int) -> None:
    generated, real = features_of(0, 60, 4), features_of(1, 45, 4, 0.4)

    def covered(points: Tensor, manifold: Tensor) -> float:
        search = NearestNeighbors(algorithm="brute").fit(manifold.double().numpy())
        radii = search.kneighbors(n_neighbors=neighbors)[0][:, -1]  # without the point itself
        distances = torch.cdist(points.double(), manifold.double()).numpy()
        return float((distances <= radii).any(axis=1).mean())

    expected = covered(generated, real), covered(real, generated)
    found = precision_recall(bank_of(generated), bank_of(real), neighbors, block=26)
    assert found[:2] == pytest.approx(expected, rel=1e-6)
    assert 0 < found[0] < 1 and found[0] != found[1]
    apart = precision_recall(bank_of(generated), bank_of(real + 100), neighbors)
    assert apart == (0, 0, 0)
    harmonic = 2 * expected[0] * expected[1] / (expected[0] + expected[1])
    assert found[2] == pytest.approx(harmonic, rel=1e-6)


def test_classes_have_distances_of_their_own() -> None:
    features, labels = features_of(0, 40, 6), torch.tensor([3, 7] * 20)
    per_class = updated(PerClass(), features, labels)
    assert sorted(per_class.moments) == [3, 7]
    found = frechet_distance(per_class.moments[3], per_class.moments[7])
    expected = frechet_distance(moments_of(features[::2]), moments_of(features[1::2]))
    assert found == pytest.approx(expected, rel=1e-12)


def test_distances_are_of_classes_with_two_images_in_both_sets() -> None:
    counts = {"samples": {0: 5, 1: 1, 2: 4, 3: 6}, "reference": {0: 6, 1: 5, 2: 1, 4: 5}}
    labels = {
        role: torch.tensor([n for n, times in own.items() for _ in range(times)])
        for role, own in counts.items()
    }
    features = [features_of(seed, len(own), 4) for seed, own in enumerate(labels.values())]
    both = [updated(PerClass(), *pair) for pair in zip(features, labels.values(), strict=True)]
    own = [
        moments_of(values[of == 0]) for values, of in zip(features, labels.values(), strict=True)
    ]
    assert class_distances(*both) == {0: pytest.approx(frechet_distance(*own), rel=1e-12)}
    only = updated(PerClass(), features[0][-6:], labels["samples"][-6:])
    with pytest.raises(UserError, match="no class has 2 images in both sets"):
        class_distances(only, both[1])


def test_settings_reach_the_numbers_and_are_torch_fidelitys_by_default() -> None:
    pair = features_of(0, 30, 6), features_of(1, 40, 6, 0.3)
    banks = [bank_of(features) for features in pair]
    own = KernelSettings(kid_subsets=7, kid_subset_size=12)
    found = KID.compute(*banks, own)
    theirs = kid_features_to_metric(
        *pair, kid_subsets=7, kid_subset_size=12, rng_seed=2020, verbose=False
    )
    for name in ("mean", "std"):
        assert found[name] == pytest.approx(theirs[f"kernel_inception_distance_{name}"], rel=1e-9)
    wide = PRECISION_RECALL.compute(*banks, PrecisionRecallSettings(6))
    assert tuple(wide.values()) == precision_recall(*banks, neighbors=6)
    assert tuple(wide.values()) != precision_recall(*banks)
    defaults: dict[str, int] = {"rng_seed": SEED}
    for metric in (KID, PRECISION_RECALL, INCEPTION_SCORE):
        defaults |= vars(metric.settings())
    defaults["prc_neighborhood"] = defaults.pop("prc_neighbours")
    assert defaults == {name: DEFAULTS[name] for name in defaults}
    sized = KID, PRECISION_RECALL, INCEPTION_SCORE, DENSITY_COVERAGE
    least = [metric.smallest_set for metric in sized]
    settings = own, PrecisionRecallSettings(6), INCEPTION_SCORE.settings(4), DensitySettings(8)
    assert [of(one) for of, one in zip(least, settings, strict=True) if of] == [12, 7, 4, 9]


def test_what_was_counted_does_not_change_with_the_tensor() -> None:
    features = features_of(0, 6, 8)
    bank, moments = bank_of(features), moments_of(features)
    before = bank.compute().copy(), moments.mean
    features.zero_()
    for kept, now in zip(before, (bank.compute(), moments.mean), strict=True):
        np.testing.assert_array_equal(now, kept)


def test_images_without_a_class_are_passed_over() -> None:
    labels = torch.tensor([NO_LABEL, 5, NO_LABEL])
    per_class = updated(PerClass(), features_of(0, 3, 4), labels)
    assert list(per_class.moments) == [5] and per_class.moments[5].count == 1
    assert updated(PerClass(), features_of(0, 3, 4)).moments == {}


def test_an_image_counts_once() -> None:
    bank = bank_of(features_of(0, 4, 3))
    bank.merge_state(bank_of(features_of(0, 2, 3)).state_dict())
    with pytest.raises(ValueError, match="twice"):
        bank.compute()


few, many = features_of(0, 3, 4), features_of(1, 30, 4)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (
            lambda: frechet_distance(moments_of(few[:1]), moments_of(many)),
            "needs at least 2 images .* there is 1;",
        ),
        (lambda: frechet_distance(Moments(), moments_of(many)), "there is 0;"),
        (
            lambda: frechet_distance(moments_of(few), moments_of(many[:, :2])),
            "of 4 and 2 numbers",
        ),
        (
            lambda: kernel_distance(bank_of(many), bank_of(few)),
            "subsets of 1000 images .* have 30 and 3; give --kid_subset_size 2 to 3, or more",
        ),
        (lambda: kernel_distance(bank_of(few[:1]), bank_of(many)), "; give more images"),
        (lambda: kernel_distance(bank_of(few), bank_of(many), subset_size=1), "2 to 3"),
        (
            lambda: kernel_distance(bank_of(few), bank_of(many[:, :2]), subset_size=2),
            "of 4 and 2 numbers",
        ),
        (
            lambda: precision_recall(bank_of(many), bank_of(few)),
            "3 neighbors .* are 30 and 3; .* --prc_neighbours",
        ),
        (lambda: InceptionScores(7), "10 splits .* are 7; give --isc_splits 7"),
        (lambda: InceptionScores(30).compute(), "for 30 images and 0 came"),
    ],
)
def test_too_few_images_are_a_sentence(compute: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compute()
