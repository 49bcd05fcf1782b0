"""Callbacks and subclasses of models as users have them: they work, or a sentence says why not."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from taming.errors import UserError
from taming.models.vqgan import VQModel
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.run_length import RunLength
from taming.training.callbacks import ImageLogger, SetupCallback
from taming.training.cli import main as main_command
from taming.training.effect import TrainsSomething
from taming.training.hooks import check_hooks
from tests.kit.first_stages import IMAGES, made, train
from tests.kit.resuming import run_config
from tests.kit.training import tiny_trainer, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
CALLBACKS = "pytorch_lightning.callbacks."


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("BackboneFinetuning", {}, "callback .*BackboneFinetuning cannot be used here: Attribute"),
        ("BaseFinetuning", {}, "callback .*BaseFinetuning cannot be used here: NotImplemented"),
        ("ModelPruning", {"pruning_fn": "l1_unstructured"}, "own: ModelPruning cannot be used"),
        ("StochasticWeightAveraging", {"swa_lrs": 0.1}, "SWA currently works with 1 `optimizer`"),
    ],
)
def test_callbacks_that_do_not_fit(
    name: str, params: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config("vqgan")
    config.lightning.callbacks = {"own": {"target": CALLBACKS + name, "params": params}}
    with pytest.raises(UserError, match=message):
        main(["--base", write_config(tmp_path, config), "-t"])


def distance(model: VQModel, batch: Any) -> Tensor:
    x = model.get_input(batch, model.image_key)
    return (model(x)[0] - x).abs().mean()


class OneLoss(VQModel):
    """Of one optimizer, which Lightning steps."""

    automatic = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = self.automatic

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        return distance(self, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.autoencoder_parameters(), lr=0.1)


class Manual(OneLoss):
    automatic = False


class WithDefault(OneLoss):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int = 0) -> Any:  # type: ignore[override]
        assert optimizer_idx == 0
        return distance(self, batch)


class Required(OneLoss):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        assert optimizer_idx == 0
        return distance(self, batch)


class TwoOptimizers(VQModel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = True


def first_layer(cls: type[VQModel], folder: Path) -> Tensor:
    """The weights of the encoder's first layer after two batches."""
    return train(made(cls), folder)["encoder.conv_in.weight"]


def test_automatic_optimization_trains_as_manual(tmp_path: Path) -> None:
    expected, ours = first_layer(Manual, tmp_path), first_layer(VQModel, tmp_path)
    assert not torch.equal(expected, made(VQModel).encoder.conv_in.weight)
    for cls in (OneLoss, WithDefault, Required):
        torch.testing.assert_close(first_layer(cls, tmp_path), expected)
    assert torch.equal(first_layer(TwoOptimizers, tmp_path), ours)


def test_steps_that_lightning_takes_are_of_as_many_batches_as_it_adds_up(tmp_path: Path) -> None:
    """Averages follow updates, and shares are of steps."""

    class Own(OneLoss):
        def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
            lengths.append(self._run_length())
            return distance(self, batch)

    lengths: list[RunLength] = []
    model = made(Own, use_ema=True)
    train(model, tmp_path, accumulate_grad_batches=2, max_epochs=3)
    assert lengths[0].steps == 3 and int(model.model_ema.num_updates) == 3


def test_pictures_are_asked_for_as_the_signature_says() -> None:
    logger, seen = ImageLogger(batch_frequency=1, max_images=2), []

    class Own(VQModel):
        def log_images(self, batch, split, pl_module=None):  # type: ignore[no-untyped-def, override]
            seen.append((split, pl_module))
            return {"inputs": batch["image"]}

    class Short(VQModel):
        def log_images(self, batch):  # type: ignore[no-untyped-def, override]
            return {"inputs": batch["image"]}

    own, batch = made(Own), {"image": IMAGES}
    assert logger._pictures(own, batch, "val")["inputs"].shape[0] == 2
    assert seen == [("val", own)]
    assert logger._pictures(made(Short), batch, "train").keys() == {"inputs"}


def test_a_decoder_remembers_what_it_decoded() -> None:
    model = made(VQModel)
    z = torch.zeros(2, model.decoder.z_shape[1], 4, 6)
    model.decoder(z)
    assert model.decoder.last_z_shape == z.shape


