"""The VQGAN of two levels: trained, saved, evaluated and used by the codes of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts.evaluate_first_stage import main as evaluate_first_stage
from scripts.reconstruct import main as reconstruct
from taming.errors import UserError
from taming.evaluation.tasks.probe import FeatureKinds
from taming.guidance.code_grids import CodeGrids
from taming.models.codes import codebook_use, level_sizes
from taming.models.two_level import TwoLevelVQ
from tests.kit.datasets import images
from tests.kit.images import image_sizes
from tests.kit.models import build, first_stage_config, transformer_config
from tests.kit.runs import tiny_run
from tests.kit.training import fit

TOP: dict[str, Any] = {
    "z_channels": 8,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
}
CONFIG = first_stage_config("taming.models.two_level.TwoLevelVQ", top_ddconfig=TOP)


def build_two_levels(**params: Any) -> TwoLevelVQ:
    torch.manual_seed(0)
    config = {**CONFIG, "params": {**CONFIG["params"], **params}}
    model = build(config)
    assert isinstance(model, TwoLevelVQ)
    return model


@pytest.fixture(scope="module")
def model() -> TwoLevelVQ:
    return build_two_levels().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images(2, 3, 16, 24).permute(0, 3, 1, 2)


def test_training_moves_both_levels_and_logs_their_use(tmp_path: Path) -> None:
    model = build_two_levels(use_ema=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = images()
    trainer = fit(model, {"image": data}, tmp_path)
    moved = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    tables = {f"quantize.{level}.embedding.weight" for level in ("top", "bottom")}
    networks = {"quantize.top_encoder.conv_in.weight", "quantize.top_decoder.conv_out.weight"}
    assert tables | networks | {"encoder.conv_in.weight", "decoder.conv_out.weight"} <= moved
    logged = trainer.callback_metrics
    assert {"train/aeloss", "val/aeloss", "val/discloss"} <= logged.keys()
    for level in ("", "_top", "_bottom"):
        assert 0 < logged[f"val/codebook_usage{level}"] <= 1
        assert 1 <= logged[f"val/codebook_perplexity{level}"] <= (12 if level else 24)
    assert model.logged_names() >= {n for n in logged if "codebook" in n}  # type: ignore[operator]


@torch.no_grad()
def test_codes_of_both_levels(model: TwoLevelVQ, x: Tensor) -> None:
    quant, loss, (_, _, (top, bottom)) = model.encode(x)
    assert quant.shape == (2, 8, 8, 12) and loss.dim() == 0
    assert top.shape == (2, 4, 6) and bottom.shape == (2, 8, 12)
    for indices in (top, bottom):
        assert indices.dtype == torch.long and 0 <= indices.min() <= indices.max() < 12
    assert model.downsampling_factor == 4 and model.latent_shape() == (8, 4, 4)
    assert level_sizes(model.quantize) == {"top": 12, "bottom": 12}
    indices = model.encode_to_indices(x)
    assert indices.shape == (2, 4, 6, 5) and indices.max() < model.quantize.n_e == 24
    decoded = model.decode(quant)
    assert decoded.shape == x.shape
    torch.testing.assert_close(model.decode_indices(indices), decoded)
    for given in ((indices,), ((top, bottom),), (top, bottom)):
        assert torch.equal(model.decode_code(*given), model.decode_indices(indices))
    torch.testing.assert_close(model(x)[0], decoded)
    assert not torch.equal(model.decode_code(top, bottom.flip(1)), decoded)
    assert not torch.equal(model.decode_code(top.flip(1), bottom), decoded)


def test_published_options_hold(model: TwoLevelVQ) -> None:
    fixed = build_two_levels(legacy=False, revive_after=3)
    for table in (fixed.quantize.top, fixed.quantize.bottom):
        assert not table.legacy and table.idle is not None
    assert model.quantize.top.legacy and model.quantize.top.idle is None


@torch.no_grad()
def test_a_remap_holds_for_both_levels(model: TwoLevelVQ, x: Tensor, tmp_path: Path) -> None:
    quant, _, (_, _, (top, bottom)) = model.encode(x)
    used = torch.cat((top.flatten(), bottom.flatten())).unique().flip(0)
    assert len(used) < 12
    np.save(tmp_path / "used.npy", used.numpy())
    remapped = build_two_levels(remap=str(tmp_path / "used.npy")).eval()
    remapped.load_state_dict(model.state_dict(), strict=False)
    assert level_sizes(remapped.quantize) == dict.fromkeys(("top", "bottom"), len(used))
    _, _, (_, _, own) = remapped.encode(x)
    for indices, whole in zip(own, (top, bottom), strict=True):
        assert torch.equal(used[indices].view_as(whole), whole)
    joined = remapped.encode_to_indices(x)
    assert joined.max() < 2 * len(used)
    torch.testing.assert_close(remapped.decode_indices(joined), model.decode(quant))
    torch.testing.assert_close(remapped.decode_indices(own), model.decode(quant))
    grids = CodeGrids.of(remapped)
    image = grids.decode(grids.look_up(grids.encode(x[:1])), (4, 6))
    torch.testing.assert_close(image, remapped.decode_indices(joined[:1]))


OTHER = {
    "target": "taming.modules.vqvae.quantize.VectorQuantizer2",
    "params": {"n_e": 12, "e_dim": 4, "beta": 0.25},
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "other quantizer": ({"quantizer_config": OTHER}, "leave out quantizer_config"),
    "one level": ({"top_ddconfig": {**TOP, "ch_mult": [1]}}, "both grids of codes are of one size"),
    "missing": ({"top_ddconfig": {"ch": 32}}, "top_ddconfig: Encoder needs the parameter"),
    "a word": ({"top_ddconfig": {**TOP, "ch": "wide"}}, "top_ddconfig.ch.* 'wide'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_a_sentence(name: str) -> None:
    params, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence):
        build_two_levels(**params)


@pytest.mark.parametrize("stage", ["first_stage_config", "cond_stage_config"])
def test_transformers_of_one_grid_refuse_it(stage: str) -> None:
    sentence = f"{stage}: .*TwoLevelVQ gives codes of 2 levels, top, bottom, and"
    with pytest.raises(UserError, match=sentence):
        build(transformer_config(**{stage: CONFIG}))


def test_evaluation_says_what_each_level_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TAMING_VGG16", "TAMING_ALEXNET", "TAMING_EXTRACTOR_WEIGHTS"):
        monkeypatch.setenv(variable, str(tmp_path / "none.pth"))
    folder = image_sizes(tmp_path / "images", {"a.png": (20, 30), "b.png": (16, 16)})
    run = tiny_run(tmp_path / "run", CONFIG)
    reconstruct(["-r", str(run), str(folder), "-o", str(tmp_path / "made"), "--device", "cpu"])
    [scores] = [json.loads(path.read_text()) for path in tmp_path.glob("made/*/metrics.json")]
    assert "codebook usage top" in capsys.readouterr().out
    flags = ["--images", str(folder), "--size", "16", "-o", str(tmp_path / "out"), "--device=cpu"]
    evaluate_first_stage(["-r", str(run), *flags])
    [result] = [json.loads(p.read_text()) for p in tmp_path.glob("out/*/first_stages.json")]
    printed = capsys.readouterr().out
    assert "| run         | top    |" in printed and "| run         | bottom |" in printed
    names = [f"codebook_{of}{level}" for of in ("usage", "perplexity") for level in ("", "_top")]
    assert set(names) <= result["metrics"]["run"].keys() & scores.keys()
    [histogram] = tmp_path.glob("out/*/codes-run.csv")
    counts = torch.tensor([int(row.split(",")[1]) for row in histogram.read_text().split()[1:]])
    assert counts[:12].sum() == 2 * 4 * 4 and counts[12:].sum() == 2 * 8 * 8
    metrics = result["metrics"]["run"]
    assert metrics["codebook_usage_bottom"] == pytest.approx(codebook_use(counts[12:])[0])


def test_codes_of_both_levels_are_probed(model: TwoLevelVQ) -> None:
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    features = FeatureKinds(grid=0).of(model, x)
    torch.testing.assert_close(features["codes"], model.encode(x)[0].flatten(1))
    assert features["histogram"].shape == (2, model.quantize.n_e)
