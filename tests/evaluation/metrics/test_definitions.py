"""Metrics of other evaluators against their definitions, written down in NumPy, and clean-fid."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cleanfid import fid as clean_fid
from scipy import linalg
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics.cmmd import embedding_discrepancy
from taming.evaluation.metrics.density_coverage import density_coverage
from taming.evaluation.metrics.fid import frechet_distance
from taming.evaluation.metrics.inception_score import ADM_INCEPTION_SCORE, ConsecutiveScores
from taming.evaluation.metrics.kid import kernel_distance
from taming.evaluation.metrics.precision_recall import precision_recall
from tests.evaluation.features import bank_of, moments_of, updated
from tests.evaluation.metrics.test_fid import features_of

SQUARE_ROOT = linalg.sqrtm
A, B = features_of(0, 70, 12), features_of(0, 90, 12, shift=0.6)[5:] * 1.1


def distances(a: Tensor, b: Tensor) -> np.ndarray:
    """Of all pairs, [A, B], in float64."""
    x, y = a.double().numpy(), b.double().numpy()
    return np.sqrt(((x[:, None] - y[None]) ** 2).sum(axis=2))


def radii(manifold: Tensor, neighbors: int) -> np.ndarray:
    """Of every row, the distance to its `neighbors`-th nearest other row."""
    own = np.sort(distances(manifold, manifold), axis=1)
    return own[:, neighbors]  # the row itself is the first


@pytest.mark.parametrize("neighbors", [1, 3, 10])
@pytest.mark.parametrize("block", [7, 1000])
def test_precision_and_recall(neighbors: int, block: int) -> None:
    """The ADM suite's: with "<=" to the ball's border."""
    found = precision_recall(bank_of(A), bank_of(B), neighbors, block)
    precision = (distances(A, B) <= radii(B, neighbors)).any(axis=1).mean()
    recall = (distances(B, A) <= radii(A, neighbors)).any(axis=1).mean()
    assert found[:2] == pytest.approx((precision, recall), rel=1e-6)
    assert 0 < precision < 1 and 0 < recall < 1


@pytest.mark.parametrize("neighbors", [2, 5])
@pytest.mark.parametrize("block", [7, 1000])
def test_density_and_coverage(neighbors: int, block: int) -> None:
    inside = distances(B, A) < radii(B, neighbors)[:, None]  # (real, generated)
    density, coverage = inside.sum(axis=0).mean() / neighbors, inside.any(axis=1).mean()
    found = density_coverage(bank_of(A), bank_of(B), neighbors, block)
    assert found == pytest.approx((density, coverage), rel=1e-6)
    assert 0 < coverage < 1 and density > 0
    turned = density_coverage(bank_of(B), bank_of(A), neighbors, block)
    assert turned != pytest.approx(found, rel=1e-3)  # real images and samples are no equals


def test_density_of_too_few_images() -> None:
    with pytest.raises(UserError, match="5 neighbors need more .* 5 real ones and 70 samples"):
        density_coverage(bank_of(A), bank_of(B[:5]))
    assert density_coverage(bank_of(A[:1]), bank_of(B[:6]))[1] <= 1


@pytest.mark.parametrize("block", [7, 1000])
def test_discrepancy_of_embeddings(block: int) -> None:
    x, y = (z.double().numpy() / np.linalg.norm(z.double(), axis=1, keepdims=True) for z in (A, B))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        squares = ((a[:, None] - b[None]) ** 2).sum(axis=2)
        return float(np.exp(-squares / 200).mean())

    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    found = embedding_discrepancy(bank_of(A), bank_of(B), block)
    assert found == pytest.approx(expected, rel=1e-6)
    assert embedding_discrepancy(bank_of(A), bank_of(A), block) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="at least 1 image"):
        embedding_discrepancy(bank_of(A), bank_of(A[:0]))


@pytest.mark.parametrize(("images", "part"), [(70, 20), (70, 70), (60, 20), (3, 5000)])
def test_inception_score_of_parts_in_order(images: int, part: int) -> None:
    logits = A[:images] * 2
    p = logits.double().softmax(1).numpy()
    scores = []
    for first in range(0, images, part):
        of_part = p[first : first + part]
        divergences = of_part * (np.log(of_part) - np.log(of_part.mean(axis=0)))
        scores.append(np.exp(divergences.sum(axis=1).mean()))
    found = updated(ConsecutiveScores(images, part), logits)
    assert found.compute()[0] == pytest.approx(np.mean(scores), rel=1e-6)
    shuffled = ConsecutiveScores(images, part)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    shuffled.update(order, logits[order])  # which part an image is in is by its index
    assert shuffled.compute()[0] == pytest.approx(np.mean(scores), rel=1e-6)


def test_adm_score_has_parts_of_5000() -> None:
    accumulator = ADM_INCEPTION_SCORE.accumulator(images=12_000)  # type: ignore[call-arg]
    assert accumulator._split_of.bincount().tolist() == [5000, 5000, 2000]  # type: ignore[attr-defined]


def root_of_product(a: np.ndarray, *_: object, **__: object) -> tuple[np.ndarray, float]:
    """SciPy's matrix root with the second value that clean-fid expects of older versions."""
    return SQUARE_ROOT(a).real, 0.0


def test_distances_of_clean_fid() -> None:
    with patch.object(clean_fid.linalg, "sqrtm", root_of_product):
        expected = clean_fid.fid_from_feats(A.double().numpy(), B.double().numpy())
    found = frechet_distance(moments_of(A), moments_of(B))
    assert found == pytest.approx(expected, rel=1e-6)
    size = 70  # of one subset, the whole smaller set, so that drawing it does not count
    with patch.object(np.random, "choice", lambda n, m, replace: np.arange(n)[:m]):
        theirs = clean_fid.kernel_distance(A.double().numpy(), B.double().numpy(), 1, size)
    ours = kernel_distance(bank_of(A), bank_of(B[:size]), subsets=1, subset_size=size)[0]
    assert ours == pytest.approx(theirs, rel=1e-4)  # torch-fidelity's is in float32


def test_distance_of_features_in_space() -> None:
    """sFID is the Fréchet distance; of fewer images than features, here by SciPy's root."""
    x, y = features_of(4, 9, 16), features_of(5, 11, 16)
    covariances = [np.cov(z.double().numpy(), rowvar=False) for z in (x, y)]
    difference = (x.double().mean(0) - y.double().mean(0)).numpy()
    values: Iterator[complex] = iter(np.linalg.eigvals(covariances[0] @ covariances[1]))
    root = sum(np.sqrt(max(value.real, 0.0)) for value in values if value.real > 1e-9)
    expected = difference @ difference + sum(map(np.trace, covariances)) - 2 * root
    assert frechet_distance(moments_of(x), moments_of(y)) == pytest.approx(expected, rel=1e-6)


def test_a_balls_border_is_inside_for_one_and_outside_for_the_other() -> None:
    real, generated = torch.arange(4.0)[:, None], torch.tensor([[4.0], [9.0]])
    precision = precision_recall(bank_of(generated), bank_of(real), neighbors=1)[0]
    assert precision == 0.5  # 4 is at the border of the ball around 3, whose radius is 1
    assert density_coverage(bank_of(generated), bank_of(real), neighbors=1) == (0, 0)
    near = torch.tensor([[3.5], [9.0]])
    assert density_coverage(bank_of(near), bank_of(real), neighbors=1) == (0.5, 0.25)
