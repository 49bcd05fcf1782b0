"""Weights of which no layout is known: the nearest one, and why it is not that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import taming
from taming.checkpoint.layouts import LAYOUTS, nearest
from taming.checkpoint.layouts.base import shapes_of
from taming.errors import UserError
from taming.export.foreign import to_layout
from tests.kit.models import build, first_stage_config
from tests.kit.tokenizers import small_section, small_state

VAR_CONFIG = first_stage_config(
    "taming.models.multi_scale.MultiScaleVQ", scales=[1, 3, 8], lossconfig=None
)


def test_the_nearest_layout_is_named(tmp_path: Path) -> None:
    state = small_state("open_magvit2")
    older = {key: tensor for key, tensor in state.items() if "adaptive" not in key}
    torch.save({"state_dict": older}, tmp_path / "older.ckpt")
    with pytest.raises(UserError) as error:
        taming.load(tmp_path / "older.ckpt")
    text = str(error.value)
    assert "the nearest layout is Open-MAGVIT2's, but they lack decoder.adaptive" in text
    assert "--base" in text and text.count("\n") == 0


def test_a_stranger_is_no_tokenizer(tmp_path: Path) -> None:
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no tokenizer's that is known here; name its YAML"):
        taming.load(tmp_path / "x.pt")
    parts = {f"first_stage_model.{key}": t for key, t in small_state("vqgan").items()}
    torch.save({**parts, "model.weight": torch.zeros(2)}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="take its first stage out with"):
        taming.load(tmp_path / "y.pt")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    state = small_state("maskgit")
    del state["decoder.conv_out.weight"]
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(UserError, match="like MaskGIT.*'decoder.conv_out.weight' is missing"):
        taming.load(tmp_path / "x.bin")


def gumbel() -> dict[str, Any]:
    state = small_state("vqgan")
    del state["quantize.embedding.weight"]
    return {**state, "quantize.embed.weight": torch.zeros(16, 4)}


def without_codes() -> dict[str, Any]:
    return {n: t for n, t in small_state("vqgan").items() if not n.startswith("quantize.")}


def averaged() -> dict[str, Any]:
    return {**small_state("vqgan"), "quantize.embedding.cluster_size": torch.zeros(16)}


def of_larger_kernels() -> dict[str, Any]:
    state = small_state("vqgan")
    return {**state, "quant_conv.weight": torch.zeros(*state["quant_conv.weight"].shape[:2], 3, 3)}


def of_var_without_hits() -> dict[str, Any]:
    state = LAYOUTS["var"].from_model(build(VAR_CONFIG).state_dict())
    return {n: t for n, t in state.items() if n != "quantize.ema_vocab_hit_SV"}


@pytest.mark.parametrize(
    ("state", "name", "why"),
    [
        (gumbel, "vqgan", "lack quantize.embedding"),
        (without_codes, "vqgan", "lack quantize.embedding"),
        (averaged, "vqgan", "have 'quantize.embedding.cluster_size', which it has not"),
        (of_larger_kernels, "vqgan", "have other numbers of blocks, attentions or kernels"),
        (of_var_without_hits, "var", "lack quantize.ema_vocab_hit_SV"),
        (partial(small_state, "simvq"), "simvq", None),
    ],
)
def test_the_nearest_layout_and_why_it_is_not_that(
    state: Callable[[], dict[str, Any]], name: str, why: str | None
) -> None:
    shapes = shapes_of(state())
    layout = nearest(shapes)
    assert layout is not None
    assert (layout.name, layout.why_not(shapes)) == (name, why)


def test_what_a_projects_code_has_no_argument_for_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    to_layout(build(VAR_CONFIG), "var", tmp_path / "x.pth")
    assert "has ch_mult [1, 1] and num_res_blocks 1: VAR's code has ch_mult [1, 1, 2" in caplog.text
    caplog.clear()
    to_layout(build(small_section("vqgan")), "vqgan", tmp_path / "y.ckpt")
    assert not caplog.text
