"""The YAMLs of configs/fast: options beside any config of their stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from tests.support import ROOT

FOLDER = ROOT / "configs" / "fast"
BESIDE = {
    "first_stage": ("custom_vqgan", "imagenet_gumbel_vqgan", "imagenet_multi_scale_vqgan"),
    "transformer": ("class_transformer", "digits_any_order_transformer"),
}


@pytest.mark.parametrize(
    ("name", "other"), [(name, other) for name, others in BESIDE.items() for other in others]
)
def test_each_of_their_options_is_on_beside_a_config(name: str, other: str) -> None:
    path = FOLDER / f"{name}.yaml"
    added = load_config([path]).model.params
    config = load_config([ROOT / "configs" / f"{other}.yaml", path])
    params = without_checkpoint_paths(config.model)["params"]
    options = {key: value for key, value in added.items() if key != "lossconfig"}
    assert {key: params[key] for key in options} == options and all(options.values())
    if name == "first_stage":
        own, loss = added.lossconfig.params, params["lossconfig"]["params"]
        assert {key: loss[key] for key in own} == own and all(own.values())
        loss |= {"perceptual_weight": 0.0}
        params["ddconfig"] |= {"ch": 32, "num_res_blocks": 1}
    else:
        params["transformer_config"]["params"] |= {"n_layer": 1}
    model = instantiate_from_config({**config.model, "params": params}, "model", "module")
    ways = ("compile", "fused_optimizer", "channels_last", "reuse_reconstruction")
    assert all(getattr(model.ways, way, True) for way in ways)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_its_command_is_of_files_that_are_there(path: Path) -> None:
    command = path.read_text("utf-8").splitlines()[1].removeprefix("#   python main.py ")
    words = command.split()
    assert words[:1] == ["--base"] and words[2] == f"configs/fast/{path.name}"
    assert (ROOT / words[1]).is_file() and "bf16-mixed" in words
