"""Moving averages beside weights, in all the ways in which others keep them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taming.checkpoint import load_file, read_checkpoint
from taming.checkpoint.weight_sets import choose, say
from taming.errors import UserError
from taming.weight_choice import WeightChoice
from tests.kit.weights import AVERAGE, PARAMETERS, RAW, State, Tiny, loads_as, prefixed, save


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    say.cache_clear()


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "taming.checkpoint")


def squeezed(state: State) -> State:
    """As latent diffusion's LitEma names the parameters, which it keeps alone."""
    kept = {n: t for n, t in state.items() if "running" not in n and "num_batches" not in n}
    named = {f"model_ema.{n.replace('.', '')}": t for n, t in kept.items()}
    return {**named, "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}


def swa(state: State) -> State:
    return {**prefixed(state, "module"), "n_averaged": torch.tensor(5)}


# Content with both sets, whether the average has buffers too, and where each is.
BOTH: dict[str, tuple[Callable[[], Any], bool, str, str]] = {
    "beside": (lambda: {"model": RAW, "ema": AVERAGE}, True, "model", "ema"),
    "timm": (lambda: {"state_dict": RAW, "state_dict_ema": AVERAGE}, True, "state_dict", "_ema"),
    "basicsr": (lambda: {"params": RAW, "params_ema": AVERAGE}, True, "params", "params_ema"),
    "gan": (
        lambda: {"g": RAW, "d": {"main.0.weight": torch.ones(2)}, "g_ema": AVERAGE},
        True,
        "g",
        "g_ema",
    ),
    "litema": (lambda: {"state_dict": {**RAW, **squeezed(AVERAGE)}}, False, "state_dict", "model"),
    "lightning": (
        lambda: {"state_dict": AVERAGE, "current_model_state": RAW, "averaging_state": {"n": 1}},
        True,
        "current_model_state",
        "state_dict",
    ),
    "litema apart": (
        lambda: {
            "state_dict": RAW,
            "ema": {n.removeprefix("model_ema."): t for n, t in squeezed(AVERAGE).items()},
        },
        False,
        "state_dict",
        "ema",
    ),
    "swa": (lambda: {"model": RAW, "swa_model": swa(AVERAGE)}, True, "model", "swa_model"),
    "nested": (
        lambda: {"model": prefixed(RAW, "module"), "ema": {"decay": 0.9, "shadow": AVERAGE}},
        True,
        "model",
        "ema.shadow",
    ),
    "ema-pytorch": (
        lambda: {
            "model": RAW,
            "ema": {
                **prefixed(RAW, "online_model"),
                **prefixed(AVERAGE, "ema_model"),
                "initted": torch.tensor(True),
                "step": torch.tensor(5),
            },
        },
        True,
        "model",
        "ema.ema_model",
    ),
    "ema-pytorch alone": (
        lambda: {"ema": {**prefixed(RAW, "online_model"), **prefixed(AVERAGE, "ema_model")}},
        True,
        "ema",
        "ema.ema_model",
    ),
    "dino": (
        lambda: {"student": prefixed(RAW, "module"), "teacher": AVERAGE, "epoch": 3},
        True,
        "student",
        "teacher",
    ),
    "byol": (
        lambda: {
            "state_dict": {
                **prefixed(RAW, "online_network"),
                **prefixed(AVERAGE, "target_network"),
            }
        },
        True,
        "state_dict",
        "state_dict.target_network",
    ),
    "k-diffusion": (
        lambda: {"model": RAW, "model_ema": AVERAGE, "ema_sched": {"last": torch.ones(3)}},
        True,
        "model",
        "model_ema",
    ),
    "timm on several devices": (
        lambda: {"state_dict": RAW, "state_dict_ema": prefixed(AVERAGE, "module")},
        True,
        "state_dict",
        "state_dict_ema",
    ),
    "a callback": (
        lambda: {"state_dict": RAW, "callbacks": {"EMA": {"ema_state_dict": AVERAGE}}},
        True,
        "state_dict",
        "callbacks.EMA.ema_state_dict",
    ),
    "in order": (
        lambda: {
            "state_dict": RAW,
            "callbacks": {"EMA": {"ema_weights": [AVERAGE[n] for n, _ in PARAMETERS]}},
        },
        False,
        "state_dict",
        "callbacks.EMA.ema_weights",
    ),
    "within": (
        lambda: {"model": RAW, "ema": {"decay": 0.9, "model": AVERAGE}},
        True,
        "model",
        "ema.model",
    ),
    "lucidrains": (
        lambda: {**prefixed(RAW, "online_model"), **prefixed(AVERAGE, "ema_model")},
        True,
        "the whole file",
        "ema_model",
    ),
}


@pytest.mark.parametrize("name", BOTH)
def test_averages_are_preferred_named_and_left_on_demand(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, whole, raw, average = BOTH[name]
    path = save(content(), tmp_path)
    buffers = {n: t for n, t in RAW.items() if "running" in n or "num_batches" in n}
    loads_as(path, AVERAGE if whole else {**AVERAGE, **buffers})
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"the moving average '{'state_dict.' if name == 'litema' else ''}" in line
    assert average in line and f"(--weights raw takes '{raw}')" in line
    loads_as(path, RAW, kind="raw")
    loads_as(path, AVERAGE if whole else {**AVERAGE, **buffers}, kind="ema")


def test_an_average_of_another_shape_is_not_taken(tmp_path: Path) -> None:
    average = {**AVERAGE, "decoder.bias": torch.ones(7)}
    loads_as(
        save({"model": RAW, "ema": average}, tmp_path),
        AVERAGE | {"decoder.bias": RAW["decoder.bias"]},
    )


def test_a_teacher_of_another_size_is_no_average(tmp_path: Path) -> None:
    other = {name: torch.ones(*tensor.shape, 2) for name, tensor in AVERAGE.items()}
    loads_as(save({"student": RAW, "teacher": other}, tmp_path), RAW)
    assert (
        not choose({"teacher": RAW, "target": {"a.b": torch.ones(2)}}, "x").notes[0].count("aver")
    )


@pytest.mark.parametrize("name", ["ema_encoder", "averaged", "model_ema_x", "model_ema", "teacher"])
def test_a_part_of_the_model_is_no_average(tmp_path: Path, name: str) -> None:
    class Own(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))

    state = {n: torch.randn_like(t.float()) for n, t in Own().state_dict().items()}
    parts: dict[str, Any] = {}
    for full, tensor in state.items():
        parts.setdefault(full.partition(".")[0], {})[full.partition(".")[2]] = tensor
    for content in (state, {"state_dict": state}, *([parts] if name != "model_ema" else [])):
        model = Own()
        load_file(model, save(content, tmp_path))
        for full, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[full].to(tensor.dtype)), full


