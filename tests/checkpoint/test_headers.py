"""What an exported file of safetensors says of the model that its weights belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import taming
from scripts.export import main as export
from taming.checkpoint import run_as_stage
from taming.checkpoint.headers import NAME
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.vqvae.cosine import CosineQuantizer
from tests.kit.models import build, first_stage_config, unconditional_config
from tests.support import write_run

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
    save_file(state, tmp_path / "x.safetensors", {NAME: text})
    with pytest.raises(UserError, match=message) as caught:
        taming.load(tmp_path / "x.safetensors")
    assert "tmp" not in str(caught.value).replace(str(tmp_path), "")
