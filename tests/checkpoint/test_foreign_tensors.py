"""Weights that are arrays, quantized, averages without names, or lie beside references to code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from taming.checkpoint.weight_sets import in_order
from taming.checkpoint.weights import load_file
from taming.errors import UserError
from tests.support import Malicious


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand(t.shape).to(t.dtype) for name, t in network().state_dict().items()}


def loaded(content: Any, folder: Path, save: Callable[..., Any] = torch.save) -> dict[str, Tensor]:
    model = network()
    save(content, folder / "weights.ckpt")
    load_file(model, folder / "weights.ckpt")
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def pickled(protocol: int) -> Callable[[Any, Path], int]:
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol=protocol))


def old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, old_format, pickled(2), pickled(5)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f8"])
def test_arrays_are_weights(save: Any, order: Any, kind: str, tmp_path: Path) -> None:
    expected = weights()
    arrays = {name: np.array(t.numpy(), kind, order=order) for name, t in expected.items()}
    for content in (arrays, {"state_dict": arrays, "epoch": np.int64(3)}):
        for name, tensor in loaded(content, tmp_path, save).items():
            assert torch.equal(tensor, expected[name])


def test_bfloat16_in_pickles_is_read(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="comes with onnx")
    expected = weights()
    arrays = {name: t.numpy().astype(ml_dtypes.bfloat16) for name, t in expected.items()}
    for name, tensor in loaded(arrays, tmp_path, pickled(4)).items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16).to(tensor.dtype))


def test_arrays_of_other_things_are_none(tmp_path: Path) -> None:
    things = {"a.b": np.array([None, {}], object), "a.c": np.array(["x"]), "a.d": np.zeros(2, "u8")}
    with pytest.raises(UserError, match="holds no model weights"):
        loaded(things, tmp_path)


@pytest.mark.parametrize("save", [torch.save, old_format])
def test_quantized_tensors_are_the_numbers_that_they_stand_for(save: Any, tmp_path: Path) -> None:
    expected = weights()
    for name in ("0.weight", "2.weight"):
        expected[name] = torch.quantize_per_tensor(expected[name], 0.01, 3, torch.qint8)
    scales, zeros = torch.tensor([0.1, 0.02]), torch.tensor([1, 2])
    expected["0.weight"] = torch.quantize_per_channel(
        expected["0.weight"].dequantize(), scales, zeros, 0, torch.quint8
    )
    expected["2.weight"] = torch.quantize_per_channel(
        expected["2.weight"].dequantize(), scales, zeros, 1, torch.qint8
    )
    found = loaded(expected, tmp_path, save)
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(found[name], expected[name].dequantize())


def test_averages_of_torch_ema_are_the_parameters_in_order(tmp_path: Path) -> None:
    shadow = [torch.rand(parameter.shape) for parameter in network().parameters()]
    average = {"decay": 0.9, "num_updates": 1, "shadow_params": shadow, "collected_params": None}
    raw = weights()
    for content in (average, {"state_dict": raw, "ema": average}):
        if content is average:
            with pytest.raises(UserError, match=r"1: 3 keys missing"):
                loaded(content, tmp_path)
            continue
        found = loaded(content, tmp_path)
        names = [name for name, _ in network().named_parameters()]
        assert all(torch.equal(found[n], t) for n, t in zip(names, shadow, strict=True))
        assert torch.equal(found["1.running_mean"], raw["1.running_mean"])
    with pytest.raises(UserError, match="'shadow_params' are 5 tensors .* not the 6 parameters"):
        loaded({"shadow_params": shadow[1:]}, tmp_path)


@pytest.mark.parametrize("save", [torch.save, old_format, pickled(0), pickled(5)])
def test_functions_may_be_named_but_not_called(save: Any, tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in weights().items()}
    named = {"state_dict": arrays, "hyper_parameters": {"a": os.getcwd, "b": eval, "c": os.system}}
    assert torch.equal(loaded(named, tmp_path, save)["0.weight"], weights()["0.weight"])
    called = {"state_dict": arrays, "a": Malicious(os.mkdir, str(tmp_path / "made"))}
    with pytest.raises(UserError, match="would run '.*mkdir' when loaded"):
        loaded(called, tmp_path, save)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8])
def test_weights_are_real_numbers(kind: torch.dtype, tmp_path: Path) -> None:
    content = weights()
    content["0.weight"] = content["0.weight"].to(kind)
    with pytest.raises(UserError, match=rf"'0.weight' is {kind}".replace("torch.", "")):
        loaded(content, tmp_path)
    content = weights() | {"0.bias": torch.ones(2, dtype=torch.complex64)}
    with pytest.raises(UserError, match="'0.bias' is complex64"):
        loaded(content, tmp_path)


def test_layouts_and_places_do_not_matter(tmp_path: Path) -> None:
    expected = weights()
    content: dict[str, Any] = {name: tensor.clone() for name, tensor in expected.items()}
    content["0.weight"] = content["0.weight"].t().contiguous().t()  # not contiguous
    both = torch.cat([content["2.weight"], content["0.bias"][None]])
    content |= {"2.weight": both[:2], "0.bias": both[2]}  # of one storage
    beside = {"epoch": torch.empty(0), "x": torch.eye(2).to_sparse(), "y": torch.eye(2).to("meta")}
    for name, tensor in loaded({"model": {"module": content}, **beside}, tmp_path).items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("names", ["ac", "a", "abc", "ab"])
def test_averages_in_the_order_of_parameters(names: str) -> None:
    """Of the trained ones, or of all; with the loss or without."""
    own: dict[str, Tensor] = {
        "a.w": nn.Parameter(torch.ones(1)),
        "b.w": nn.Parameter(torch.ones(2), requires_grad=False),
        "loss.w": nn.Parameter(torch.ones(3)),
        "buffer": torch.ones(4),
    }
    known = {"a": "a.w", "b": "b.w", "c": "loss.w"}
    shadows = [torch.full_like(own[known[name]], 7.0) for name in names]
    [found] = in_order({"shadow_params": shadows}, own, "x", needed=True)
    assert list(found.tensors) == [known[name] for name in names] and found.averaged
    with pytest.raises(UserError, match="which are not the 3 parameters of the model in order"):
        in_order({"shadow_params": [*shadows, torch.ones(9)]}, own, "x", needed=True)
