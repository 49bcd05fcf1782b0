from __future__ import annotations

import copy
import io
import weakref

import pytest
import torch
from torch import Tensor, nn

from taming.modules.linear import Linear
from taming.modules.packed_weight import (
    PackedWeight,
    packed_in_place,
    quantized,
    quantized_in_place,
    unpack_in_place,
)
from tests.support import require_onednn


def packed_model() -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Three layers, packed as one, and their values."""
    layers = [Linear(8, 4).requires_grad_(False) for _ in range(3)]
    model = nn.Sequential(*layers)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = packed_in_place(layers)
    assert packed_in_place(layers) is whole
    assert whole.tensor.shape == (12, 8)
    return model, before


def same(model: nn.Module, values: dict[str, Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == values.keys() and all(torch.equal(state[k], values[k]) for k in values)


def is_packed(model: nn.Module) -> bool:
    return all(isinstance(model.get_parameter(f"{n}.weight"), PackedWeight) for n in range(3))


def test_values_are_read_as_before() -> None:
    torch.manual_seed(0)
    layer, x = Linear(8, 4).requires_grad_(False), torch.randn(3, 8)
    before, weight = layer(x), layer.weight.clone()
    packed_in_place([layer])
    assert torch.equal(layer(x), before)
    assert torch.equal(layer.weight, weight) and torch.equal(layer.weight[1:3], weight[1:3])
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.shape == (4, 8)
    assert repr(layer.weight).startswith("PackedWeight(tensor([[")


def test_states_files_and_copies_are_ordinary() -> None:
    model, before = packed_model()
    state = model.state_dict()
    assert same(model, before) and {type(value) for value in state.values()} == {Tensor}
    assert state["1.weight"].untyped_storage().nbytes() == 4 * 8 * 4
    for thing in (state, dict(model.named_parameters())):
        torch.save(thing, file := io.BytesIO())
        file.seek(0)
        read = torch.load(file, weights_only=True)
        assert all(torch.equal(read[name], before[name]) for name in before)
        assert not any(isinstance(value, PackedWeight) for value in read.values())
    copied = copy.deepcopy(model)
    assert same(copied, before) and type(copied[0].weight) is nn.Parameter
    assert is_packed(model)


def test_writes_pack_anew() -> None:
    model, before = packed_model()
    whole = model.get_parameter("0.weight").whole  # type: ignore[attr-defined]
    other = {name: value + 1 for name, value in before.items()}
    model.load_state_dict(other)
    assert same(model, other) and is_packed(model)
    assert torch.equal(whole.matrix()[4:8], other["1.weight"])
    with torch.no_grad():
        model.get_parameter("1.weight").data.mul_(2)  # as an average of weights does
    assert torch.equal(model.get_parameter("1.weight"), 2 * other["1.weight"])
    assert torch.equal(model.get_parameter("2.weight"), other["2.weight"])


def test_moves_unpack() -> None:
    model, before = packed_model()
    assert model.double().get_parameter("0.weight").dtype == torch.float64
    assert not is_packed(model) and same(model.float(), before)
    model, before = packed_model()
    unpack_in_place([model[0], model[1]])  # type: ignore[list-item]
    assert type(model[0].weight) is type(model[1].weight) is nn.Parameter
    assert isinstance(model[2].weight, PackedWeight) and same(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ordinary_weights_are_let_go(dtype: torch.dtype) -> None:
    require_onednn(dtype)
    layer = Linear(768, 768, dtype=dtype).requires_grad_(False)
    weight, held = layer.weight.clone(), weakref.ref(layer.weight)
    whole = packed_in_place([layer])
    assert torch.equal(whole.matrix(), weight)
    assert held() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_off_by_half_a_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [Linear(96, 8, dtype=dtype).requires_grad_(False) for _ in range(2)]
    with torch.no_grad():
        layers[0].weight[3] *= 100
        layers[1].weight[2] = 0
    before = torch.cat([layer.weight.float() for layer in layers])
    whole = quantized_in_place(layers)
    assert quantized(layers) is whole and quantized([Linear(2, 3)]) is None
    assert whole.values.dtype == torch.int8 and layers[1].weight.dtype == dtype
    assert torch.equal(layers[1].weight, whole.matrix()[8:])
    step = before.abs().amax(1, keepdim=True) / 127
    assert ((whole.values * whole.scales[:, None].float() - before).abs() <= 0.51 * step).all()
    assert whole.values.abs().amax(1)[before.abs().amax(1) > 0].min() >= 125
