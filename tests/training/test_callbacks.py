"""Pictures beside training: when, of what, and where they go."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import default_collate

from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.errors import UserError
from taming.training import callbacks
from taming.training.callbacks import (
    ImageLogger,
    SetupCallback,
    _dataset,
    _first,
    class_names,
    scene_pictures,
)
from taming.training.data_module import DataModuleFromConfig, WrappedDataset
from taming.training.messages import set_up_messages
from tests.kit.scenes import OPTIONS, write_coco


def test_images_are_due_at_powers_of_two_and_every_so_often() -> None:
    logger = ImageLogger(batch_frequency=750, max_images=4)
    due = [step for step in range(1, 2300) if logger.check_frequency(step)]
    assert due == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 750, 1500, 2250]
    logger.increase_log_steps = False
    assert [step for step in range(1, 800) if logger.check_frequency(step)] == [750]


def test_pictures_follow_training_steps_and_begin_a_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback, calls = ImageLogger(batch_frequency=2, max_images=1), []
    monkeypatch.setattr(callback, "log_img", lambda *args: calls.append(args[2:]))
    trainer: Any = SimpleNamespace(global_step=0, sanity_checking=True)
    model: Any = None
    for step in range(4):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, model, None, {}, 7 + step)
    assert calls == [(8, "train"), (9, "train")]
    callback.on_validation_batch_end(trainer, model, None, {}, 0)
    trainer.sanity_checking = False
    for batch in range(3):
        callback.on_validation_batch_end(trainer, model, None, {}, batch)
    assert calls[2:] == [(0, "val")]


def test_pictures_are_made_once_a_step_of_several_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback, calls = ImageLogger(batch_frequency=2, max_images=1, increase_log_steps=False), []
    monkeypatch.setattr(callback, "log_img", lambda *args: calls.append(args[2]))
    trainer: Any = SimpleNamespace(global_step=0, sanity_checking=False)
    model: Any = None
    for batch in range(12):  # three make a step
        callback.on_train_batch_start(trainer, model, {}, batch)
        trainer.global_step += batch % 3 == 2
        callback.on_train_batch_end(trainer, model, None, {}, batch)
    assert calls == [5, 11]
    resumed = ImageLogger(batch_frequency=2, max_images=1)
    monkeypatch.setattr(resumed, "log_img", lambda *args: calls.append(args[2]))
    resumed.on_train_batch_start(trainer, model, {}, 12)
    resumed.on_train_batch_end(trainer, model, None, {}, 12)  # the step's are there
    assert calls == [5, 11]


class Shows(pl.LightningModule):
    """A model of somebody else's, which shows the images that it is given."""

    def log_images(self, batch: Any, **_: Any) -> dict[str, Tensor]:
        assert not self.training and not torch.is_grad_enabled()
        assert len(batch["image"]) <= 6  # the most that is asked for here
        return {"inputs": batch["image"]}


def logged(folder: Path, images: Tensor, loggers: list[Any], max_images: int) -> Image.Image:
    """The picture that the callback writes of a batch after step 1."""
    trainer: Any = SimpleNamespace(
        global_step=1,
        current_epoch=0,
        default_root_dir=str(folder),
        loggers=loggers,
        datamodule=None,
    )
    callback, model = ImageLogger(batch_frequency=750, max_images=max_images), Shows()
    batch = {"image": torch.cat((images, images))}  # more than are shown
    callback.on_train_batch_end(trainer, model, None, batch, 0)
    assert model.training
    return Image.open(folder / "images/train/inputs_gs-000001_e-000000_b-000000.png")


