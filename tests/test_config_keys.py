"""Keys that nothing reads are refused, with the nearest path that means something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from taming.config import load_config
from taming.errors import UserError
from taming.training.cli import KEPT_FLAGS
from tests.kit.models import GAN_LOSS, ddconfig
from tests.support import ROOT

IMAGES = {"size": 8, "training_images_list_file": "x.txt"}
CONFIG: dict[str, Any] = {
    "model": {
        "base_learning_rate": 1e-4,
        "target": "taming.models.vqgan.VQModel",
        "params": {"embed_dim": 4, "ddconfig": ddconfig(), "lossconfig": GAN_LOSS},
    },
    "data": {
        "target": "main.DataModuleFromConfig",
        "params": {
            "batch_size": 2,
            "train": {"target": "taming.data.custom.CustomTrain", "params": IMAGES},
            "test": {"target": "taming.data.custom.CustomTrain", "params": IMAGES},
        },
    },
    "lightning": {
        "trainer": {"max_epochs": 1},
        "callbacks": {"image_logger": {"params": {"max_images": 2}}},
    },
}

NEAREST = [
    ("model.n_embed", "model.params.n_embed"),
    ("model.parms.n_embed", "model.params.n_embed"),
    ("model.param.n_embed", "model.params.n_embed"),
    ("model.ddconfig.ch", "model.params.ddconfig.ch"),
    ("model.ch_mult", "model.params.ddconfig.ch_mult"),
    ("model.base_learning_rat", "model.base_learning_rate"),
    ("model.params.lossconfig.disc_start", "model.params.lossconfig.params.disc_start"),
    ("model.params.lossconfig.parms.disc_start", "model.params.lossconfig.params.disc_start"),
    ("data.batch_size", "data.params.batch_size"),
    ("data.num_workers", "data.params.num_workers"),
    ("data.train.params.size", "data.params.train.params.size"),
    ("data.params.train.size", "data.params.train.params.size"),
    ("data.params.test.size", "data.params.test.params.size"),
    ("data.params.train.sise", "data.params.train.params.size"),
    ("data.params.train.param.size", "data.params.train.params.size"),
    ("lightning.trainr.max_steps", "lightning.trainer.max_steps"),
    ("lightning.max_steps", "lightning.trainer.max_steps"),
    ("lightning.callback.image_logger", "lightning.callbacks.image_logger"),
    ("lightning.image_logger.params.max_images", "lightning.callbacks.image_logger.params"),
    ("lightning.callbacks.image_logger.parms.x", "lightning.callbacks.image_logger.params.x"),
    ("lightning.callbacks.image_logger.max_images", "callbacks.image_logger.params.max_images"),
    ("lightning.callbacks.image_loger.params.max_images", "lightning.callbacks.image_logger."),
    ("lightning.callbacks.image_loger", "lightning.callbacks.image_logger"),
    ("lightning.callbacks.checkpoint.params.save_top_k", "lightning.callbacks.checkpoints."),
    ("lightning.modelcheckpoint.monitor", "lightning.modelcheckpoint.params.monitor"),
    ("lightning.modelcheckpoint.save_top_k", "lightning.modelcheckpoint.params.save_top_k"),
    ("lightning.logger.project", "lightning.logger.params.project"),
    ("lightning.modelcheckpoint.parms.save_top_k", "lightning.modelcheckpoint.params.save_top_k"),
    ("modle.params.n_embed", "model.params.n_embed"),
    ("trainer.max_steps", "lightning.trainer.max_steps"),
    ("batch_size", "data.params.batch_size"),
]


@pytest.mark.parametrize(("key", "nearest"), NEAREST)
@pytest.mark.parametrize("as_yaml", [False, True], ids=["override", "YAML"])
def test_the_nearest_path_is_named(tmp_path: Path, key: str, nearest: str, as_yaml: bool) -> None:
    OmegaConf.save(OmegaConf.create(CONFIG), tmp_path / "base.yaml")
    files, overrides = [tmp_path / "base.yaml"], [f"{key}=32"]
    if as_yaml:
        OmegaConf.save(OmegaConf.from_dotlist(overrides), tmp_path / "more.yaml")
        files, overrides = [*files, tmp_path / "more.yaml"], []
    with pytest.raises(UserError) as caught:
        load_config(files, overrides)
    message = str(caught.value)
    assert f"there is no key '{key}'" in message and f"{nearest}" in message.partition(";")[2]
    assert ("more.yaml" if as_yaml else f"{key}=32") in message


def test_what_is_possible_is_said_if_nothing_is_near(tmp_path: Path) -> None:
    OmegaConf.save(OmegaConf.create(CONFIG), tmp_path / "base.yaml")
    with pytest.raises(UserError, match="no key 'data.zzz'; known are target, params"):
        load_config([tmp_path / "base.yaml"], ["data.zzz=1"])


def test_keys_that_mean_something_are_taken(tmp_path: Path) -> None:
    OmegaConf.save(OmegaConf.create(CONFIG), tmp_path / "base.yaml")
    flags = [f"lightning.{name}={value}" for name, value in KEPT_FLAGS.items()]
    overrides = ["model.params.ddconfig.somebody_elses=1", "lightning.callbacks.x.target=a.b"]
    load_config([tmp_path / "base.yaml"], [*flags, *overrides])
    own = {"target": "own.Model", "params": {"part": {"target": "own.Part", "sise": 3}}}
    OmegaConf.save(OmegaConf.create({"model": own}), tmp_path / "own.yaml")
    load_config([tmp_path / "own.yaml"], ["model.params.part.more=1"])


def test_what_a_run_has_been_trained_with_stays_readable(tmp_path: Path) -> None:
    model = {**CONFIG["model"], "n_embed": 32}
    OmegaConf.save(OmegaConf.create({"model": model}), tmp_path / "old.yaml")
    assert load_config([], stored=[tmp_path / "old.yaml"]).model.n_embed == 32
    with pytest.raises(UserError, match="did you mean 'model.params.n_embed'"):
        load_config([tmp_path / "old.yaml"])
    OmegaConf.save(OmegaConf.create({"modle": model}), tmp_path / "other.yaml")
    with pytest.raises(UserError, match="there is no key 'modle.*did you mean 'model"):
        load_config([], stored=[tmp_path / "other.yaml"])


def test_all_configs_of_the_project_and_published_ones_are_taken(tmp_path: Path) -> None:
    for path in ROOT.glob("configs/*.yaml"):
        load_config([path])
    published = ROOT / "tests" / "golden" / "published_configs.json"
    for name, config in json.loads(published.read_text()).items():
        OmegaConf.save(OmegaConf.create(config), tmp_path / f"{name}.yaml")
        load_config([tmp_path / f"{name}.yaml"])
