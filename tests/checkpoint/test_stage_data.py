"""What a config leaves open is taken from the runs of its model's stages, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from taming.checkpoint import find_run, save_atomic
from taming.checkpoint.stage_data import complete_data, inherit_data

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
    assert inherit_data(config) == {run: ["data=..."]}
    taken = OmegaConf.to_container(config.data)
    assert taken == data(CUSTOM, **OWN, exif="ignore")  # as runs of that time were trained


def test_what_is_left_open_is_taken_from_the_same_class(run: Path) -> None:
    open_list = {"training_images_list_file": OPEN}
    config = over(run, data=data(CUSTOM, size="???", crop_size="???", **open_list))
    place = "data.params.train.params"
    assert inherit_data(config) == {
        run: [
            f"{place}.size=16",
            f"{place}.exif=ignore",  # that run's, which is of before that option
            f"{place}.training_images_list_file=mine.txt",
        ]
    }
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
        assert inherit_data(config) == {}
        assert OmegaConf.to_container(config.data) == section


PAIRED = "taming.data.paired.PairedTrain"


def paired(run: Path, kind: str) -> None:
    """Let a run be one of pairs."""
    params = {"images": "a", "conditions": "b", "kind": kind, "split_seed": 3, "suffix": "_x"}
    config = {"model": {"target": "x.First"}, "data": data(PAIRED, **params, size=99)}
    OmegaConf.save(OmegaConf.create(config), run / "configs/2021-project.yaml")


def test_how_files_are_divided_and_read_goes_with_their_places(run: Path) -> None:
    paired(run, "depth")
    left_open = {"images": "data/pairs/images", "kind": "depth", "suffix": ""}
    config = over(run, data=data(PAIRED, **left_open))
    place = "data.params.train.params"
    assert inherit_data(config) == {
        run: [f"{place}.images=a", f"{place}.exif=ignore", f"{place}.split_seed=3"]
    }
    assert config.data.params.train.params.suffix == ""  # somebody chose it


def test_pairs_of_another_kind_are_others(run: Path) -> None:
    paired(run, "depth")
    config = over(run, data=data(PAIRED, images="???", kind="segmentation"))
    assert inherit_data(config) == {}


def test_a_model_that_is_complete_stays_beside_a_run(run: Path) -> None:
    for n, expected in ((1, "x.Y"), ("???", "taming.models.vqgan.VQModel")):
        config = OmegaConf.create({"model": {"target": "x.Y", "params": {"n": n}}})
        config.data = data(CUSTOM, size=8, training_images_list_file=OPEN)
        complete_data(config, find_run(run))
        assert config.model.target == expected
        assert config.data.params.train.params.training_images_list_file == "mine.txt"


def test_lone_checkpoints_have_no_data(run: Path) -> None:
    Path("lone").mkdir()
    (run / "checkpoints/last.ckpt").rename("lone/lone.ckpt")
    assert inherit_data(over(Path("lone/lone.ckpt"))) == {}
