"""Scores of a first stage against what they are defined as."""

from __future__ import annotations

import math

import pytest
import torch

from taming.errors import UserError
from taming.evaluation.tasks.reconstruction import score_first_stage
from tests.support import golden_class_model


@torch.no_grad()
def test_first_stage_scores_are_those_of_all_images() -> None:
    model, batches = golden_class_model()
    stage = model.first_stage_model
    parts = [batch["image"].permute(0, 3, 1, 2) for batch in batches]
    scores, x = score_first_stage(stage, parts), torch.cat(parts)
    reconstructions = stage(x)[0]
    indices = stage.encode_to_indices(x)
    # Of the 8-bit images, as they would be saved.
    first, second = (((y + 1) * 127.5).round().clamp(0, 255) for y in (x, reconstructions))
    difference = (first - second).double() / 127.5
    assert scores["images"] == 6
    assert math.isclose(scores["l1"], float(difference.abs().mean()), rel_tol=1e-5)
    psnr = 10 * torch.log10(4 / difference.square().flatten(1).mean(dim=1))
    assert math.isclose(scores["psnr"], float(psnr.mean()), rel_tol=1e-5)
    assert scores["codebook_usage"] == len(indices.unique()) / 40
    share = torch.bincount(indices.flatten(), minlength=40) / indices.numel()
    entropy = -sum(float(p * p.log()) for p in share if p > 0)
    assert math.isclose(scores["codebook_perplexity"], math.exp(entropy), rel_tol=1e-5)


def test_nothing_to_evaluate_is_said() -> None:
    model, _ = golden_class_model()
    with pytest.raises(UserError, match="no images to evaluate"):
        score_first_stage(model.first_stage_model, [])
