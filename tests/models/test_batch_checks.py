"""What is said of a batch before training; see also tests/training/test_start.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from taming.errors import UserError
from taming.models import batch_checks
from taming.models.batch_checks import (
    check_images,
    check_outputs,
    check_values,
    condition_length,
    token_count,
)
from taming.modules.misc.coord import CoordStage
from taming.modules.transformer.kmeans import KMeans
from taming.modules.util import Labelator
from tests.kit.models import build, first_stage_config, transformer_config
from tests.support import GOLDEN

USED = str(GOLDEN / "used.npy")  # 13 codes


def test_images_are_of_the_models_channels_and_whole_codes() -> None:
    stage = build(first_stage_config())

    def check(channels: int, height: int, width: int) -> None:
        x = torch.zeros(1, channels, height, width)
        check_images(stage, x, {"image": x.movedim(1, 3)}, "image")

    check(3, 6, 10)
    check_outputs(stage.decoder, torch.zeros(1, 3, 6, 10), "image", 3)
    for channels in (1, 4):
        x = torch.zeros(1, channels, 6, 10)
        with pytest.raises(UserError, match=f"in_channels .* is 3, but 'image' .* has {channels}"):
            check(channels, 6, 10)
        with pytest.raises(UserError, match=f"out_ch is 3, but 'image' .* has {channels}"):
            check_outputs(stage.decoder, x, "image", channels)
    for height, width in ((7, 10), (6, 9)):
        with pytest.raises(UserError, match=f"{height} x {width} pixels, which are no multiples"):
            check(3, height, width)
    with pytest.raises(UserError, match=r"shape \(3, 10, 6\), as if \(channels, height, width\)"):
        check(6, 3, 10)
    with pytest.raises(UserError, match="in_channels"):
        check(6, 10, 3)
    with pytest.raises(UserError, match="from 0 to 200"):
        x = torch.zeros(1, 3, 2, 2)
        check_images(stage, x, {"image": torch.tensor([0.0, 200])}, "image")
    labels = build(first_stage_config(colorize_nlabels=3))
    check_images(labels, x, {"image": torch.tensor([0.0, 200])}, "image")


OUTSIDE = "; images are expected in [-1, 1], as by pixels / 127.5 - 1"
BYTES = "'x' of the data is uint8: 0 to 255 is taken as [-1, 1]"
HALVED = f"{OUTSIDE}: if these are pixels / 255, double them and subtract 1"


@pytest.mark.parametrize(
    ("values", "dtype", "said"),
    [
        ([0, 255], torch.uint8, ("INFO", BYTES)),
        ([-1, 1], torch.float32, None),
        ([-1.005, 1.005], torch.float32, None),
        ([-1.02, 0.5], torch.float32, ("WARNING", f"-1.02 to 0.5{OUTSIDE}")),
        ([-0.5, 1.02], torch.float32, ("WARNING", f"-0.5 to 1.02{OUTSIDE}")),
        ([-0.5, 200], torch.float32, ("WARNING", f"-0.5 to 200{OUTSIDE}")),
        ([0, 10], torch.float32, ("WARNING", f"0 to 10{OUTSIDE}")),
        ([0, 255.5], torch.float64, ("WARNING", f"0 to 255.5{OUTSIDE}")),
        ([0, 1], torch.float32, ("WARNING", f"0 to 1{HALVED}")),
        ([0, 1], torch.int64, ("WARNING", f"0 to 1{HALVED}")),
        ([0.5, 0.5], torch.float32, None),
        ([math.inf, 0, 200], torch.float32, UserError),
        ([0, 10.5], torch.float32, UserError),
        ([0, 255], torch.float32, UserError),
        ([-1, 2], torch.int64, UserError),
    ],
)
def test_values_outside_of_images_are_named(
    values: list[float], dtype: torch.dtype, said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    batch_checks._say.cache_clear()
    tensor = torch.tensor(values).to(dtype)
    if said is UserError:
        with pytest.raises(UserError, match="expected in .*, or as uint8"):
            check_values(tensor, "x")
        return
    with caplog.at_level("INFO"):
        for _ in range(2):  # said once
            check_values(tensor, "x")
    found = [(r.levelname, r.message.split(" has values from ")[-1]) for r in caplog.records]
    assert found == ([said] if said else [])


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ([math.nan, math.nan], []),
        ([math.nan, math.inf, -0.5, 0.5], []),
        ([math.nan, -3, 0.5], [f"'x' of the data has values from -3 to 0.5{OUTSIDE}"]),
    ],
)
def test_values_that_are_not_finite_are_named(
    values: list[float], more: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    batch_checks._say.cache_clear()
    check_values(torch.tensor(values), "x")
    assert caplog.messages == [
        "'x' of the data has values that are not finite (NaN or inf)",
        *more,
    ]


@pytest.mark.parametrize(
    ("make", "shape", "length", "tokens"),
    [
        (lambda: Labelator(5), (7,), 1, 0),
        (nn.Identity, (7, 4), 4, 0),
        (lambda: CoordStage(20, 4), (7, 1, 8, 12), 6, 20),
        (lambda: build(first_stage_config()), (7, 3, 8, 12), 24, 12),
        (lambda: build(first_stage_config(n_embed=40, remap=USED)), (7, 3, 8, 12), 24, 13),
        (lambda: KMeans(9), (7, 3, 8, 12), 96, 9),
        (nn.Identity, (7, 3, 8, 12), None, 0),
    ],
)
def test_conditions_become_so_many_tokens(
    make: Callable[[], nn.Module], shape: tuple[int, ...], length: int | None, tokens: int
) -> None:
    stage = make()
    assert condition_length(stage, torch.zeros(shape)) == length
    assert token_count(stage) == tokens


@pytest.mark.parametrize("unconditional", [False, True])
def test_sequences_may_be_as_long_as_the_block(unconditional: bool) -> None:
    batch = {"image": torch.zeros(2, 8, 12, 3), "class_label": torch.zeros(2)}
    changes = {"unconditional": unconditional}
    build(transformer_config({"block_size": 24}, **changes)).check_batch(batch)
    with pytest.raises(UserError, match="for 24 tokens of an image and 1 of .* at least 24"):
        build(transformer_config({"block_size": 23}, **changes)).check_batch(batch)


def stage_of(target: str, **params: Any) -> dict[str, Any]:
    return {"cond_stage_config": {"target": f"taming.modules.{target}", "params": params}}


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, 20),
        ({"cond_stage_config": "__is_unconditional__", "sos_token": 22}, 23),
        (stage_of("util.Labelator", n_classes=24), 24),
        (stage_of("misc.coord.CoordStage", n_embed=25, down_factor=2), 25),
        ({"cond_stage_config": first_stage_config(n_embed=26)}, 26),
    ],
)
def test_the_vocabulary_holds_all_tokens_and_needs_no_more(
    changes: dict[str, Any], needed: int
) -> None:
    build(transformer_config({"vocab_size": needed}, **changes))
    with pytest.raises(UserError, match=f"too small for the .*; make it at least {needed}"):
        build(transformer_config({"vocab_size": needed - 1}, **changes))