def test_an_average_that_says_so_by_its_counter_or_its_name(tmp_path: Path) -> None:
    loads_as(save(swa(AVERAGE), tmp_path), AVERAGE, kind="ema")
    path = save(AVERAGE, tmp_path).rename(tmp_path / "model_ema.pt")
    loads_as(path, AVERAGE, kind="ema")
    loads_as(path, AVERAGE, kind="raw")


def test_an_average_alone_is_known_without_dots(tmp_path: Path) -> None:
    model = nn.ModuleDict({"decoder": nn.Conv2d(2, 3, 1), "quantize": nn.Embedding(4, 2)})
    state = {n: t for n, t in squeezed(AVERAGE).items() if "encoder" not in n}
    load_file(model, save(state, tmp_path))
    assert torch.equal(model["decoder"].weight, AVERAGE["decoder.weight"])


def test_what_is_not_there_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.pt holds no moving average \(EMA\), only 'model'"):
        loads_as(save({"model": RAW}, tmp_path), RAW, kind="ema")
    with pytest.raises(UserError, match="x.pt holds no raw weights, only 'ema'"):
        loads_as(save({"ema": AVERAGE}, tmp_path), RAW, kind="raw")
    for kind in ("best", ""):
        with pytest.raises(UserError, match=f"--weights takes raw or ema, not '{kind}'"):
            WeightChoice.parse(kind)
    for kind in ("int8,best", "int8,", "int8,int8", "raw,ema,int8"):
        with pytest.raises(UserError, match="--weights takes raw or ema, not .* int8"):
            WeightChoice.parse(kind)


def test_training_goes_on_from_all_that_was_saved(tmp_path: Path) -> None:
    """The choice is for use: a checkpoint's own state is read as it is."""
    state = {**RAW, **squeezed(AVERAGE)}
    assert (
        read_checkpoint(save({"state_dict": state}, tmp_path))["state_dict"].keys() == state.keys()
    )
