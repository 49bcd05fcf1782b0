"""What files of weights say of the model that they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

import taming
from scripts.export import main as export
from scripts.extract_submodel import main as extract
from taming.checkpoint import find_run, run_as_stage
from taming.checkpoint.headers import NAME, section_in_header
from taming.errors import UserError
from taming.export.publishing import published_config, write_repository
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.vqvae.cosine import CosineQuantizer
from tests.kit.models import build, first_stage_config, unconditional_config
from tests.support import write_run

DUMMY = {"target": "taming.modules.losses.DummyLoss"}
COSINE = {
    "target": "taming.modules.vqvae.cosine.CosineQuantizer",
    "params": {"n_e": 12, "e_dim": 4},
}


def cosine_config() -> dict[str, Any]:
    return first_stage_config(n_embed=None, embed_dim=None, quantizer_config=COSINE)


def exported(folder: Path, config: dict[str, Any]) -> Path:
    run = write_run(folder / "run", config, build(config).state_dict())
    export(["safetensors", str(run), str(folder / "x.safetensors")])
    return folder / "x.safetensors"


def test_a_quantizer_that_shapes_do_not_tell_is_what_it_was(tmp_path: Path) -> None:
    file = exported(tmp_path, cosine_config())
    before, after = taming.load(tmp_path / "run"), taming.load(file)
    assert isinstance(after.quantize, CosineQuantizer)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(before.encode_to_indices(x), after.encode_to_indices(x))
    assert run_as_stage(file, "first_stage_config")["params"]["quantizer_config"] == COSINE


def test_a_header_holds_under_another_name_and_beside_another_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "apart").mkdir()
    file = exported(tmp_path, cosine_config()).rename(tmp_path / "apart" / "x.ckpt")
    assert isinstance(taming.load(file).quantize, CosineQuantizer)
    other = OmegaConf.create({"model": first_stage_config(n_embed=12)})
    OmegaConf.save(other, tmp_path / "apart" / "config.yaml")
    assert isinstance(taming.load(file).quantize, CosineQuantizer)
    assert f"another than {tmp_path}/apart/config.yaml beside it, which is left out" in caplog.text
    own = OmegaConf.create({"model": cosine_config(), "data": {"target": "a.B"}})
    OmegaConf.save(own, tmp_path / "apart" / "config.yaml")  # has more in it
    assert find_run(file).configs == (tmp_path / "apart" / "config.yaml",)


def test_a_header_of_before_is_of_the_same_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions wrote down whether training kept averages."""
    model = {**first_stage_config(), "params": {**first_stage_config()["params"], "use_ema": True}}
    header = {NAME: json.dumps({**model, "params": {**model["params"], "lossconfig": DUMMY}})}
    save_file(build(first_stage_config()).state_dict(), tmp_path / "x.safetensors", header)
    OmegaConf.save(OmegaConf.create({"model": model}), tmp_path / "config.yaml")
    taming.load(tmp_path / "x.safetensors")
    assert "another than" not in caplog.text


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_so_is_the_first_stage_of_a_transformer(name: str, tmp_path: Path) -> None:
    config = unconditional_config(first_stage_config=cosine_config())
    run, file = write_run(tmp_path / "run", config, build(config).state_dict()), tmp_path / name
    extract([str(run), str(file)])
    (tmp_path / "apart").mkdir()
    after = taming.load(file.rename(tmp_path / "apart" / name))
    assert isinstance(after.quantize, CosineQuantizer)
    before, x = taming.load(run).first_stage_model, torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(before.encode_to_indices(x), after.encode_to_indices(x))
    # From the whole model's file without the run, too.
    export(["safetensors", str(run), str(tmp_path / "apart" / "whole.safetensors")])
    extract([str(tmp_path / "apart" / "whole.safetensors"), str(file)])
    assert isinstance(taming.load(file).quantize, CosineQuantizer)


def test_a_transformer_without_its_stages_is_a_gpt(tmp_path: Path) -> None:
    config = unconditional_config()
    run = write_run(tmp_path / "run", config, build(config).state_dict())
    extract([str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "x.ckpt"), "transformer"])
    before, after = taming.load(run).transformer, taming.load(tmp_path / "x.ckpt")
    assert torch.equal(before(torch.zeros(1, 3).long())[0], after(torch.zeros(1, 3).long())[0])


def test_a_condition_by_the_first_stage_is_one(tmp_path: Path) -> None:
    config = unconditional_config(first_stage_config=cosine_config())
    config["params"] |= {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "image"}
    run = write_run(tmp_path / "run", config, build(config).state_dict())
    file = tmp_path / "x.safetensors"
    extract([str(run / "checkpoints" / "last.ckpt"), str(file), "cond_stage_model"])
    assert isinstance(taming.load(file).quantize, CosineQuantizer)


def test_a_config_beside_that_cannot_be_used_does_not_stop_an_extraction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = unconditional_config(first_stage_config=cosine_config())
    run = write_run(tmp_path / "run", config, build(config).state_dict())
    next(run.rglob("*.yaml")).write_text("data: {}")
    extract([str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "x.safetensors")])
    assert section_in_header(tmp_path / "x.safetensors") is None
    assert "does not say which model it is: the configs of" in caplog.text


def test_what_is_no_model_of_the_config_has_no_header(tmp_path: Path) -> None:
    config = first_stage_config()
    run = write_run(tmp_path / "run", config, build(config).state_dict())
    extract([str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "x.ckpt"), "encoder"])
    assert section_in_header(tmp_path / "x.ckpt") is None


def test_published_weights_say_it_without_the_config_beside_them(tmp_path: Path) -> None:
    config = cosine_config()
    write_run(tmp_path / "run", config, (model := build(config)).state_dict())
    stored = published_config(OmegaConf.create({"model": config}))
    write_repository(tmp_path / "repository", model, stored, "A card.")
    (tmp_path / "repository" / "config.yaml").unlink()
    assert isinstance(taming.load(tmp_path / "repository").quantize, CosineQuantizer)


def test_a_transformer_is_one_again(tmp_path: Path) -> None:
    after = taming.load(exported(tmp_path, unconditional_config()))
    assert isinstance(after, Net2NetTransformer)
    before = taming.load(tmp_path / "run").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.state_dict().items())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"target": "os.system", "params": {}},
            "model.target in the header of x.saf.* not trusted",
        ),
        ({"target": "taming.x.${oc.env:HOME}", "params": {}}, "calls a function"),
        ({"target": "taming.models.vqgan.VQModel", "params": 3}, "names no model"),
        (["taming"], "names no model; name its YAML with --base"),
        ("[[", "names no model; name its YAML with --base"),
    ],
)
def test_headers_are_trusted_as_little_as_configs(
    header: Any, message: str, tmp_path: Path
) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    state = {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)}
    path = tmp_path / "x.safetensors"
    save_file(state, path, {NAME: text})
    with pytest.raises(UserError, match=message) as caught:
        taming.load(path)
    torch.save({"state_dict": state, NAME: text}, path.with_suffix(".ckpt"))
    with pytest.raises(UserError, match=message.replace("saf.*", "ckpt.*")):
        taming.load(path.with_suffix(".ckpt"))
    assert "tmp" not in str(caught.value).replace(str(tmp_path), "")
