"""What keeps training of a first stage stable, in the real Trainer."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.run_length import run_length
from taming.models.vqgan import GumbelVQ, VQModel
from taming.run_length import RunLength
from taming.training.numbers import FiniteNumbers
from tests.kit.first_stages import IMAGES, batches, loader
from tests.kit.models import (
    GAN_LOSS,
    ddconfig,
    first_stage_config,
    tiny_model,
    transformer_config,
)
from tests.kit.training import tiny_trainer

STYLE = "taming.modules.discriminator.stylegan2.StyleGAN2Discriminator"
PATCH = {"disc_num_layers": 3, "disc_ndf": 64}  # the defaults, which are no options of another
OPEN = {"target": "taming.lr_scheduler.LinearSchedule"}


def make(loss: dict[str, Any] | None = None, **params: Any) -> VQModel:
    torch.manual_seed(0)
    lossconfig = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0, **(loss or {})}}
    model = VQModel(**first_stage_config(lossconfig=lossconfig, **params)["params"])
    model.learning_rate = 1e-3
    return model


class Values(pl.Callback):
    """Logged values and rates of every batch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        row = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
        self.rows.append({**row, "rates": rates})  # type: ignore[dict-item]


def test_a_share_of_the_run_and_all_regularizations_in_one_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """2 epochs of 5 batches, of which two make a step: 3 steps an epoch."""
    penalties = {"lecam_weight": 0.1, "r1_weight": 0.1, "gradient_penalty_weight": 0.1}
    codes = {"n_e": 12, "e_dim": 4, "beta": 0.25, "revive_after": 1, "entropy_weight": 0.1}
    target = "taming.modules.vqvae.quantize.VectorQuantizer2"
    quantizer = {"target": target, "params": codes}
    loss: dict[str, Any] = {"disc_start": 0.5, "pixel_loss": "logit_laplace", **penalties}
    loss |= {"disc_config": {"target": STYLE, "params": {"resolution": 16, "base": 64}}, **PATCH}
    six = {**ddconfig(), "out_ch": 6}
    model = make(loss, ddconfig=six, scheduler_config=OPEN, quantizer_config=quantizer, n_embed=12)
    model.check_batch({"image": IMAGES})
    model.accumulate_grad_batches = 2
    values = Values()
    with caplog.at_level(logging.INFO):
        tiny_trainer(tmp_path, max_epochs=2, callbacks=[values]).fit(model, batches(5), batches(1))
    said = [r.message for r in caplog.records if "discriminator counts" in r.message]
    assert said == ["the discriminator counts from step 3 (epoch 1) on, after 0.5 of the run"]
    factors = [row["train/disc_factor"] for row in values.rows]
    assert factors == [0] * 5 + [1] * 5
    terms = ("lecam_loss", "r1_loss", "gradient_penalty")
    for number, row in enumerate(values.rows):
        assert all((row[f"train/{term}"] > 0) is (number >= 5) for term in terms)
    torch.testing.assert_close(values.rows[-1]["rates"], [0.0, 0.0])  # 1 - 6 / 6
    torch.testing.assert_close(values.rows[1]["rates"], [1e-3 * 5 / 6] * 2)
    assert model(IMAGES.permute(0, 3, 1, 2))[0].shape == (2, 3, 16, 16)  # images, of a distribution
    assert model.decode_indices(torch.zeros(1, 8, 8, dtype=torch.long)).abs().max() <= 1
    state = model.state_dict()
    assert state["loss.start.known"] == 3 and state["loss.penalties.lecam_means"].abs().sum() > 0
    assert state["quantize.idle.batches"].shape == (12,)


class Endless(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Any:
        while True:
            yield {"image": IMAGES[0]}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: make({"disc_start": 0.1}), "disc_start follows the length of a run"),
        (lambda: make(scheduler_config=OPEN), "a schedule without `steps` follows the length"),
    ],
)
def test_what_follows_a_run_without_an_end_is_refused_before_training(
    tmp_path: Path, model: Any, words: str
) -> None:
    trained = model()
    trainer = tiny_trainer(tmp_path, max_epochs=2)
    with pytest.raises(UserError, match=words):
        trainer.fit(trained, DataLoader(Endless(), batch_size=2))
    assert trainer.global_step == 0


def test_the_length_of_a_run(tmp_path: Path) -> None:
    def length(model: Any, loader: Any, **options: Any) -> list[RunLength]:
        seen: list[RunLength] = []
        model.on_train_start = lambda: seen.append(run_length(model.trainer, 2))
        tiny_trainer(tmp_path, **options).fit(model, loader)
        return seen

    model = make(scheduler_config=None)
    model.training_step = lambda *_: None
    assert length(model, batches(5), max_epochs=2) == [RunLength(6, 3)]
    assert length(model, batches(5), max_steps=1, max_epochs=1) == [RunLength(1, 3)]
    assert length(model, batches(4), max_epochs=3, limit_train_batches=2) == [RunLength(3, 1)]
    assert run_length(None) == RunLength()


