"""Callbacks and subclasses of models as users have them: they work, or a sentence says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.models.vqgan import VQModel
from taming.training.callbacks import ImageLogger
from taming.training.cli import main as main_command
from tests.kit.first_stages import IMAGES, made, train
from tests.kit.resuming import run_config
from tests.kit.training import write_config

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
