"""Likelihoods against what they are defined as."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics.likelihood import Likelihood, measure_likelihood
from tests.kit.models import SPIRAL, tiny_model, transformer_config
from tests.support import golden_class_model


def tiny_batch(labels: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(len(labels), 8, 8, 3, generator=generator) * 2 - 1
    return {"image": images, "class_label": torch.tensor(labels)}


@torch.no_grad()
def test_scores_are_those_of_all_images() -> None:
    model, batches = golden_class_model()
    scores = measure_likelihood(model, batches).compute()
    together = {key: torch.cat([b[key] for b in batches]) for key in batches[0]}
    logits, target = model(*model.get_xc(together))
    expected = float(F.cross_entropy(logits.flatten(0, 1), target.flatten()))
    assert scores.images == 6
    assert math.isclose(scores.nats_per_token, expected, rel_tol=1e-5)
    assert math.isclose(scores.bits_per_token, expected / math.log(2), rel_tol=1e-5)
    assert scores.uniform_nats_per_token == math.log(40)
    assert math.isclose(scores.nats_per_dimension, expected * 256 / (32 * 32 * 3), rel_tol=1e-5)
    assert math.isclose(
        scores.bits_per_dimension, scores.nats_per_dimension / math.log(2), rel_tol=1e-12
    )
    assert scores.top_1 == float((logits.argmax(-1) == target).double().mean())


def test_batches_change_nothing_but_rounding() -> None:
    model, batches = golden_class_model()
    together = [{key: torch.cat([b[key] for b in batches]) for key in batches[0]}]
    first, second = (measure_likelihood(model, data).compute() for data in (batches, together))
    assert math.isclose(first.nats_per_token, second.nats_per_token, rel_tol=1e-6)
    backwards = measure_likelihood(model, batches[::-1]).compute()
    assert backwards == first  # to the last bit: sums are of integers


@torch.no_grad()
@pytest.mark.parametrize("permuter", [None, SPIRAL])
def test_the_map_is_by_place_in_the_image(permuter: dict[str, Any] | None) -> None:
    model = tiny_model(transformer_config(permuter_config=permuter))
    batch = tiny_batch([0, 1, 2])
    found = measure_likelihood(model, [batch]).map()
    logits, target = model(*model.get_xc(batch))
    order = range(16) if permuter is None else model.permuter.forward_shuffle_idx.tolist()
    for step, place in enumerate(order):
        expected = float(F.cross_entropy(logits[:, step], target[:, step]))
        assert math.isclose(found[place // 4, place % 4], expected, rel_tol=1e-5)


def test_classes_have_their_own_rows() -> None:
    model, batch = tiny_model(), tiny_batch([4, 1, 4])
    table = measure_likelihood(model, [batch]).by_class()
    assert {label: row["images"] for label, row in table.items()} == {1: 1, 4: 2}
    for label in (1, 4):
        part = {key: value[batch["class_label"] == label] for key, value in batch.items()}
        alone = measure_likelihood(model, [part]).compute()
        assert math.isclose(table[label]["nats_per_token"], alone.nats_per_token, rel_tol=1e-6)
        assert table[label]["top_1"] == alone.top_1
    del batch["class_label"]
    free = tiny_model(transformer_config(cond_stage_config="__is_unconditional__"))
    assert measure_likelihood(free, [batch]).by_class() == {}


def test_shares_of_several_processes_add_up() -> None:
    model, batches = golden_class_model()
    whole = measure_likelihood(model, batches)
    states = [measure_likelihood(model, batches[rank::2]).state_dict() for rank in range(2)]
    merged = Likelihood(40)
    merged.merge_state(Likelihood(40).state_dict())  # of a process without a share
    for state in states:
        assert all(isinstance(array, np.ndarray) for array in state.values())
        merged.merge_state(state)
    assert merged.compute() == whole.compute()
    assert merged.by_class() == whole.by_class()
    assert (merged.map() == whole.map()).all()
    merged.merge_state(Likelihood(40).state_dict())
    assert merged.images == 6


def test_what_cannot_be_evaluated_is_said() -> None:
    model = tiny_model()
    with pytest.raises(UserError, match="no images to evaluate"):
        measure_likelihood(model, []).compute()
    small = {key: value[:1] for key, value in tiny_batch([0, 1]).items()}
    small["image"] = small["image"][:, :4]
    with pytest.raises(UserError, match="likelihoods are of images of one size"):
        measure_likelihood(model, [tiny_batch([0]), small])
    turned = small | {"image": small["image"].transpose(1, 2)}  # as many values
    with pytest.raises(UserError, match="likelihoods are of images of one size"):
        measure_likelihood(model, [turned, small])