def test_a_temperature_follows_the_run(tmp_path: Path) -> None:
    params = first_stage_config()["params"]
    rule = {"target": "taming.lr_scheduler.LinearSchedule", "params": {"end": 0.5}}
    torch.manual_seed(0)
    model = GumbelVQ(**params, temperature_scheduler_config=rule)
    tiny_trainer(tmp_path, max_steps=3).fit(model, batches(3))
    assert model.quantize.temperature == pytest.approx(1 - 0.5 * 2 / 3)


def test_a_distribution_and_the_decoder_have_to_fit() -> None:
    six = {**ddconfig(), "out_ch": 6}
    with pytest.raises(UserError, match="out_ch is 3, but the loss takes 6 channels.*pixel_loss"):
        make({"pixel_loss": "logit_laplace"}).check_batch({"image": IMAGES})
    with pytest.raises(UserError, match="out_ch is 6, but 'image' of the data has 3 channels"):
        make(ddconfig=six).check_batch({"image": IMAGES})


def test_options_of_the_patch_discriminator_beside_another_are_refused() -> None:
    config = {"target": STYLE, "params": {"resolution": 32}}
    with pytest.raises(UserError, match="disc_ndf has no effect beside disc_config"):
        make({"disc_config": config, "disc_num_layers": 3})
    with pytest.raises(UserError, match="disc_ndf and disc_num_layers have no effect .* to null"):
        make({"disc_config": config, "disc_ndf": 8, "disc_num_layers": 2})
    nothing = dict.fromkeys(("disc_ndf", "disc_num_layers", "disc_in_channels", "use_actnorm"))
    assert make({"disc_config": config, **nothing}).discriminator is not None
    model = make({"disc_config": config, **PATCH})
    with pytest.raises(UserError, match="resolution is 32, but the images have 16x16"):
        model.check_batch({"image": IMAGES})


# ---------------------------------------------------------------------- float16


class Scaler(torch.amp.GradScaler):
    """Notes when its scale is looked after, and the gradients that are unscaled."""

    def __init__(self) -> None:
        super().__init__("cpu", init_scale=1024.0, growth_interval=1)
        self.events: list[str] = []

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        super().unscale_(optimizer)
        self.events.append("unscaled")

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        self.events.append("step")
        return super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: Any = None) -> None:
        self.events.append("update")
        super().update(new_scale)


def in_half(folder: Path, scaler: Scaler | None, **options: Any) -> pl.Trainer:
    precision = "bf16-mixed" if scaler is None else "16-mixed"
    return tiny_trainer(folder, plugins=[MixedPrecision(precision, "cpu", scaler)], **options)


