"""Runs in which code of the user's returns what cannot be gone on with: a sentence says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.vqgan import VQModel
from taming.training.cli import main as main_command
from tests.kit.resuming import Crops, run_config
from tests.kit.training import write_config
from tests.training.sign_quantizer import SignQuantizer

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
HERE = "tests.training.test_own_results"
SCHEDULE = "model.params.scheduler_config"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(case: str, key: str, target: str, *words: str, **changes: Any) -> None:
    """Two steps of a run, in which `key` of the config names something of this module."""
    config = run_config(case)
    config.data.params.num_workers = 0
    del config.lightning.callbacks.moments
    changes = {key: f"{HERE}.{target}", **changes}
    for place, value in changes.items():
        OmegaConf.update(config, place, value, force_add=True)
    base = write_config(Path(), config)
    main(["--base", base, "-t", "--no-test", "--max_steps", "2", *words])


class FloatIndices(SignQuantizer):
    def forward(self, z: Tensor) -> Any:
        codes, loss, (_, _, indices) = super().forward(z)
        return codes, loss, (None, None, indices.float())


class Detached(SignQuantizer):
    def forward(self, z: Tensor) -> Any:
        codes, loss, info = super().forward(z)
        return codes.detach(), loss.detach(), info


def with_quantizer(target: str) -> None:
    params = {"model.params.quantizer_config.params": {"bits": 4}}
    params |= {"model.params.n_embed": None, "model.params.embed_dim": None}  # type: ignore[dict-item]
    start("vqgan", "model.params.quantizer_config.target", target, **params)


def test_quantizers(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"FloatIndices must return \(codes, loss, .* it returned"):
        with_quantizer("FloatIndices")
    with_quantizer("Detached")
    assert "encoder, quant_conv: no gradient comes there, it stays as it is" in caplog.messages


class Text:
    def __call__(self, step: int) -> Any:
        return "x"


class NoFunction:
    pass


@pytest.mark.parametrize("case", ["vqgan", "transformer"])
def test_schedules(case: str) -> None:
    with pytest.raises(
        UserError, match=r"Text must give a number from 0 on; at step 0 it gives 'x"
    ):
        start(case, f"{SCHEDULE}.target", "Text", **{f"{SCHEDULE}.params": None})
    with pytest.raises(UserError, match="scheduler_config: .* it must make a function of the step"):
        start(case, f"{SCHEDULE}.target", "NoFunction", **{f"{SCHEDULE}.params": None})
    assert not Path("logs").exists()


def fails(model: Any, batch: Any) -> None:
    """A hook that returns nothing."""


class NoCodes(VQModel):
    encode = fails  # type: ignore[assignment]


class NoImages(VQModel):
    decode = fails  # type: ignore[assignment]


class NoInput(VQModel):
    def get_input(self, batch: Any, k: str) -> Any:
        return super().get_input(batch, k).numpy()


class NoPair(VQModel):
    forward = fails  # type: ignore[assignment]


class TextLoss(VQModel):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        return "x"


class NoLoss(VQModel):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return None


class NoOptimizer(VQModel):
    def configure_optimizers(self) -> Any:
        return {}


class Plateau(VQModel):
    def configure_optimizers(self) -> Any:
        (first, _), _ = super().configure_optimizers()
        return [first], [torch.optim.lr_scheduler.ReduceLROnPlateau(first)]


class Lbfgs(VQModel):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class NoPictures(VQModel):
    def log_images(self, batch: Any) -> Any:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("NoCodes", r"NoCodes.encode must return \(codes, .*it returned None"),
        ("NoImages", r"NoImages.decode must return .*it returned \(None, a tensor"),
        ("NoInput", r"NoInput.get_input must return images \[B, 3, H, W\].* an array"),
        ("NoPair", r"NoPair.forward must return \(reconstructions .* it returned None"),
        ("TextLoss", "TextLoss.training_step must return a loss"),
        ("NoLoss", "nothing is trained: in 6 batches there was no loss"),
        ("NoOptimizer", "configure_optimizers must return an optimizer, .*: KeyError: 'optimizer'"),
        ("Plateau", "ReduceLROnPlateau is not made for"),
        ("Lbfgs", "Lbfgs cannot be trained by LBFGS"),
        ("NoPictures", "NoPictures.log_images must return pictures by name, .*returned None"),
    ],
)
def test_first_stages(target: str, message: str) -> None:
    words = ("--max_steps", "-1", "--max_epochs", "1") if target == "NoLoss" else ()
    with pytest.raises(UserError, match=message):
        start("vqgan", "model.target", target, *words)
    assert not list(Path("logs").rglob("*.ckpt"))


def test_the_number_of_a_batch_may_be_left_out_and_a_loss_be_in_a_dict() -> None:
    start("vqgan", "model.target", "LossInDict")
    assert list(Path("logs").rglob("last.ckpt"))


class LossInDict(VQModel):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        x = self.get_input(batch, self.image_key).double()
        return {"loss": self.reconstructed(x.float())[0].mean()}


class NoTokens(Net2NetTransformer):
    encode_to_c = fails  # type: ignore[assignment]


class LargeTokens(Net2NetTransformer):
    def encode_to_z(self, x: Tensor) -> Any:
        codes, tokens = super().encode_to_z(x)
        return codes, tokens + 1000


class NoLogits(Net2NetTransformer):
    def forward(self, x: Tensor, c: Tensor) -> Any:
        return super().forward(x, c)[0]


class NoNumber(Net2NetTransformer):
    def shared_step(self, batch: Any, batch_idx: int = 0) -> Any:
        return 1.0


class NoEntries(Net2NetTransformer):
    get_xc = fails  # type: ignore[assignment]


class NoEntry(Net2NetTransformer):
    def get_input(self, key: str, batch: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("NoTokens", r"NoTokens.encode_to_c must return \(codes, indices"),
        (
            "LargeTokens",
            r"LargeTokens.encode_to_z gives tokens from 1\d+ to 1\d+, and ",
        ),
        ("NoLogits", "NoLogits.forward must return .logits"),
        ("NoNumber", "NoNumber.shared_step must return a loss"),
        ("NoEntries", "NoEntries.get_xc must return .images, conditions"),
        ("NoEntry", "NoEntry.get_input must return images"),
    ],
)
def test_transformers(target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start("transformer", "model.target", target)


class Unsavable(Callback):
    """Has a state that cannot be saved, from a batch on."""

    batches = 0

    def __init__(self, since: int) -> None:
        self.since = since
        Unsavable.batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        Unsavable.batches += 1

    def state_dict(self) -> Any:
        return {"a": (lambda: 1) if self.batches >= self.since else 1}


@pytest.mark.parametrize("since", [1, 2])
def test_states_that_cannot_be_saved(since: int) -> None:
    key = "lightning.callbacks.own"
    with pytest.raises(UserError, match="with the state of the callback Unsavable: .*lambda"):
        start("vqgan", f"{key}.target", "Unsavable", **{f"{key}.params": {"since": since}})
    assert Unsavable.batches == since and not list(Path("logs").rglob("*.ckpt"))


class Freezes(Callback):
    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.requires_grad_(False)


class FreezesLater(Callback):
    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        pl_module.requires_grad_(False)


@pytest.mark.parametrize("target", ["Freezes", "FreezesLater"])
@pytest.mark.parametrize("case", ["vqgan", "transformer"])
def test_a_callback_that_freezes_everything(case: str, target: str) -> None:
    with pytest.raises(UserError, match=r"all weights of .* are frozen"):
        start(case, "lightning.callbacks.own.target", target)


# ---------------------------------------------------------------------- data modules


class Data(pl.LightningDataModule):
    """What its loaders are is said by `train`, `val` and `test`."""

    batch_size = 2

    def __init__(self, train: str = "good", val: str = "good", test: str = "good") -> None:
        super().__init__()
        self.kinds = {"train": train, "val": val, "test": test}

    def _loader(self, split: str) -> Any:
        kind = self.kinds[split]
        if kind == "raises":
            raise KeyError("a column")
        data: Any = {"empty": [], "sizes": [{"image": torch.zeros(9, 9, 3)}] * 2}
        found = DataLoader(data.get(kind, Crops(4)), batch_size=2)
        return {"none": None, "number": 3}.get(kind, found)

    def train_dataloader(self) -> Any:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"train": "none"}, r"Data.train_dataloader\(\)`. Found None"),
        ({"train": "number"}, r"Data.train_dataloader\(\)`. Found 3"),
        ({"train": "raises"}, r"Data.train_dataloader raises KeyError: 'a column' \(.*line \d+\)"),
        ({"train": "empty"}, "Data.train_dataloader gives no batches: nothing was trained"),
        ({"train": "sizes", "val": "sizes"}, "'image' of the data has 9 x 9 pixels"),
        ({"val": "none"}, r"Data.val_dataloader\(\)`. Found None"),
        ({"val": "raises"}, "Data.val_dataloader raises KeyError"),
        ({"val": "empty"}, "validation of .*Data gives no items: nothing can be validated"),
        ({"test": "none"}, r"the test: .*Data.test_dataloader\(\)`. Found None"),
        ({"test": "raises"}, "the test: data: .*Data.test_dataloader raises KeyError"),
        ({"test": "empty"}, "Data.test_dataloader gives no batches"),
    ],
)
def test_data_modules(params: dict[str, str], message: str) -> None:
    config = run_config("vqgan")
    config.data = {"target": f"{HERE}.Data", "params": params}
    config.lightning.callbacks = None
    base = write_config(Path(), config)
    with pytest.raises(UserError, match=message):
        main(["--base", base, "-t", "--max_steps", "1"])