def test_pictures_stand_in_rows_of_four(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 3, 5, 7).clone()
    images[5, 0] = 3.0  # is cut to 1
    pixels = np.asarray(logged(tmp_path, images, [], max_images=6))
    assert pixels.shape == (2 * 7 + 2, 4 * 9 + 2, 3)
    for number, image in enumerate(images):
        top, left = 2 + 7 * (number // 4), 2 + 9 * (number % 4)
        expected = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
        assert np.array_equal(pixels[top : top + 5, left : left + 7], expected)
    assert not pixels[:2].any() and not pixels[9:, 20:].any()


def test_models_get_the_first_entries_alone() -> None:
    callback, seen = ImageLogger(1, max_images=2, clamp=False), []
    data = DataModuleFromConfig(1, num_workers=0)
    data.datasets = {"train": WrappedDataset("abc"), "validation": "de"}
    trainer: Any = SimpleNamespace(datamodule=data)
    assert (_dataset(trainer, "train"), _dataset(trainer, "val")) == ("abc", "de")

    class Keeps(Shows):
        def log_images(self, batch: Any, **options: Any) -> dict[str, Tensor]:
            seen.append((batch["names"], len(batch["image"]), options))
            return {"inputs": 3 * batch["image"]}

    batch = {"image": torch.ones(5, 3, 4, 4), "names": ["a", "b", "c", "d", "e"]}
    model = Keeps()
    pictures = callback._pictures(model, _first(batch, 2), "val")
    options = {"max_images": 2, "split": "val", "pl_module": model}
    assert seen == [(["a", "b"], 2, options)]
    assert pictures["inputs"].max() == 3
    images, names = _first((batch["image"], batch["names"]), 2)  # as datasets of tuples collate
    assert len(images) == 2 and names == ["a", "b"]
    assert [len(part) for part in _first({"x": [batch["image"]] * 3}, 2)["x"]] == [2, 2, 2]


def test_a_single_picture_has_no_border(tmp_path: Path) -> None:
    picture = logged(tmp_path, torch.zeros(3, 1, 5, 7), [], max_images=1)
    assert picture.size == (7, 5) and picture.mode == "RGB"


class Disturbed(nn.Module):
    """A model whose pictures are random, and whose forward passes in training leave traces."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def log_images(self, batch: Any, **_: Any) -> dict[str, Tensor]:
        shown = self.dropout(self.norm(batch["image"])) * self.weight
        assert not shown.requires_grad
        return {"inputs": shown + torch.randn(shown.shape)}


def test_pictures_leave_training_as_it_is() -> None:
    model: Any = Disturbed()
    batch = {"image": torch.randn(2, 3, 4, 4)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        pictures = ImageLogger(1, max_images=1)._pictures(model, batch, "train")
        assert model.training is model.norm.training is training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert len(pictures["inputs"]) == 1 and pictures["inputs"].abs().max() <= 1


def test_pictures_of_a_gpu_leave_the_other_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = Disturbed()
    batch = {"image": torch.randn(2, 3, 4, 4)}
    touched: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", touched.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: touched.append(device))
    ImageLogger(1, max_images=1)._pictures(model, batch, "train")
    assert touched == [2, 2]
    touched.clear()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    ImageLogger(1, max_images=1)._pictures(model, batch, "train")
    assert touched == []


def test_pictures_go_to_the_loggers_that_take_them(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    wandb = Mock(spec=WandbLogger)
    loggers = [board, wandb, CSVLogger(tmp_path)]
    picture = logged(tmp_path, torch.zeros(2, 3, 8, 8), loggers, max_images=2)
    [call] = wandb.log_image.call_args_list
    assert picture.size == (2 * 10 + 2, 12)
    assert call.kwargs["key"] == "train/inputs" and call.kwargs["step"] == 1
    assert np.array_equal(np.asarray(call.kwargs["images"][0]), np.asarray(picture))
    board.experiment.flush()
    [events] = Path(board.log_dir).glob("events*")
    assert b"train/inputs" in events.read_bytes()


def test_models_that_show_nothing_are_left_alone(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(global_step=1, default_root_dir=str(tmp_path))
    callback = ImageLogger(batch_frequency=1, max_images=1)
    callback.on_train_batch_end(trainer, pl.LightningModule(), None, {}, 0)
    assert not list(tmp_path.iterdir())


def test_scenes_are_drawn_as_their_builder_draws_them(tmp_path: Path) -> None:
    keys = ["image", "objects_bbox", "objects_center_points"]
    dataset = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **(OPTIONS | {"keys": keys}))
    batch = default_collate([dataset[0], dataset[0]])
    for key in keys[1:]:
        pictures = scene_pictures(dataset, batch, key, (48, 64))["conditioning"]
        assert pictures.shape == (2, 3, 48, 64) and pictures.min() >= -1 and pictures.max() == 1
        builder = dataset.conditional_builders[key]
        names = dataset.get_textual_label_for_category_no
        assert torch.equal(pictures[0], builder.plot(batch[key][0], names, (64, 48), 1))
        assert (pictures[0] < 1).any()


def test_other_conditions_have_no_scene(tmp_path: Path) -> None:
    dataset = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **OPTIONS)
    assert scene_pictures(dataset, {"image": torch.zeros(1)}, "image", (8, 8)) == {}
    assert scene_pictures([], {"class_label": torch.zeros(1)}, "class_label", (8, 8)) == {}


def test_subclasses_write_and_choose_pictures_themselves(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Own(ImageLogger):
        def check_frequency(self, step: int) -> bool:
            return step == 3

        def log_img(self, pl_module: Any, batch: Any, batch_idx: int, split: str = "train") -> None:
            seen.append(split)
            super().log_img(pl_module, batch, batch_idx, split)

        def log_local(self, save_dir: Any, split: str, images: Any, *place: int) -> None:
            seen.append((save_dir, sorted(images), *place))

    places = {"current_epoch": 2, "default_root_dir": str(tmp_path), "loggers": []}
    callback, batch = Own(batch_frequency=750, max_images=1), {"image": torch.zeros(2, 3, 8, 8)}
    for step in (2, 3):
        trainer: Any = SimpleNamespace(
            global_step=step, datamodule=None, sanity_checking=False, **places
        )
        callback.on_train_batch_end(trainer, Shows(), None, batch, 7)
    callback.on_validation_batch_end(trainer, Shows(), None, batch, 0)
    written = (str(tmp_path), ["inputs"])
    assert seen == ["train", (*written, 3, 2, 7), "val", (*written, 3, 2, 0)]


def test_a_start_makes_folders_and_trusts_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: list[Path] = []
    monkeypatch.setattr(callbacks.trust, "remember", trusted.extend)
    run, config = tmp_path / "run", OmegaConf.create({"a": 1})
    left = run / "checkpoints" / ".last.ckpt.4194304.partial"  # no process has such a number
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    folders = run, run / "checkpoints", run / "configs"
    SetupCallback(None, "now", *folders, config, config).on_fit_start(Mock(), Mock())
    written = [run / "configs" / f"now-{name}.yaml" for name in ("project", "lightning")]
    assert trusted == written == sorted(run.glob("configs/*"), reverse=True)
    assert [path.read_text() for path in written] == ["a: 1\n", "lightning:\n  a: 1\n"]
    assert not left.exists()


def test_a_picture_that_cannot_be_written_leaves_no_part_of_it(tmp_path: Path) -> None:
    class Picture:
        def save(self, path: Path, **_: Any) -> None:
            path.write_bytes(b"part")
            assert not (tmp_path / "images" / "x.png").exists()  # nor if the process is killed now
            raise OSError("full")

    picture: Any = Picture()
    with pytest.raises(UserError, match="cannot write .*x.png .*full"):
        callbacks._save(picture, tmp_path / "images" / "x.png")
    assert not list((tmp_path / "images").iterdir())


def test_subclasses_add_to_the_start_of_a_run(tmp_path: Path) -> None:
    class Own(SetupCallback):
        def on_pretrain_routine_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_pretrain_routine_start(trainer, pl_module)
            Path(self.logdir, "own").touch()

    folders = [tmp_path / "run", tmp_path / "run/checkpoints", tmp_path / "run/configs"]
    config = OmegaConf.create({"model": 1})
    Own(None, "now", *folders, config=config, lightning_config=config).on_fit_start(Mock(), Mock())
    assert (folders[0] / "own").is_file() and folders[1].is_dir()
    assert OmegaConf.load(folders[2] / "now-project.yaml") == config


class Reconstructs(Shows):
    def log_images(self, batch: Any, **_: Any) -> dict[str, Tensor]:
        return {"inputs": batch["image"], "reconstructions": -batch["image"]}


def test_a_batch_stands_side_by_side_enlarged_and_named(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        global_step=1,
        current_epoch=0,
        default_root_dir=str(tmp_path),
        loggers=[],
        datamodule=None,
    )
    images = torch.stack([torch.full((3, 8, 8), value) for value in (-0.5, 0.2)])
    for batch in ({"human_label": ["dalmatian", "tabby"]}, {"class_label": torch.tensor([3, 4])}):
        callback = ImageLogger(batch_frequency=750, max_images=2)
        callback.on_train_batch_end(trainer, Reconstructs(), None, {"image": images, **batch}, 0)
        place = tmp_path / "images/train/side_by_side_gs-000001_e-000000_b-000000.png"
        page = np.asarray(Image.open(place))
        # Two columns and two rows of 8 x 8 pixels, 32 times as large, below titles and names.
        grays = [(round((value + 1) * 127.5), 256 * 256) for value in (-0.5, 0.5, 0.2, -0.2)]
        for gray, pixels in grays:
            assert (page == gray).all(axis=2).sum() >= pixels
        dark_rows = (page < 60).any(axis=(1, 2))
        assert dark_rows[:22].any()  # the titles
        assert dark_rows[22 + 8 : 22 + 8 + 18].any()  # the first name
    assert class_names({"class_label": torch.tensor([3])}) == ["class 3"]
    assert class_names({"human_label": ["tabby"]}) == ["tabby"] and class_names([]) == []


def test_saves_by_steps_of_first_stages_are_no_warning(tmp_path: Path) -> None:
    """Lightning says in 20 lines that a manual step has been made before the save: so it shall."""
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=0)
    trainer: Any = Mock(global_step=1, current_epoch=0, is_global_zero=True)
    trainer.callback_metrics = {}
    callback._should_skip_saving_checkpoint = lambda _: False  # type: ignore[method-assign]
    model: Any = SimpleNamespace(automatic_optimization=False)
    with warnings.catch_warnings(record=True) as caught:
        for expected in (1, 1):
            callback.on_train_batch_end(trainer, model, None, {}, 0)
            assert len(caught) == expected
            set_up_messages()
