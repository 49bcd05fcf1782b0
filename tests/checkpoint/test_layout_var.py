"""VAR's published tokenizer: recognised, loaded strictly, equal in all numbers, written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import taming
from scripts.export import main as export
from taming.checkpoint import save_atomic
from taming.checkpoint.layouts import LAYOUTS, recognised
from taming.checkpoint.layouts.base import shapes_of
from taming.config import instantiate_from_config, load_config
from taming.errors import UserError
from taming.export.foreign import to_layout
from taming.model_loading import load_model
from taming.models.multi_scale import MultiScaleVQ
from tests.kit.models import build, first_stage_config
from tests.kit.real import TOKENIZERS, needs_tokenizers
from tests.support import ROOT, golden_weight, write_run

VAR = LAYOUTS["var"]
CONFIGS = Path(taming.__file__).parent / "pretrained_configs"


def numbers_of(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(TOKENIZERS / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["spec"])


def part_of(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def built(state: dict[str, Tensor]) -> MultiScaleVQ:
    """The model that a state_dict by VAR's names tells, with its weights."""
    layout = recognised(shapes_of(state))
    assert layout is VAR
    model = instantiate_from_config(layout.config(shapes_of(state)))
    model.load_state_dict(layout.to_model(state))
    return model.eval()  # type: ignore[no-any-return]