class OwnDistance(VQLPIPSWithDiscriminator):
    """With a perceptual loss of its own, that has weights."""

    def __init__(self, disc_start: int = 0, **options: Any) -> None:
        super().__init__(disc_start, **options, perceptual_weight=0.0, disc_num_layers=1)
        self.perceptual_weight, self.perceptual_loss = 1.0, Distance()


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * (x - y).square().mean((1, 2, 3), keepdim=True)


class NoDiscriminator(VQLPIPSWithDiscriminator):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.discriminator


class Raises(VQModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise KeyError("a")


def test_a_perceptual_loss_of_ones_own() -> None:
    loss, x = OwnDistance(), torch.zeros(2, 3, 8, 8)
    loss.prepare()
    _, terms = loss.generator_loss(x + 1, x, torch.zeros(()), 0, last_layer=x)
    assert terms["p_loss"] == 2
    state = {**loss.state_dict(), "perceptual_loss.scale": torch.tensor(3.0)}
    loss.load_state_dict({**state, "perceptual_loss.lin0.weight": torch.ones(1)})
    assert loss.perceptual_loss.scale == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lossconfig.target": f"{__name__}.NoDiscriminator"},
         "AttributeError: .*discriminator.*, perhaps as .*NoDiscriminator lacks what is needed"),
        ({"target": f"{__name__}.Raises"}, r"KeyError: 'a' \(.*test_own_code.py, line \d+\)"),
        ({"lossconfig": {"target": "torch.nn.MSELoss"}},
         r"the loss torch.*MSELoss cannot be used here: its forward must take \(codebook_loss"),
    ],
)  # fmt: skip
def test_what_own_code_does_is_a_sentence(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = run_config("vqgan")
    for key, value in changes.items():
        place = f"model.{key}" if key == "target" else f"model.params.{key}"
        OmegaConf.update(config, place, value, merge=False)
    with pytest.raises(SystemExit) as caught:
        main_command(["--base", write_config(tmp_path, config), "-t"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and re.match(f"error: .*{message}", error), error
    kept = error.rpartition("; the way there is in ")[2]
    assert "cannot be used here" in error or "Traceback" in Path(kept).read_text()


def test_a_loader_that_ends_for_good(tmp_path: Path) -> None:
    batches = iter([{"image": IMAGES}] * 2)
    trainer = tiny_trainer(tmp_path, max_steps=5, max_epochs=-1, callbacks=[TrainsSomething()])
    with pytest.raises(UserError, match="after 1 epochs there are no more batches"):
        trainer.fit(made(VQModel), batches)
    assert trainer.global_step


class PublishedSetup(SetupCallback):
    def __init__(
        self,
        resume: Any,
        now: str,
        logdir: Any,
        ckptdir: Any,
        cfgdir: Any,
        config: Any,
        lightning_config: Any,
    ) -> None:
        super().__init__(resume, now, logdir, ckptdir, cfgdir, config, lightning_config)
        assert "setup_callback" in lightning_config.callbacks


class OwnSetup(PublishedSetup):
    def on_pretrain_routine_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_pretrain_routine_start(trainer, pl_module)
        (self.logdir / "notes.txt").write_text(f"{self.now} {len(self.config.model.params)}")


def test_the_callback_that_makes_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config("vqgan")
    OmegaConf.update(
        config, "lightning.callbacks.setup_callback.target", f"{__name__}.OwnSetup", force_add=True
    )
    base = write_config(tmp_path, config)
    main(["--base", base, "-t", "--no-test", "--max_steps", "1"])
    (notes,) = tmp_path.glob("logs/*/notes.txt")
    assert re.fullmatch(r"\d{4}-\S+ \d+", notes.read_text())
    assert list(notes.parent.glob("configs/*-project.yaml"))
    with pytest.raises(UserError, match="setup_callback must be main.SetupCallback"):
        main(["--base", base, "-t", "lightning.callbacks.setup_callback=null"])


class FormerHooks(Callback):
    def on_epoch_end(self, trainer: Any, pl_module: Any) -> None: ...

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None: ...


def test_hooks_that_are_called_no_more_are_named(caplog: pytest.LogCaptureFixture) -> None:
    empty = OmegaConf.create()
    check_hooks("lightning.callbacks.own", FormerHooks())
    check_hooks(
        "lightning.callbacks.setup_callback",
        SetupCallback(None, "now", "a", "b", "c", empty, empty),
    )
    (record,) = caplog.records
    assert record.getMessage() == (
        f"lightning.callbacks.own: Lightning calls no {__name__}.FormerHooks.on_epoch_end; "
        "rename it to on_train_epoch_end"
    )
