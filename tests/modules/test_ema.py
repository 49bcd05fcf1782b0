"""Moving averages of weights."""

import torch
from torch import nn

from taming.modules.ema import LitEma
from tests.support import assert_close, defaults


def test_averages_follow_what_is_trained():
    """By 2/11 at first; those of frozen weights are not kept."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).requires_grad_(False))
    averages = LitEma(model)
    assert defaults(LitEma) == {"decay": 0.9999} and averages.decay == torch.tensor(0.9999)
    assert averages.state_dict().keys() == {"decay", "num_updates", "0weight", "0bias"}
    weight = model[0].weight
    for _ in range(2):
        before = weight.detach().clone()
        weight.data += 1
        averages(model)
        assert_close(averages.get_buffer("0weight"), 2 / 11 * before + 9 / 11 * weight)
        averages.restart(model)
        assert torch.equal(averages.get_buffer("0weight"), weight)


def test_averages_take_the_place_of_weights_for_a_while():
    model = nn.Linear(2, 3)
    averages, kept = LitEma(model, decay=0.5), model.weight.detach().clone()
    model.weight.data += 1
    for _ in range(9):
        averages.num_updates += 10
    averages(model)  # the decay has reached its limit
    try:
        with averages.swapped_in(model):
            assert_close(model.weight, kept + 0.5)
            raise KeyError
    except KeyError:
        assert_close(model.weight, kept + 1)
    assert_close(averages.get_buffer("weight"), kept + 0.5)
