"""The spread of the FID: that of sets that are really drawn anew, whoever counts which images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from taming.errors import UserError
from taming.evaluation.metrics.fid import Moments, frechet_distance
from taming.evaluation.metrics.fid_spread import (
    FID_SPREAD,
    ResampledMoments,
    ResampleSettings,
    spread_of_pairs,
    times_in_sets,
)
from taming.sampling.settings import uniforms


def features(count: int, seed: int, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) + 0.3 * (seed > 0)


def resampled(rows: torch.Tensor, sets: int = 40, batch: int = 7) -> ResampledMoments:
    counted = ResampledMoments(sets)
    for indices in torch.arange(len(rows)).split(batch):
        counted.update(indices, rows[indices])
    return counted


def test_times_are_poisson_and_the_images_own() -> None:
    times = times_in_sets(torch.arange(3000), 5)
    assert times.shape == (3000, 5)
    shares = np.bincount(times.ravel(), minlength=8)[:5] / times.size
    np.testing.assert_allclose(shares, np.exp(-1) / np.array([1, 1, 2, 6, 24]), atol=0.01)
    assert abs(np.corrcoef(times.T)[0, 1]) < 0.06
    np.testing.assert_array_equal(times_in_sets(torch.tensor([7, 3]), 5), times[[7, 3]])


def test_times_follow_from_the_seed_and_the_index() -> None:
    limits = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(12)])
    for seed in (2020, 7):
        draws = uniforms(seed, [5, 0], 4).numpy()
        expected = [[int((limits <= draw).sum()) for draw in row] for row in draws]
        given = () if seed == 2020 else (seed,)  # torch-fidelity's seed is the default
        assert times_in_sets(torch.tensor([5, 0]), 4, *given).tolist() == expected


def test_resampled_sets_have_their_images_so_many_times() -> None:
    rows, real = features(60, 1), features(80, 0)
    counted, reference = resampled(rows, 3), resampled(real, 3)
    times = torch.from_numpy(times_in_sets(torch.arange(60), 3))
    distances = []
    for n in range(3):
        drawn, whole = Moments(), Moments()
        drawn.update(torch.arange(60), rows.repeat_interleave(times[:, n], dim=0))
        whole.update(torch.arange(80), real)
        distances.append(frechet_distance(drawn, whole))
    settings = ResampleSettings(3)
    found = FID_SPREAD.compute(counted, reference, settings)
    assert found["std"] == pytest.approx(np.std(distances, ddof=1), rel=1e-9)
    assert found["mean_of_resampled"] == pytest.approx(np.mean(distances), rel=1e-9)
    # A file's statistics, or plain moments, are as good a reference.
    assert FID_SPREAD.compute(counted, reference.whole, settings) == pytest.approx(found, rel=1e-9)


def test_pairs_are_drawn_together() -> None:
    copies, originals = features(60, 1), features(60, 0)
    times = torch.from_numpy(times_in_sets(torch.arange(60), 5))
    distances = []
    for n in range(5):
        pair = Moments(), Moments()
        for moments, rows in zip(pair, (copies, originals), strict=True):
            moments.update(torch.arange(60), rows.repeat_interleave(times[:, n], dim=0))
        distances.append(frechet_distance(*pair))
    found = spread_of_pairs(resampled(copies, 5), resampled(originals, 5))
    assert found["std"] == pytest.approx(np.std(distances, ddof=1), rel=1e-9)
    assert found["mean_of_resampled"] == pytest.approx(np.mean(distances), rel=1e-9)
    same = spread_of_pairs(resampled(copies, 5), resampled(copies, 5))
    assert same["std"] == pytest.approx(0, abs=1e-9)


def test_parts_of_several_processes_are_one() -> None:
    rows, reference = features(50, 2), resampled(features(70, 0), 4)
    whole, joined = resampled(rows, 4), ResampledMoments(4)
    for rank in range(2):
        part = ResampledMoments(4)
        part.update(torch.arange(rank, 50, 2), rows[rank::2])
        joined.merge_state(part.state_dict())
    settings = ResampleSettings(4)
    expected = FID_SPREAD.compute(whole, reference, settings)
    assert FID_SPREAD.compute(joined, reference, settings) == pytest.approx(expected, rel=1e-9)


def test_of_one_resampled_set_there_is_no_spread() -> None:
    counted = resampled(features(30, 1), 1)
    assert np.isnan(FID_SPREAD.compute(counted, counted, ResampleSettings(2))["std"])


def test_sets_of_fewer_than_two_images_are_left_out() -> None:
    counted = resampled(features(2, 1))
    assert {0, 1, 2} <= {moments.count for moments in counted.resampled}
    for found in (
        FID_SPREAD.compute(counted, resampled(features(9, 0)), ResampleSettings(40)),
        spread_of_pairs(counted, counted),
    ):
        assert np.isfinite(found["std"])


def test_the_spread_is_that_of_other_samples() -> None:
    """Of 200 sets drawn from the distribution itself, within what 40 resampled sets can tell."""
    reference = resampled(features(4000, 0), 1)
    drawn = []
    for seed in range(1, 201):
        samples = Moments()
        samples.update(torch.arange(300), features(300, seed))
        drawn.append(frechet_distance(samples, reference.whole))
    spreads = [
        FID_SPREAD.compute(resampled(features(300, seed)), reference, ResampleSettings(40))["std"]
        for seed in (1, 2, 3)
    ]
    assert np.mean(spreads) == pytest.approx(np.std(drawn), rel=0.25)


def test_a_spread_needs_two_sets() -> None:
    with pytest.raises(UserError, match="--fid_resamples must be at least 2, not 1"):
        ResampleSettings(1)
