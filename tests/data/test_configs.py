from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from taming.config import load_config
from tests.kit.images import write_images
from tests.support import load_manifest

CONFIGS = Path(__file__).parents[2] / "configs"


def build(config: Any) -> Any:
    module, name = config.target.rsplit(".", 1)
    return getattr(import_module(module), name)(**config.params)


def test_custom_vqgan_is_the_published_model() -> None:
    config = OmegaConf.load(CONFIGS / "custom_vqgan.yaml")
    model = OmegaConf.to_container(config.model)
    assert model == load_manifest("config_custom_vqgan")[0]
    assert config.data.params.batch_size == 5


@pytest.mark.parametrize("name", ["custom_transformer", "class_transformer"])
def test_transformers_take_custom_vqgan_s_codes(name: str) -> None:
    config = load_config([CONFIGS / f"{name}.yaml"]).model.params
    first = OmegaConf.load(CONFIGS / "custom_vqgan.yaml").model.params
    first_stage = config.first_stage_config.params
    assert first_stage.ddconfig == first.ddconfig and first_stage.n_embed == first.n_embed
    assert OmegaConf.is_missing(first_stage, "ckpt_path")
    assert config.transformer_config.params.vocab_size >= first.n_embed
    assert config.transformer_config.params.block_size == 256


@pytest.mark.parametrize("name", ["custom_vqgan", "custom_transformer", "class_transformer"])
def test_data_sections_build_on_files_where_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "data/own", 3)
    for list_file in ("train", "test"):
        (tmp_path / f"data/own/{list_file}.txt").write_text("000.png\n001.png\n")
    for number in range(10):
        write_images(tmp_path / f"data/classes/{number}", 2)
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert config.lightning.trainer.max_steps > 0
    for split in ("train", "validation"):
        assert build(config.data.params[split])[0]["image"].shape == (256, 256, 3)
