"""The VQGAN of a pyramid of residuals: trained, evaluated, exported, used by its codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.evaluate_first_stage import main as evaluate_first_stage
from scripts.export import main as export
from scripts.reconstruct import main as reconstruct
from taming.errors import UserError
from taming.evaluation.tasks.probe import FeatureKinds
from taming.guidance.code_grids import CodeGrids
from taming.model_loading import load_model
from taming.models.autoencoder_training import HIT_UPDATES
from taming.models.codes import level_sizes
from taming.models.multi_scale import MultiScaleVQ
from taming.models.vqgan import VQModel
from taming.modules.vqvae.scales import phi_numbers
from tests.kit.datasets import images
from tests.kit.images import image_sizes
from tests.kit.models import build, first_stage_config, transformer_config
from tests.kit.runs import tiny_run
from tests.kit.training import fit

TARGET = "taming.models.multi_scale.MultiScaleVQ"
CONFIG = first_stage_config(TARGET, scales=[1, 3, 8], using_znorm=True, revive_after=2)


def close(a: Tensor, b: Tensor) -> None:
    """Equal but for the rounding of `straight_through`."""
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def build_pyramid(**params: Any) -> MultiScaleVQ:
    torch.manual_seed(0)
    model = build({**CONFIG, "params": {**CONFIG["params"], **params}})
    assert isinstance(model, MultiScaleVQ)
    return model


@pytest.fixture(scope="module")
def model() -> MultiScaleVQ:
    return build_pyramid().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images(2, 3, 16, 24).permute(0, 3, 1, 2)


def test_training_moves_all_parts_and_logs_the_use_of_each_scale(tmp_path: Path) -> None:
    model = build_pyramid(use_ema=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = fit(model, {"image": images()}, tmp_path)
    moved = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    phis = {f"quantize.quant_resi.qresi_ls.{number}.weight" for number in phi_numbers(4, 3)}
    parts = {"quant_conv.weight", "post_quant_conv.weight", "encoder.conv_in.weight"}
    assert {"quantize.embedding.weight", "quantize.ema_vocab_hit_SV", *phis} | parts <= moved
    logged = trainer.callback_metrics
    for level in ("", "_1x1", "_3x3", "_8x8"):
        assert 0 < logged[f"val/codebook_usage{level}"] <= 1
        assert 1 <= logged[f"val/codebook_perplexity{level}"] <= 12
    for level in ("1x1", "3x3", "8x8"):
        assert logged[f"val/codebook_loss_{level}"] >= 0
    codebook = {name for name in logged if "codebook" in name}
    assert model.logged_names() >= codebook  # type: ignore[operator]


def test_counts_of_hits_go_on_in_a_resumed_run() -> None:
    model, resumed, checkpoint = build_pyramid(), build_pyramid(), dict[str, Any]()
    model.train()(images().permute(0, 3, 1, 2))
    model.on_save_checkpoint(checkpoint)
    assert int(checkpoint[HIT_UPDATES]) == 3
    resumed.on_load_checkpoint(checkpoint)
    assert int(resumed.quantize.hit_updates) == 3
    pyramid = {"target": "taming.modules.vqvae.multi_scale.MultiScaleQuantizer"}
    pyramid |= {"params": {"n_e": 12, "e_dim": 4, "scales": [1, 3, 8]}}
    plain = build(first_stage_config(quantizer_config=pyramid, n_embed=None, embed_dim=None))
    plain.on_load_checkpoint(checkpoint)
    assert int(plain.quantize.hit_updates) == 3
    build_pyramid().on_load_checkpoint({})


@torch.no_grad()
def test_codes_there_and_back(model: MultiScaleVQ, x: Tensor) -> None:
    quant, loss, (_, _, indices) = model.encode(x)
    assert quant.shape == (2, 4, 8, 12) and loss.dim() == 0
    assert indices.shape == (2, 1 * 2 + 3 * 5 + 8 * 12) and indices.dtype == torch.long
    assert torch.equal(model.encode_to_indices(x), indices)
    decoded = model.decode(quant)
    close(model.decode_indices(indices, (8, 12)), decoded)
    shown = model.decode_scales(indices, (8, 12))
    assert len(shown) == 3 and all(one.shape == x.shape for one in shown)
    close(shown[-1], decoded)
    assert not torch.allclose(shown[0], shown[1])
    assert model.next_scale_inputs(indices, (8, 12)).shape == (2, 15 + 96, 4)
    square = model.encode_to_indices(x[..., :16])
    assert square.shape == (2, 1 + 9 + 64)
    close(model.decode_indices(square), model(x[..., :16])[0])
    close(model.decode_scales(square)[-1], model.decode_indices(square))


def test_options_reach_the_quantizer() -> None:
    options = {"beta": 0.5, "quant_resi": 0.3, "share_quant_resi": 1, "least_use": 0.2}
    quantizer = build_pyramid(**options, scales=None, using_znorm=False).quantize
    assert quantizer.scales == (1, 2, 3, 4, 5, 6, 8) and not quantizer.using_znorm
    assert quantizer.beta == 0.5 and quantizer.quant_resi["qresi"].ratio == 0.3
    assert quantizer.revival is not None and quantizer.revival.least_use == 0.2
    assert quantizer.revival.after == 2
    plain = build_pyramid(kernel_size=1, revive_after=0)
    assert plain.quant_conv.weight.shape[2:] == (1, 1) and plain.quantize.revival is None


OTHER = {
    "target": "taming.modules.vqvae.quantize.VectorQuantizer2",
    "params": {"n_e": 12, "e_dim": 4, "beta": 0.25},
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "other quantizer": ({"quantizer_config": OTHER}, "leave out quantizer_config"),
    "order": ({"scales": [2, 1, 8]}, "scales are sides that grow"),
    "end": ({"scales": [1, 4]}, r"scales end in 4, and the latents .* are 8 x 8; end in 8"),
    "kernel": ({"kernel_size": 2}, "kernel_size is an odd number"),
    "a word": ({"share_quant_resi": "all"}, "share_quant_resi.* 'all'"),
    "a negative share": ({"least_use": -1.0}, "least_use"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_a_sentence(name: str) -> None:
    params, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence):
        build_pyramid(**params)


def test_a_general_model_checks_the_scales_as_well() -> None:
    def built(*scales: int) -> VQModel:
        params = {"n_e": 12, "e_dim": 4, "scales": scales}
        target = "taming.modules.vqvae.multi_scale.MultiScaleQuantizer"
        ddconfig = CONFIG["params"]["ddconfig"]
        return VQModel(ddconfig, quantizer_config={"target": target, "params": params})

    assert level_sizes(built(1, 3, 8).quantize).keys() == {"1x1", "3x3", "8x8"}
    with pytest.raises(UserError, match=r"scales end in 4, and the latents .* are 8 x 8; end in 8"):
        built(1, 4)


def test_wrong_indices_are_a_sentence(model: MultiScaleVQ) -> None:
    for indices, sentence in {
        torch.full((1, 74), 12): "from 0 to 11",
        torch.zeros(1, 70, dtype=torch.long): "70 indices are those of no square image",
        torch.zeros(1, 8, 8, dtype=torch.long): r"are \[B, n\], scale by scale",
    }.items():
        with pytest.raises(UserError, match=sentence):
            model.decode_indices(indices)
    with pytest.raises(UserError, match="have 113 indices, and these are 74"):
        model.decode_indices(torch.zeros(1, 74, dtype=torch.long), (8, 12))


@pytest.mark.parametrize("stage", ["first_stage_config", "cond_stage_config"])
def test_transformers_of_one_grid_refuse_it(stage: str) -> None:
    sentence = f"{stage}: .*MultiScaleVQ gives codes of 3 levels, .* take a first stage of one"
    with pytest.raises(UserError, match=sentence):
        build(transformer_config(**{stage: CONFIG}))


def test_guides_refuse_it(model: MultiScaleVQ) -> None:
    with pytest.raises(UserError, match="MultiScaleQuantizer has no grid of codes for each level"):
        CodeGrids.of(model)


def test_evaluation_of_images_of_any_shape_says_what_each_scale_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TAMING_VGG16", "TAMING_ALEXNET", "TAMING_EXTRACTOR_WEIGHTS"):
        monkeypatch.setenv(variable, str(tmp_path / "none.pth"))
    folder = image_sizes(tmp_path / "images", {"a.png": (20, 30), "b.png": (16, 16)})
    run = tiny_run(tmp_path / "run", CONFIG)
    common = ["-r", str(run), "--device", "cpu"]
    reconstruct([*common, str(folder), "-o", str(tmp_path / "made"), "--after_scales"])
    [scores] = [json.loads(path.read_text()) for path in tmp_path.glob("made/*/metrics.json")]
    assert "codebook usage 1x1" in capsys.readouterr().out
    assert list(tmp_path.glob("made/*/after_scales.jpg"))
    flags = ["--images", str(folder), "--size", "16", "-o", str(tmp_path / "out")]
    evaluate_first_stage([*common, *flags])
    [result] = [json.loads(p.read_text()) for p in tmp_path.glob("out/*/first_stages.json")]
    tables = (capsys.readouterr().out, next(tmp_path.glob("out/*/first_stages.md")).read_text())
    assert all("| run         | 8x8   |" in text for text in tables)
    names = {f"codebook_{of}{level}" for of in ("usage", "perplexity") for level in ("", "_3x3")}
    assert names <= result["metrics"]["run"].keys() & scores.keys()


def test_codes_are_probed(model: MultiScaleVQ, x: Tensor) -> None:
    features = FeatureKinds(grid=0).of(model, x)
    torch.testing.assert_close(features["codes"], model.encode(x)[0].flatten(1))
    assert features["histogram"].shape == (2, 3 * 12)


def test_its_weights_go_out_and_come_back(tmp_path: Path, x: Tensor) -> None:
    run = tiny_run(tmp_path / "run", CONFIG)
    export(["safetensors", str(run), str(tmp_path / "out.safetensors")])
    again = load_model(tmp_path / "out.safetensors", base=[str(next(run.glob("configs/*.yaml")))])
    assert torch.equal(again.encode_to_indices(x), load_model(run).encode_to_indices(x))  # type: ignore[operator]
    with pytest.raises(UserError, match="diffusers' VQModel takes a codebook of nearest vectors"):
        export.__wrapped__(["diffusers", str(run), str(tmp_path / "diffusers")])  # type: ignore[attr-defined]
