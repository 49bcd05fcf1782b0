"""`taming.load`: models by run, checkpoint and published name."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import taming
from taming.checkpoint import save_atomic
from taming.checkpoint.hub import params_from_diffusers
from taming.errors import UserError
from taming.export.diffusers import from_diffusers, to_diffusers
from taming.export.weights import save_weights
from taming.pretrained import published_models
from taming.trust import trusting
from tests.kit.datasets import images
from tests.kit.models import VQGAN, build, first_stage_config, unconditional_config
from tests.support import write_run

NAME = "vqgan_imagenet_f16_16384"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_importing_the_package_imports_no_framework() -> None:
    code = "import sys, taming; print({'torch', 'pytorch_lightning'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_runs_and_checkpoints_of_both_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_run(Path("logs/first"), first_stage_config()) / "checkpoints" / "last.ckpt"
    write_run(Path("logs/second"), unconditional_config())
    x = images(2).permute(0, 3, 1, 2)
    for path in ("logs/first", checkpoint, "logs/second"):
        model = taming.load(path)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        indices = model.encode_to_indices(x)
        assert indices.shape == (2, 8, 8) and model.decode_indices(indices).shape == x.shape
    monkeypatch.setenv("HOME", str(tmp_path))
    first, again = taming.load("~/logs/first"), taming.load(checkpoint)
    assert torch.equal(first.encode_to_indices(x), again.encode_to_indices(x))
    start = torch.zeros(1, 0, dtype=torch.long)
    sampled = model.sample(start, torch.zeros(1, 1, dtype=torch.long), steps=3)
    assert sampled.shape == (1, 3)


# ---------------------------------------------------------------------- as others save models


def hub_folder(folder: Path, kind: str) -> tuple[Path, Any]:
    """A folder of a hub, and the model in it."""
    model = build(first_stage_config(lossconfig=None)).eval()
    folder.mkdir()
    params = first_stage_config()["params"]
    if kind == "diffusers":
        to_diffusers(model, params["ddconfig"], folder)
        return folder, model
    ddconfig, sizes = params["ddconfig"], {"n_embed": 12, "embed_dim": 4}
    config: dict[str, Any] = {
        "mixin": {"ddconfig": ddconfig, **sizes, "lossconfig": {"target": "evil.Loss"}},
        "flat": {"model_type": "VQModel", "resamp_with_conv": True, **ddconfig, **sizes},
        "sections": {"model": {**first_stage_config(), "params": {**params, "lossconfig": None}}},
        "yaml": {},
    }[kind]
    if kind == "yaml":
        OmegaConf.save({"model": first_stage_config()}, folder / "vqgan.yaml")
    else:
        (folder / "config.json").write_text(json.dumps(config))
    save_weights(model.state_dict(), folder / "model.safetensors")
    return folder, model


@pytest.mark.parametrize("kind", ["diffusers", "mixin", "flat", "sections", "yaml"])
def test_folders_of_hubs(kind: str) -> None:
    folder, expected = hub_folder(Path("hub"), kind)
    model = taming.load(folder)
    assert {n for n in model.state_dict() if "loss" not in n} == expected.state_dict().keys()
    x = images(2).permute(0, 3, 1, 2)
    assert torch.equal(model(x)[0], expected(x)[0])
    if kind in ("diffusers", "mixin", "flat"):
        other = taming.load(folder, overrides=["model.params.ddconfig.dropout=0.5"])
        assert other.encoder.mid.block_1.dropout.p == 0.5
    if kind == "diffusers":  # its weights alone, with a config of ours
        OmegaConf.save({"model": first_stage_config()}, "own.yaml")
        lone = Path("diffusion_pytorch_model.safetensors")
        (folder / lone).rename(lone)
        assert torch.equal(taming.load(lone, base=["own.yaml"])(x)[0], expected(x)[0])


def test_a_quantizer_that_a_hubs_config_names_is_no_other_one() -> None:
    folder, _ = hub_folder(Path("hub"), "mixin")
    config = json.loads((folder / "config.json").read_text())
    config["quantizer_config"] = {"target": "evil.Codes", "params": {"n_e": 12, "e_dim": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has a quantizer_config, .* with --base"):
        taming.load(folder)
    OmegaConf.save({"model": first_stage_config()}, "own.yaml")
    assert type(taming.load(folder, base=["own.yaml"]).quantize).__name__ == "VectorQuantizer2"


def test_other_folders_of_hubs_are_refused() -> None:
    folder, _ = hub_folder(Path("hub"), "flat")
    for content, message in (
        ({"_class_name": "AutoencoderKL"}, "config.json is of AutoencoderKL, not of a VQModel"),
        ({"_class_name": "VQModel"}, "config.json is no complete config of a VQModel"),
        ({"_class_name": "VQModel", "norm_type": "spatial"}, "only group normalization"),
        ({"_class_name": "VQModel", "act_fn": "relu"}, "act_fn is relu, and only silu has"),
        ([1], "config.json cannot be read as a model's config"),
        ({"model": {"target": "evil.Model"}}, "evil.Model is not trusted"),
    ):
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            taming.load(folder)


def test_what_diffusers_says_of_a_model() -> None:
    config = {
        "block_out_channels": [64, 64, 256],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"] * 2,
        "sample_size": 48,
        "num_vq_embeddings": 99,
        "latent_channels": 5,
        "in_channels": 1,
        "out_channels": 3,
        "layers_per_block": 4,
    }
    params = params_from_diffusers(config, Path("config.json"))
    ddconfig = {"double_z": False, "z_channels": 5, "resolution": 48, "in_channels": 1, "out_ch": 3}
    ddconfig |= {"ch": 64, "ch_mult": [1, 1, 4], "num_res_blocks": 4, "attn_resolutions": [24]}
    assert params == {"n_embed": 99, "embed_dim": 5, "ddconfig": {**ddconfig, "dropout": 0.0}}
    assert params_from_diffusers(config | {"vq_embed_dim": 7}, Path("x"))["embed_dim"] == 7
    grouped = params_from_diffusers(config | {"norm_num_groups": 8}, Path("x"))
    assert grouped["ddconfig"] == {**ddconfig, "dropout": 0.0, "norm_groups": 8}


def test_other_groups_of_normalization_go_out_to_diffusers_and_come_back(tmp_path: Path) -> None:
    network = {**first_stage_config()["params"]["ddconfig"], "norm_groups": 8}
    model = build(first_stage_config(ddconfig=network, lossconfig=None)).eval()
    to_diffusers(model, network, tmp_path / "out")
    x = images(2).permute(0, 3, 1, 2)
    from_diffusers(tmp_path / "out", tmp_path / "run")
    for place in ("out", "run"):
        assert torch.equal(taming.load(tmp_path / place)(x)[0], model(x)[0])


def test_averages_parts_and_prefixes(caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(Path("logs/run"), first_stage_config())
    raw, average = (build(first_stage_config()).state_dict() for _ in range(2))
    average = {name: tensor + 1 for name, tensor in average.items()}
    content = {"model": raw, "ema": {f"module.{n}": t for n, t in average.items()}}
    torch.save(content, run / "checkpoints" / "last.ckpt")
    name = "encoder.conv_in.weight"
    assert torch.equal(taming.load("logs/run").state_dict()[name], average[name])
    assert "the moving average 'ema' (--weights raw takes 'model')" in caplog.text
    assert torch.equal(taming.load("logs/run", weights="raw").state_dict()[name], raw[name])
    torch.save({n: t for n, t in raw.items() if n.startswith("encoder.")}, "encoder.pt")
    base = [run / "configs" / "2021-project.yaml"]
    with pytest.raises(UserError, match=r"decoder: .* missing.*\(in Python: parts=\['encoder'\]\)"):
        taming.load("encoder.pt", base=base)
    model = taming.load("encoder.pt", base=base, parts=["encoder"])
    assert torch.equal(model.state_dict()[name], raw[name])
    assert model.decoder.conv_in.weight.std() > 0.01  # its initial values, not none


@pytest.mark.parametrize("target", ["VQModel", "VQModelInterface"])
def test_first_stages_of_latent_diffusion(target: str) -> None:
    """Their configs name a loss of another package, which using them does not need."""
    config = first_stage_config(use_ema=True, lr_g_factor=2.0)
    state = build(config).state_dict()
    loss = {"target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
    config["target"], config["params"]["lossconfig"] = f"ldm.models.autoencoder.{target}", loss
    run = write_run(Path("logs/ldm"), config, state)
    with trusting(["ldm"]):
        assert type(taming.load(run).loss).__name__ == "MissingLoss"
    model = taming.load(run)
    x = images(2).permute(0, 3, 1, 2)
    assert model.decode_indices(model.encode_to_indices(x)).shape == x.shape
    assert torch.equal(
        model.state_dict()["encoder.conv_in.weight"], state["encoder.conv_in.weight"]
    )


def test_a_published_name_is_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "server", first_stage_config())
    served = [run / "checkpoints" / "last.ckpt", run / "configs" / "2021-project.yaml"]
    addresses = tuple(path.as_uri() for path in served)
    local = replace(published_models()[NAME], addresses=addresses)
    monkeypatch.setattr("taming.model_loading.published_models", lambda: {NAME: local})
    with pytest.raises(UserError, match=f"{NAME} is not in logs/.*download=True"):
        taming.load(NAME, download=False)
    first = taming.load(NAME)
    assert Path("logs", NAME, "last.ckpt").is_file()
    served[0].unlink()
    again = taming.load(NAME, download=False)
    assert torch.equal(first.encoder.conv_in.weight, again.encoder.conv_in.weight)


def test_a_published_model_that_was_put_there_by_hand() -> None:
    write_run(Path("logs", NAME), first_stage_config())
    assert taming.load(NAME, download=False).quantize.n_e == 12
    config = unconditional_config()
    state = build(config).state_dict()
    config["params"]["first_stage_config"] = NAME
    write_run(Path("logs/run"), config, state)
    assert taming.load("logs/run").first_stage_model.quantize.n_e == 12


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("logs/2021-01-01T00-00-00_birdz", "logs/2021-01-01T00-00-00_birds"),
        ("birds", "logs/2021-01-01T00-00-00_birds"),
        ("logs/bird", "logs/2021-01-01T00-00-00_birds"),
        ("logs/2021-01-01T00-00-00_bird/checkpoints/last.ckpt", "logs/2021-01-01T00-00-00_birds"),
        ("vqgan_imagenet_f16_1638", NAME),
        (f"logs/{NAME}", NAME),
    ],
)
def test_what_does_not_exist_names_the_nearest(path: str, nearest: str) -> None:
    write_run(Path("logs/2021-01-01T00-00-00_birds"), first_stage_config())
    with pytest.raises(UserError) as caught:
        taming.load(path)
    assert str(caught.value) == (
        f"there is no run, checkpoint or published model '{path}'; did you mean '{nearest}'?"
    )


def test_nothing_like_it() -> None:
    with pytest.raises(UserError, match="published model 'xyz'$"):
        taming.load("xyz")


def test_a_lone_checkpoint_needs_its_config(tmp_path: Path) -> None:
    """Unless its tensors tell what it is, as those of a VQModel do, but not what is averaged."""
    config = first_stage_config(VQGAN + "EMAVQ")
    save_atomic({"state_dict": build(config).state_dict()}, "a.ckpt")
    with pytest.raises(UserError, match=r"name its YAML with --base \(in Python: base="):
        taming.load("a.ckpt")
    OmegaConf.save({"model": config}, "own.yaml")
    assert taming.load("a.ckpt", base=["own.yaml"]).quantize.n_e == 12
    with pytest.raises(UserError, match="n_embed is 13, but 12 in the checkpoint"):
        taming.load("a.ckpt", base=["own.yaml"], overrides=["model.params.n_embed=13"])


def test_the_device_is_chosen_by_name() -> None:
    write_run(Path("logs/first"), first_stage_config())
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(taming.load("logs/first", device="auto").parameters()).device.type == expected
    with pytest.raises(UserError, match="no device 'cuda:77'"):
        taming.load("logs/first", device="cuda:77")
