"""First stages with quantizers of a `quantizer_config`: several levels, and precision."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.evaluation.tasks.quantizers import bits_of, evaluate
from taming.evaluation.tasks.reconstruction import score_first_stage
from taming.guidance import CodeGrids
from tests.kit.datasets import images
from tests.kit.models import build, first_stage_config, transformer_config
from tests.kit.parts import PARTS
from tests.kit.training import fit
from tests.support import GOLDEN

VQ = "taming.modules.vqvae."
CONFIGS: dict[str, dict[str, Any]] = {
    "residual": {
        "target": VQ + "residual.ResidualQuantizer",
        "params": {"n_codes": 6, "e_dim": 4, "levels": 3},
    },
    "grouped": {
        "target": VQ + "grouped.GroupedQuantizer",
        "params": {
            "groups": 2,
            "quantizer_config": {"target": VQ + "lfq.LFQ", "params": {"n_e": 8}},
        },
    },
}
X = images(2, 3, 16, 24).permute(0, 3, 1, 2)
WIDE = torch.zeros(3, 16, 32, dtype=torch.uint8)
MULTI_SCALE = "taming.models.multi_scale.MultiScaleVQ"


def config(name: str) -> dict[str, Any]:
    sizes = {"n_embed": None, "embed_dim": None}
    return first_stage_config(quantizer_config=CONFIGS[name], **sizes)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(config(request.param)).eval()


@torch.no_grad()
def test_there_and_back(model: Any) -> None:
    indices = model.encode_to_indices(X)
    assert indices.shape == (2, *model.quantize.index_shape(8, 12))
    torch.testing.assert_close(model.decode_indices(indices), model(X)[0])


@torch.no_grad()
def test_wrong_indices_are_a_sentence(model: Any) -> None:
    indices = model.encode_to_indices(X)
    with pytest.raises(UserError, match=r"these are \[2, 8, 12\]"):
        model.decode_indices(indices[..., 0])
    with pytest.raises(UserError, match=r"\[B, \.\.\.\] of integers from 0 to \d; these are from"):
        model.decode_indices(indices + 8)


@torch.no_grad()
def test_guidance_has_a_table_for_each_level(model: Any) -> None:
    grids = CodeGrids.of(model)
    indices = grids.encode(X[:1])
    assert len(indices) == len(model.quantize.level_sizes)
    image = grids.decode(grids.look_up(indices), (8, 12))
    torch.testing.assert_close(image, model(X[:1])[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_refuse_several_levels(name: str) -> None:
    with pytest.raises(UserError, match="first_stage_config: .* take a first stage of one level"):
        build(transformer_config(first_stage_config=config(name)))


def test_training_logs_the_use_of_every_level(tmp_path: Path) -> None:
    model = build(config("residual"))
    logged = fit(model, {"image": images()}, tmp_path).callback_metrics
    for level in ("", "_0", "_1", "_2"):
        assert 0 < logged[f"val/codebook_usage{level}"] <= 1
    assert model.logged_names() >= {name for name in logged if "codebook" in name}


# ---------------------------------------------------------------------- remapped indices


@pytest.fixture(scope="module")
def remapped() -> Any:
    """Two groups of 13 of 40 codes, and an index for the others."""
    inner: dict[str, Any] = {"n_e": 40, "e_dim": 2, "beta": 0.25}
    inner |= {"remap": str(GOLDEN / "used.npy"), "unknown_index": "extra"}
    nearest = {"target": VQ + "nearest.VectorQuantizer2", "params": inner}
    grouped = {"groups": 2, "quantizer_config": nearest}
    section = {"target": VQ + "grouped.GroupedQuantizer", "params": grouped}
    torch.manual_seed(0)
    sizes = {"n_embed": None, "embed_dim": None}
    return build(first_stage_config(quantizer_config=section, **sizes)).eval()


@torch.no_grad()
def test_guidance_starts_from_remapped_codes(remapped: Any) -> None:
    grids = CodeGrids.of(remapped)
    image = grids.decode(grids.look_up(grids.encode(X[:1])), (8, 12))
    indices = remapped.encode_to_indices(X[:1])
    torch.testing.assert_close(image, remapped.decode_indices(indices))


def test_evaluation_of_remapped_codes(remapped: Any) -> None:
    scores = score_first_stage(remapped, [X])
    with torch.no_grad():
        indices = remapped.encode_to_indices(X)
    used = sum(len(level.unique()) for level in indices.unbind(3))
    assert scores["codebook_usage"] == pytest.approx(used / 28)
    assert bits_of(remapped.quantize, indices[:1]) == pytest.approx(2 * 96 * math.log2(14))
    with pytest.raises(UserError, match="from 0 to 13; these are from"):
        remapped.decode_indices(indices + 14)


@torch.no_grad()
def test_bits_of_a_pyramid_of_images_that_are_not_square() -> None:
    model = build(first_stage_config(MULTI_SCALE, scales=[1, 2, 8], n_embed=16)).eval()
    source = SimpleNamespace(batches=lambda _: iter([[SimpleNamespace(pixels=WIDE)]]))
    result = SimpleNamespace(metrics={"l1": 0.5}, reconstructions={})
    stage: Any = SimpleNamespace(model=model)
    found = evaluate(lambda *_: result, stage, source, 2.0)  # type: ignore[arg-type]
    assert found.numbers == {"l1": 0.5, "steps_a_second": 2.0}
    assert found.bits_an_image == 4 * (1 * 2 + 2 * 4 + 8 * 16)
    assert found.bits_a_position == pytest.approx(found.bits_an_image / (8 * 16))


QUANTIZERS = ("VectorQuantizer2", "EMAVectorQuantizer", "GumbelQuantize", "CosineQuantizer", "FSQ")
QUANTIZERS += ("FSQ, symmetric", "LFQ", "BSQ", "IBQ", "SimVQ", "ResidualQuantizer")
QUANTIZERS += ("GroupedQuantizer", "MultiScaleQuantizer")


@pytest.mark.parametrize("name", QUANTIZERS)
def test_decisions_are_fp32_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    quantizer = PARTS[name].make().eval()
    z = torch.randn(2, 4, 16, 16)
    z_q, loss, (_, _, indices) = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, same_loss, (_, _, same) = quantizer(z)
    assert torch.equal(indices, same) and again.dtype == z_q.dtype == torch.float32
    torch.testing.assert_close(again, z_q, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same_loss, loss, rtol=1e-6, atol=1e-6)
    half = quantizer.bfloat16()
    assert half(z.bfloat16())[0].dtype == torch.bfloat16
    assert torch.isfinite(half(z.bfloat16())[1])