def assert_near(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return numbers_of("golden_var")[0]


@needs_tokenizers
@torch.no_grad()
def test_golden_images_and_indices(golden: dict[str, Tensor]) -> None:
    model, x = built(part_of(golden, "state.")), golden["x"]
    assert model.quantize.scales == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    assert_near(model.encoder(x), golden["enc"])
    assert_near(model.encode_to_prequant(x), golden["prequant"])
    quant, loss, (_, _, indices) = model.encode(x)
    scales = [golden[f"indices.{scale}"] for scale in range(10)]
    assert torch.equal(indices, torch.cat(scales, dim=1))
    assert_near(quant, golden["zq"])
    assert_near(loss, golden["train.vq_loss"])
    assert_near(model.decode(quant), golden["dec"])
    assert_near(model.decode_indices(indices).clamp(-1, 1), golden["dec_from_indices"])
    fifth = model.decode_scales(indices[:1])[4]
    assert_near(fifth.clamp(-1, 1), golden["dec_from_indices_first5"])
    assert_near(model.next_scale_inputs(indices[:1]), golden["var_input_first"])


@needs_tokenizers
def test_golden_losses_gradients_and_hits_of_training(golden: dict[str, Tensor]) -> None:
    model, x = built(part_of(golden, "state.")).train(), golden["x"]
    model.quantize.ema_vocab_hit_SV.zero_()
    rebuilt, codebook_loss = model(x)
    assert_near(codebook_loss, golden["train.vq_loss"])
    loss = (rebuilt - x).square().mean() + codebook_loss
    assert_near(loss, golden["train.loss_sum"])
    loss.backward()
    parameters, gradients = dict(model.named_parameters()), part_of(golden, "grad.")
    assert len(gradients) == 3
    for name, gradient in gradients.items():
        assert_near(parameters[name].grad, gradient)  # type: ignore[arg-type]
    for step in range(11):
        model([x.flip(3), x.flip(2), -x][step % 3])
    assert_near(model.quantize.ema_vocab_hit_SV, golden["train.ema_vocab_hit_after_12"])


@needs_tokenizers
def test_the_file_loads_as_it_is_and_is_written_again(
    golden: dict[str, Tensor], tmp_path: Path
) -> None:
    state = part_of(golden, "state.")
    section = VAR.config(shapes_of(state))
    (tmp_path / "var.yaml").write_text(json.dumps({"model": section}))
    torch.save(state, tmp_path / "vae.pth")
    model: Any = load_model(tmp_path / "vae.pth", base=[tmp_path / "var.yaml"])
    assert torch.equal(model.encode_to_indices(golden["x"])[:, :1], golden["indices.0"])
    again = VAR.from_model(model.state_dict())
    assert again.keys() == state.keys() and all(torch.equal(again[n], state[n]) for n in state)
    section["params"] |= {"scales": [1, 4, 16], "revive_after": 5, "ckpt_path": "vae.pth"}
    other = instantiate_from_config(
        {**section, "params": {**section["params"], "ckpt_path": str(tmp_path / "vae.pth")}}
    )
    assert torch.equal(other.quantize.codes, state["quantize.embedding.weight"])
    assert other.quantize.ema_vocab_hit_SV.shape == (3, 64)  # counts of other scales are left out
    assert set(VAR.from_model(other.state_dict())) == set(state)
    lacking = {name: value for name, value in state.items() if name != "quant_conv.bias"}
    save_atomic(lacking, tmp_path / "less.pth")
    with pytest.raises(UserError, match="quant_conv: 1 key missing"):
        load_model(tmp_path / "less.pth", base=[tmp_path / "var.yaml"])


@needs_tokenizers
def test_all_names_and_shapes_of_the_published_file_both_ways() -> None:
    manifest = json.loads((TOKENIZERS / "manifest_var.json").read_text())["state_dict"]
    with torch.device("meta"):
        state = {name: torch.zeros(shape) for name, (shape, _) in manifest.items()}
        layout = recognised(shapes_of(state))
        assert layout is VAR
        model = instantiate_from_config(layout.config(shapes_of(state)))
        own = model.state_dict()
        listed = load_config([CONFIGS / "var_vae.yaml"]).model
        assert shapes_of(instantiate_from_config(listed).state_dict()) == shapes_of(own)
        assert shapes_of(VAR.to_model(state)) == shapes_of(own)
        written = VAR.from_model(own)
    kinds = {n: [list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in written.items()}
    assert kinds == manifest and len(manifest) == 324


def test_one_file_serves_512_pixels_with_the_documented_overrides() -> None:
    """Names and shapes are those of 256 pixels; without the last, attention is at no level."""
    text = " ".join((ROOT / "docs/multi-scale.md").read_text().split())
    scales = [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]
    assert f"`scales` are `{scales}`, `ddconfig.resolution` is 512, and " in text
    assert "`ddconfig.attn_resolutions` is `[32]`" in text
    section = load_config([CONFIGS / "var_vae.yaml"]).model

    def shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
        params = {**section.params, **changes}
        params["ddconfig"] = {**section.params.ddconfig, **changes.get("ddconfig", {})}
        with torch.device("meta"):
            model = instantiate_from_config({"target": section.target, "params": params})
        return dict(shapes_of(model.state_dict()))

    larger: dict[str, Any] = {"resolution": 512}
    own = shapes()
    assert shapes(scales=scales, ddconfig=larger) != own
    assert shapes(scales=scales, ddconfig={**larger, "attn_resolutions": [32]}) == own


@needs_tokenizers
@pytest.mark.slow
@torch.no_grad()
def test_full_size_numbers_of_weights_by_name() -> None:
    golden, spec = numbers_of("full_var")
    manifest = json.loads((TOKENIZERS / "manifest_var.json").read_text())["state_dict"]
    state = {n: golden_weight(n, torch.empty(s), spec["seed"]) for n, (s, _) in manifest.items()}
    state["quantize.ema_vocab_hit_SV"].zero_()
    model = built(state)

    generator = torch.Generator().manual_seed(spec["seed"] + crc32(b"x"))
    x = torch.randn(1, 3, 256, 256, generator=generator).tanh()
    assert_near(x[..., :4, :4], golden["x_corner"])
    latents = model.encoder(x)
    quant, _, (_, _, indices) = model.encode(x)
    decoded = model.decode(quant)
    assert torch.equal(indices, golden["indices"])
    values = {"enc": latents, "prequant": model.quant_conv(latents), "zq": quant}
    for name, value in values.items():
        assert_near(value[:, :4], golden[f"{name}_first4"])
        assert_near(value.flatten(2).norm(dim=2), golden[f"{name}_norms"])
    assert_near(decoded[..., :32, :32], golden["dec_top32"])
    assert_near(decoded[..., -32:, -32:], golden["dec_bottom32"])
    assert_near(torch.stack([decoded.mean(), decoded.std()]), golden["dec_mean_std"])


def test_any_number_of_scales_is_written(tmp_path: Path) -> None:
    """VAR's code is told the sides of the scales apart from its files."""
    config = first_stage_config(
        "taming.models.multi_scale.MultiScaleVQ", scales=[1, 3, 8], revive_after=2, lossconfig=None
    )
    model = build(config)
    to_layout(model, "var", tmp_path / "vae.pth")
    written = torch.load(tmp_path / "vae.pth")
    assert written.keys() == VAR.from_model(model.state_dict()).keys()
    assert written["quantize.ema_vocab_hit_SV"].shape == (3, 12)
    del config["params"]["revive_after"]
    (tmp_path / "own.yaml").write_text(json.dumps({"model": config}))
    again: Any = load_model(tmp_path / "vae.pth", base=[tmp_path / "own.yaml"])
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(again.encode_to_indices(x), model.eval().encode_to_indices(x))
    with pytest.raises(
        UserError, match="layout cannot hold this model, whose tensors lack quantize"
    ):
        to_layout(build(first_stage_config(lossconfig=None)), "var", tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"using_znorm": True}, "using_znorm true and VAR's layout means using_znorm false"),
        ({"quant_resi": 0.25}, "quant_resi 0.25 and VAR's layout means quant_resi 0.5"),
    ],
)
def test_what_vars_files_do_not_tell_is_not_exported(
    option: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network = {**first_stage_config()["params"]["ddconfig"], "resolution": 32}
    target = "taming.models.multi_scale.MultiScaleVQ"
    usual = build(first_stage_config(target, ddconfig=network, lossconfig=None))
    to_layout(usual, "var", tmp_path / "usual.pth")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    again: Any = load_model(tmp_path / "usual.pth")
    assert torch.equal(again(images)[0], usual.eval()(images)[0])
    scales = [1, 2, 3, 4, 5, 6, 7, 9, 12, 16]  # which its code is told apart
    to_layout(
        build(first_stage_config(target, ddconfig=network, lossconfig=None, scales=scales)),
        "var",
        tmp_path / "others.pth",
    )
    with pytest.raises(UserError, match=message):
        other = build(first_stage_config(target, ddconfig=network, lossconfig=None, **option))
        to_layout(other, "var", tmp_path / "x.pth")


def test_the_command_writes_averages_and_nothing_of_training(tmp_path: Path) -> None:
    config = first_stage_config(
        "taming.models.multi_scale.MultiScaleVQ", use_ema=True, revive_after=3
    )
    state = build(config).state_dict()
    averaged = {n: t + 1 if n.startswith("model_ema.") else t for n, t in state.items()}
    run = write_run(tmp_path / "run", config, averaged)
    export(["var", str(run), str(tmp_path / "vae.pth")])
    written = torch.load(tmp_path / "vae.pth")
    expected = VAR.from_model(state)
    assert written.keys() == expected.keys()
    assert not [n for n in written if n.startswith(("loss.", "model_ema.", "quantize.revival"))]
    assert torch.equal(written["encoder.conv_in.weight"], expected["encoder.conv_in.weight"] + 1)


def test_sizes_come_from_shapes() -> None:
    shapes = _shapes_of_phis({"quantize.quant_resi.qresi.weight": (8, 8, 3, 3)})
    assert VAR.config(shapes)["params"]["share_quant_resi"] == 1
    each = {f"quantize.quant_resi.{scale}.weight": (8, 8, 3, 3) for scale in range(10)}
    assert VAR.config(_shapes_of_phis(each))["params"]["share_quant_resi"] == 0
    assert VAR.config(_shapes_of_phis({}))["params"]["quant_resi"] == 0.0
    at_1024 = {**_shapes_of_phis({}), "quantize.ema_vocab_hit_SV": (14, 64)}
    assert VAR.config(at_1024)["params"]["ddconfig"]["resolution"] == 64
    unknown = {**_shapes_of_phis({}), "quantize.ema_vocab_hit_SV": (7, 64)}
    with pytest.raises(UserError, match="it has 7 scales, .* are 10 or 14; give a config"):
        VAR.config(unknown)


def _shapes_of_phis(phis: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of a network of one level around 64 codes of 8."""
    return {
        "encoder.conv_in.weight": (32, 3, 3, 3),
        "encoder.conv_out.weight": (8, 32, 3, 3),
        "encoder.down.0.block.0.conv1.weight": (32, 32, 3, 3),
        "encoder.mid.attn_1.norm.weight": (32,),
        "decoder.conv_in.weight": (32, 8, 3, 3),
        "decoder.conv_out.weight": (3, 32, 3, 3),
        "decoder.up.0.block.0.conv1.weight": (32, 32, 3, 3),
        "quantize.ema_vocab_hit_SV": (10, 64),
        "quantize.embedding.weight": (64, 8),
        "quant_conv.weight": (8, 8, 3, 3),
        **phis,
    }