class Norms(pl.Callback):
    """Norms of all gradients as optimizers get them."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.note)

    def note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        squares = [p.grad.float().square().sum() for p in parameters if p.grad is not None]
        self.norms.append(float(torch.stack(squares).sum().sqrt()))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True], ids=["bf16", "fp16"])
def test_gradients_are_clipped_without_their_scale(
    tmp_path: Path, fused: bool, scaled: bool
) -> None:
    model, scaler, norms = make(fused_optimizer=fused), Scaler() if scaled else None, Norms()
    model.gradient_clip_val = 0.25
    in_half(tmp_path, scaler, max_steps=2, callbacks=[norms]).fit(model, batches(2))
    assert len(norms.norms) == 4 and max(norms.norms) == pytest.approx(0.25, rel=1e-3)
    if scaler is not None:
        assert scaler.events == ["unscaled", "step", "unscaled", "step", "update"] * 2


class LeavesOut(VQModel):
    """A step that gives the loss of one side after the other, as for the original."""

    left_out = 0

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        if optimizer_idx == self.left_out:
            return None
        return super().training_step(batch, batch_idx, optimizer_idx)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("side", [0, 1])
def test_a_side_may_be_left_out_in_float16(tmp_path: Path, side: int, fused: bool) -> None:
    """The scaler takes no step without gradients, and the batch counts all the same."""
    torch.manual_seed(0)
    model, scaler = LeavesOut(**first_stage_config(fused_optimizer=fused)["params"]), Scaler()
    model.left_out, model.gradient_clip_val = side, 0.25
    trainer = in_half(tmp_path, scaler, max_steps=2, max_epochs=1)
    parts = (model.encoder.conv_in.weight, model.discriminator.main[0].weight)
    before = [weight.detach().clone() for weight in parts]
    trainer.fit(model, batches(2))
    assert trainer.global_step == 2 and scaler.events == ["unscaled", "step", "update"] * 2
    moved = [not torch.equal(*pair) for pair in zip(parts, before, strict=True)]
    assert moved == [side == 1, side == 0]
    scaler.events.clear()
    model.left_out = -1
    in_half(tmp_path, scaler, max_steps=1).fit(model, batches(1))
    assert scaler.events == ["unscaled", "step", "unscaled", "step", "update"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_transformer_is_clipped_without_its_scale(tmp_path: Path, fused: bool) -> None:
    torch.manual_seed(0)
    model, scaler, norms = tiny_model(transformer_config(fused_optimizer=fused)), Scaler(), Norms()
    trainer = in_half(tmp_path, scaler, max_steps=2, callbacks=[norms], gradient_clip_val=0.1)
    codes = torch.arange(16).view(1, 4, 4)
    trainer.fit(model, loader({"codes": codes, "condition_codes": torch.zeros(1, 1).long()}, 2))
    assert len(norms.norms) == 2 and max(norms.norms) == pytest.approx(0.1, rel=1e-3)
    assert scaler.events == ["unscaled", "step", "update"] * 2


class Broken(Net2NetTransformer):
    """The loss of its second batch is no number."""

    def _loss_of(self, batch: Any, batch_idx: int) -> Tensor:
        return super()._loss_of(batch, batch_idx) * (float("nan") if batch_idx == 1 else 1.0)


@pytest.mark.parametrize("clipped", [None, 0.1])
@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_is_left_out_in_float16(tmp_path: Path, fused: bool, clipped: float | None) -> None:
    torch.manual_seed(0)
    model = Broken(**transformer_config(fused_optimizer=fused)["params"])
    model.learning_rate = 1e-3
    callback, scaler, weights = FiniteNumbers(skip=1), Scaler(), []
    model.on_before_zero_grad = lambda *_: weights.append(model.transformer.head.weight.clone())
    trainer = in_half(
        tmp_path, scaler, max_steps=3, callbacks=[callback], gradient_clip_val=clipped
    )
    codes = torch.arange(16).view(1, 4, 4)
    trainer.fit(model, loader({"codes": codes, "condition_codes": torch.zeros(1, 1).long()}, 3))
    weights.append(model.transformer.head.weight.clone())
    assert callback.skipped == 1 and trainer.global_step == 3
    moved = [not torch.equal(*pair) for pair in pairwise(weights)]
    assert moved == [True, False, True]
    assert scaler.get_scale() == 1024 * 2 * 0.5 * 2  # after one good step, a bad one, a good one


@pytest.mark.slow
def test_both_sides_gradients_have_one_scale(tmp_path: Path) -> None:
    """It changes once a step, and not between the batches that are added up for one."""
    scaler, model = Scaler(), make()
    model.accumulate_grad_batches = 2
    in_half(tmp_path, scaler, max_steps=2).fit(model, batches(4))
    assert scaler.events.count("update") == 2 and scaler.get_scale() == 1024 * 2**2
    weights = [p.clone() for p in model.discriminator.parameters()]
    with torch.no_grad():
        model.decoder.conv_out.bias.fill_(float("inf"))  # the first side's gradients are infinite
    in_half(tmp_path, scaler, max_steps=1).fit(model, batches(2))
    assert scaler.get_scale() == 1024 * 2  # halved once, though both sides have such gradients
    assert all(map(torch.equal, weights, model.discriminator.parameters()))


@pytest.mark.parametrize("reduced", [False, True])
def test_networks_of_the_loss_multiply_in_bf16_where_that_is_asked_for(reduced: bool) -> None:
    """In training; what comes of their outputs, and validation, stay in fp32."""
    model, dtypes = make({"bf16_networks": reduced, "perceptual_weight": 1.0}), []
    loss = model.loss
    for parameter in loss.perceptual_loss.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for network in (loss.perceptual_loss.net, loss.discriminator):
        convolution = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
        convolution.register_forward_hook(lambda _, __, y: dtypes.append(y.dtype))
    x = torch.rand(2, 3, 32, 32)
    images = torch.rand_like(x).requires_grad_()
    for training in (True, False):
        dtypes.clear()
        loss.train(training)
        value, terms = loss.generator_loss(x, images, torch.zeros(()), 10, last_layer=images)
        other, _ = loss.discriminator_loss(x, images, 10)
        assert {*dtypes} == {torch.bfloat16 if reduced and training else torch.float32}
        assert {value.dtype, other.dtype, terms["p_loss"].dtype} == {torch.float32}


def test_losses_are_computed_in_full_precision(tmp_path: Path) -> None:
    model, dtypes = make({"lecam_weight": 0.1}), []
    model.discriminator.register_forward_hook(lambda _, __, logits: dtypes.append(logits.dtype))
    in_half(tmp_path, Scaler(), max_steps=1).fit(model, batches(1))
    assert len(dtypes) == 3 and {*dtypes, model.loss_terms["train/discloss"].dtype} == {
        torch.float32
    }
