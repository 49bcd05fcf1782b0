"""What a config leaves open is taken from the runs of its model's stages, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from taming.checkpoint import save_atomic
from taming.checkpoint.stage_data import inherit_data

CUSTOM = "taming.data.custom.CustomTrain"
OPEN = "data/own/train.txt"  # of our YAMLs
OWN = {"size": 16, "training_images_list_file": "mine.txt", "crop_size": "???"}


def data(target: str, **params: Any) -> dict[str, Any]:
    section = {"target": target, "params": params}
    return {"target": "main.DataModuleFromConfig", "params": {"batch_size": 2, "train": section}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A first stage's, whose config leaves something open itself."""
    monkeypatch.chdir(tmp_path)
    folder = Path("logs/first")
    save_atomic({"state_dict": {"w": torch.ones(1)}}, folder / "checkpoints/last.ckpt")
    (folder / "configs").mkdir()
    config = {"model": {"target": "taming.models.vqgan.VQModel"}, "data": data(CUSTOM, **OWN)}
    OmegaConf.save(OmegaConf.create(config), folder / "configs/2021-project.yaml")
    return folder


def over(run: Path, **sections: Any) -> DictConfig:
    """A transformer's config over a run's first stage."""
    stage = {"target": "taming.models.vqgan.VQModel", "params": {"ckpt_path": str(run)}}
    model = {"target": "x.Y", "params": {"first_stage_config": stage}}
    return OmegaConf.create({"model": model, **sections})


def test_without_data_all_of_the_runs_are_taken(run: Path) -> None:
    config = over(run)
    assert inherit_data(config) == ["data=... from logs/first"]
    taken = OmegaConf.to_container(config.data)
    assert taken == data(CUSTOM, **OWN, exif="ignore")  # as runs of that time were trained


def test_what_is_left_open_is_taken_from_the_same_class(run: Path) -> None:
    open_list = {"training_images_list_file": OPEN}
    config = over(run, data=data(CUSTOM, size="???", crop_size="???", **open_list))
    place = "data.params.train.params"
    assert inherit_data(config) == [
        f"{place}.size=16 from logs/first",
        f"{place}.exif=ignore from logs/first",  # that run's, which is of before that option
        f"{place}.training_images_list_file=mine.txt from logs/first",
    ]
    params = config.data.params.train.params
    assert (params.size, params.training_images_list_file) == (16, "mine.txt")
    assert OmegaConf.is_missing(params, "crop_size")


def test_what_somebody_chose_or_another_class_has_stays(run: Path) -> None:
    others = (
        data("taming.data.custom.CustomTest", size="???"),
        data(CUSTOM, size=8, training_images_list_file="own.txt"),
        data(CUSTOM, training_images_list_file=OPEN),
    )
    Path(OPEN).parent.mkdir(parents=True)
    Path(OPEN).touch()  # the user's, where the YAML looks for it
    for section in others:
        config = over(run, data=section)
        assert inherit_data(config) == []
        assert OmegaConf.to_container(config.data) == section
