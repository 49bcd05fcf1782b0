"""The YAMLs in configs/ against the published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from taming.config import load_config
from taming.config_files import STAGES
from tests.support import load_manifest

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
BATCH_SIZES = {
    "custom_vqgan": 5,
    "faceshq_vqgan": 3,
    "faceshq_transformer": 2,
    "imagenet_vqgan": 12,
    "imagenetdepth_vqgan": 3,
    "drin_transformer": 2,
    "coco_cond_stage": 12,
    "sflckr_cond_stage": 12,
    "coco_scene_images_transformer": 6,
    "open_images_scene_images_transformer": 6,
}
CHECKPOINTS = {  # published models and the config of the same architecture
    "cin_transformer": "cin_transformer",
    "ffhq_transformer_unconditional": "ffhq_transformer",
    "ade20k_transformer": "ade20k_transformer",
    "coco_transformer": "coco_transformer",
    "sflckr_transformer": "sflckr_transformer",
    "vqgan_gumbel_f8_8192": "imagenet_gumbel_vqgan",
}


def load(name: str) -> DictConfig:
    return load_config([CONFIGS / f"{name}.yaml"])


def architecture(node: Any) -> Any:
    """A model's config without checkpoints, losses and the learning rate."""
    if not isinstance(node, dict):
        return node
    left_out = ("ckpt_path", "lossconfig", "base_learning_rate")
    return {key: architecture(value) for key, value in node.items() if key not in left_out}


def without_image_keys(model: Any) -> Any:
    """A model's config without what its stages would read of batches, which only training needs."""
    for key in STAGES:
        if isinstance(stage := model["params"].get(key), dict):
            stage["params"].pop("image_key", None)
    return model


@pytest.mark.parametrize("name", BATCH_SIZES)
def test_published_configs(name: str) -> None:
    config = load(name)
    model, published = OmegaConf.to_container(config.model), load_manifest(f"config_{name}")[0]
    assert without_image_keys(model) == without_image_keys(published)
    assert config.data.params.batch_size == BATCH_SIZES[name]


@pytest.mark.parametrize("published", CHECKPOINTS)
def test_configs_of_published_models(published: str) -> None:
    model = OmegaConf.to_container(load(CHECKPOINTS[published]).model)
    assert architecture(model) == architecture(load_manifest(published)[0])


@pytest.mark.parametrize("name", ALL)
def test_every_config_says_how_long_it_runs(name: str) -> None:
    config = load(name)
    assert config.lightning.trainer.max_steps > 0
    assert config.model.base_learning_rate > 0 and config.data.target == "main.DataModuleFromConfig"
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("transformer")])
def test_sequences_fit(name: str) -> None:
    params = load(name).model.params
    gpt, first = params.transformer_config.params, params.first_stage_config.params
    assert gpt.vocab_size >= first.n_embed and gpt.n_embd % gpt.n_head == 0
    condition = params.cond_stage_config
    if isinstance(condition, str):
        assert condition in ("__is_unconditional__", "__is_first_stage__")
        assert params.get("unconditional", False) == (condition == "__is_unconditional__")
    elif "n_embed" in condition.params:
        assert gpt.vocab_size >= condition.params.n_embed


def test_networks_of_stages_are_written_once() -> None:
    for name in ALL:
        if name.endswith("transformer"):
            assert "ddconfig" not in (CONFIGS / f"{name}.yaml").read_text(), name


def test_every_key_is_explained_somewhere() -> None:
    explained: dict[str, bool] = {}
    for name in ALL:
        before = ""
        for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
            key, colon, rest = line.strip().partition(":")
            if colon and not key.startswith("#"):
                told = "#" in rest or before.strip().startswith("#")
                explained[key] = explained.get(key, False) or told
            before = line
    assert not [key for key, told in explained.items() if not told]
