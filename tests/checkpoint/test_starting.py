"""Models that start from files: what subclasses add after their base's constructor loads, too."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taming
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.dalle import DalleVAE
from taming.models.vqgan import VQModel
from taming.modules.losses.base import DummyLoss
from taming.training.run_folder import check_resumable
from tests.kit.models import DALLE, FIRST_STAGE, SEGMENTATION, build, transformer_config
from tests.kit.runs import tiny_run

HERE = "tests.checkpoint.test_starting."


class More(VQModel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters()  # those of subclasses, too
        self.extra = nn.Linear(2, 2)


class Further(More):
    """Without a constructor of its own."""


class Last(Further):
    def __init__(self, width: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last = nn.Linear(width, 2)


class Mixin:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixed = nn.Linear(2, 2)


class Mixed(Mixin, VQModel):
    pass


class Replaced(VQModel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)


class Renaming(More):
    """Reads the file by a way of its own, which needs what was added."""

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        self.heard = [*getattr(self, "heard", []), self.extra.weight.shape]
        super().init_from_ckpt(path, ignore_keys)


class Configured(VQModel):
    """Adds a module in Lightning's hook, which is called more than once."""

    def configure_model(self) -> None:
        if not hasattr(self, "added"):
            self.added = nn.Linear(2, 2)


class Averaging(VQModel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ema_encoder = copy.deepcopy(self.encoder)


class Wide(Net2NetTransformer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = nn.Linear(2, 2)


class Dalle(DalleVAE):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = nn.Linear(2, 2)


def config_of(cls: type) -> dict[str, Any]:
    config = {Wide: transformer_config(), Dalle: DALLE}.get(cls, FIRST_STAGE)
    return {**config, "target": HERE + cls.__name__}


def saved(folder: Path, cls: type) -> tuple[Path, dict[str, Tensor]]:
    """A run of a class, with seeded weights, and these."""
    run = tiny_run(folder, config_of(cls))
    model = build(config_of(cls))
    model.configure_model() if isinstance(model, Configured) else None
    weights = dict(model.named_parameters())  # buffers share memory, as masks do
    state = {k: torch.randn_like(v) if k in weights else v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 7}, run / "checkpoints" / "last.ckpt")
    return run, state


def assert_loaded(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert [name for name in own if not torch.equal(own[name], state[name])] == []


KINDS = [More, Further, Last, Mixed, Replaced, Renaming, Configured, Averaging, Wide, Dalle]


@pytest.mark.parametrize("cls", KINDS)
def test_all_of_a_subclass_starts_from_the_file(tmp_path: Path, cls: type) -> None:
    run, state = saved(tmp_path / "run", cls)
    config = config_of(cls)
    params = {**config["params"], "ckpt_path": str(run)}
    model = build({**config, "params": params})
    assert_loaded(model, state)
    assert model.loaded_from == str(run / "checkpoints/last.ckpt")
    assert_loaded(cls(**params), state)
    assert_loaded(taming.load(run), state)
    if cls is Renaming:
        assert model.heard == [torch.Size([2, 2])]
    if cls is Last:
        assert model.hparams.keys() >= {"width", "ddconfig", "n_embed"}
    if cls not in (Wide, Dalle):
        stage = build(transformer_config(first_stage_config=str(run))).first_stage_model
        assert_loaded(stage, state)


def test_what_configure_model_adds_is_resumed(tmp_path: Path) -> None:
    run, _ = saved(tmp_path / "run", Configured)
    with pytest.raises(UserError, match="no state of a training to go on with"):  # the weights fit
        check_resumable(build(config_of(Configured)), run / "checkpoints" / "last.ckpt")


def test_a_subclass_builds_on_the_weights_of_its_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run(tmp_path / "run", FIRST_STAGE)
    params = {**FIRST_STAGE["params"], "ckpt_path": str(run)}
    with caplog.at_level(logging.WARNING):
        model = Averaging(**params)
    assert torch.equal(model.ema_encoder.conv_in.weight, model.encoder.conv_in.weight)
    saved = torch.load(run / "checkpoints/last.ckpt")["state_dict"]
    assert torch.equal(model.encoder.conv_in.weight, saved["encoder.conv_in.weight"])
    assert "ema_encoder: 50 keys not in the checkpoint: left as the" in caplog.text


def test_what_is_in_no_constructor_is_refused(tmp_path: Path) -> None:
    run, _ = saved(tmp_path / "run", More)
    for cls in (VQModel, Configured):
        with pytest.raises(UserError, match=r"extra: 2 keys unknown \(extra.bias"):
            cls(**FIRST_STAGE["params"], ckpt_path=str(run))


def test_an_error_of_the_constructor_itself_comes_first(tmp_path: Path) -> None:
    class Broken(VQModel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            raise ValueError("mine")

    run, _ = saved(tmp_path / "run", More)
    with pytest.raises(ValueError, match="mine"):
        Broken(**FIRST_STAGE["params"], ckpt_path=str(run))


def test_a_loss_of_a_subclass_is_loaded(tmp_path: Path) -> None:
    class OwnLoss(VQModel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.loss = DummyLoss()
            self.loss.discriminator = nn.Linear(2, 2)

    state = OwnLoss(**FIRST_STAGE["params"]).state_dict()
    torch.save(state, tmp_path / "own.ckpt")
    model = OwnLoss(**FIRST_STAGE["params"], ckpt_path=str(tmp_path / "own.ckpt"))
    assert_loaded(model, state)


def test_the_colors_of_logged_images_are_dispensable(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", FIRST_STAGE)
    params = {**FIRST_STAGE["params"], "ckpt_path": str(run)}
    assert VQModel(**params, colorize_nlabels=3).colorize.shape == (3, 3, 1, 1)
    with pytest.raises(UserError, match="colorizer: 1 key unknown"):
        state = {**VQModel(**FIRST_STAGE["params"]).state_dict(), "colorizer": torch.ones(2)}
        torch.save(state, tmp_path / "more.ckpt")
        VQModel(**{**params, "ckpt_path": str(tmp_path / "more.ckpt")})
    labelled = tiny_run(tmp_path / "labelled", SEGMENTATION)
    own = {k: v for k, v in SEGMENTATION["params"].items() if k != "n_labels"}
    assert VQModel(**own, ckpt_path=str(labelled)).loaded_from


def test_what_a_subclass_adds_has_a_moving_average(tmp_path: Path) -> None:
    model = More(**FIRST_STAGE["params"], use_ema=True)
    with torch.no_grad():
        model.extra.weight += 1
    model.model_ema(model)
    assert 0 < (model.extra.weight - model.model_ema.extraweight).max() < 1
    torch.save(model.state_dict(), tmp_path / "model.ckpt")
    params = {**FIRST_STAGE["params"], "ckpt_path": str(tmp_path / "model.ckpt")}
    average = model.model_ema.extraweight
    for use_ema in (True, False):
        assert torch.equal(More(**params, use_ema=use_ema).extra.weight, average)
