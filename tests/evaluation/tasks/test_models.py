"""Scores of a first stage against what they are defined as."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from taming.errors import UserError
from taming.evaluation.metrics.accuracy import neighbor_accuracy
from taming.evaluation.tasks.first_stage import score_first_stage
from tests.support import golden_class_model


@torch.no_grad()
def test_first_stage_scores_are_those_of_all_images() -> None:
    model, batches = golden_class_model()
    stage = model.first_stage_model
    scores = score_first_stage(stage, batches)
    x = torch.cat([batch["image"] for batch in batches]).permute(0, 3, 1, 2)
    reconstructions = stage(x)[0]
    indices = stage.encode_to_indices(x)
    # Of the 8-bit images, as they would be saved.
    first, second = (((y + 1) * 127.5).round().clamp(0, 255) for y in (x, reconstructions))
    difference = (first - second).double() / 127.5
    assert scores.images == 6
    assert math.isclose(scores.l1, float(difference.abs().mean()), rel_tol=1e-5)
    psnr = 10 * torch.log10(4 / difference.square().flatten(1).mean(dim=1))
    assert math.isclose(scores.psnr, float(psnr.mean()), rel_tol=1e-5)
    assert scores.codebook_usage == len(indices.unique()) / 40
    share = torch.bincount(indices.flatten(), minlength=40) / indices.numel()
    entropy = -sum(float(p * p.log()) for p in share if p > 0)
    assert math.isclose(scores.codebook_perplexity, math.exp(entropy), rel_tol=1e-5)


def test_nothing_to_evaluate_is_said() -> None:
    model, _ = golden_class_model()
    with pytest.raises(UserError, match="no images to evaluate"):
        score_first_stage(model.first_stage_model, [])


def test_neighbours_name_what_lies_near() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    images = (labels[:, None, None, None] * 200 + rng.integers(0, 40, (20, 4, 4, 3))).astype("u1")
    near = images[[0, 19]], np.array([0, 1])
    assert neighbor_accuracy((images, labels), near) == 1.0
    assert neighbor_accuracy((images, labels), (near[0], np.array([1, 1]))) == 0.5
    with pytest.raises(UserError, match="images of one size"):
        neighbor_accuracy((images, labels), (near[0][:, :2], near[1]))
