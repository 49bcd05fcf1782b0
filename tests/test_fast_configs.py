"""The YAMLs of configs/fast: options beside any config of their stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.models.training_options import SharedOptions, TrainingOptions
from tests.support import ROOT

FOLDER = ROOT / "configs" / "fast"
BESIDE = {
    "first_stage": ("custom_vqgan", "imagenet_gumbel_vqgan", "imagenet_multi_scale_vqgan"),
    "transformer": ("class_transformer", "digits_any_order_transformer"),
    "memory": ("custom_vqgan", "class_transformer"),
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
    if "lossconfig" in added:
        own, loss = added.lossconfig.params, params["lossconfig"]["params"]
        assert {key: loss[key] for key in own} == own and all(own.values())
    if "ddconfig" in params:
        params["lossconfig"]["params"] |= {"perceptual_weight": 0.0}
        params["ddconfig"] |= {"ch": 32, "num_res_blocks": 1}
    else:
        params["transformer_config"]["params"] |= {"n_layer": 1}
    model = instantiate_from_config({**config.model, "params": params}, "model", "module")
    assert all(getattr(model.ways, way) for way in options if way != "use_ema")


def test_each_option_of_training_first_stages_is_in_one_of_them() -> None:
    of_first_stages = [load_config([FOLDER / f"{name}.yaml"]) for name in ("first_stage", "memory")]
    named = {key for config in of_first_stages for key in config.model.params} - {"lossconfig"}
    assert named == {*TrainingOptions.__annotations__, *SharedOptions.__annotations__, "use_ema"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_its_command_is_of_files_that_are_there(path: Path) -> None:
    command = path.read_text("utf-8").splitlines()[1].removeprefix("#   python main.py ")
    words = command.split()
    assert words[:1] == ["--base"] and words[2] == f"configs/fast/{path.name}"
    assert (ROOT / words[1]).is_file() and "bf16-mixed" in words
