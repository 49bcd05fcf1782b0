"""How first stages are trained: by the real Trainer, against the golden run, and step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models import autoencoder_training
from taming.models.autoencoder_training import AutoencoderTraining
from taming.models.vqgan import GumbelVQ, VQModel, VQNoDiscModel, VQSegmentationModel
from taming.modules.losses.base import Reconstruction
from tests.kit.first_stages import IMAGES, made
from tests.kit.models import GAN_LOSS, cosine_config, ddconfig
from tests.support import double_precision, fill_by_name, load_golden

OWN_LOSS = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0}}


class Recorder(pl.Callback):
    """What was logged for each batch, by the names that loggers get."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.steps.append(trainer.global_step)


class Batches(torch.utils.data.Dataset):
    """Golden batches as items: the loader takes one at a time, unbatched."""

    def __init__(self, batches: Tensor) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.batches[index]}


def train(
    model: VQModel,
    batches: Tensor,
    folder: Path,
    validation: Sequence[Tensor] = (),  # none or one
    **options: Any,
) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[recorder],
        **{"max_steps": len(batches), **options},
    )
    loaders = [DataLoader(Batches(each), batch_size=None) for each in (batches, *validation)]
    trainer.fit(model, *loaders)
    return recorder


def golden_training_model() -> tuple[VQModel, dict[str, Tensor], dict[str, Any]]:
    tensors, spec = load_golden("train_vqgan_hinge")
    model = instantiate_from_config(spec["model"])
    fill_by_name(model, seed=5)
    model.learning_rate = spec["learning_rate"]
    return model, tensors, spec


def test_training_and_validation_equal_the_golden_run(tmp_path: Path, threads: None) -> None:
    model, golden, spec = golden_training_model()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with double_precision():
        recorder = train(model.double(), golden["batches"], tmp_path)
        validated = validate(model, golden["batches"][:1], step=6)
    assert recorder.steps == [1, 2, 3, 4, 5, 6]  # a step is a batch
    for logged, expected in zip(recorder.rows, spec["logs"], strict=True):
        _check_logged(logged, expected, rel_tol=5e-4, abs_tol=5e-5)
    _check_logged(validated, spec["val_logs_batch0"], rel_tol=5e-4, abs_tol=5e-5)
    assert 0 < validated["val/codebook_usage"] <= 1 <= validated["val/codebook_perplexity"] <= 40
    state = model.state_dict()
    for name, norm in spec["final_norms"].items():
        assert math.isclose(float(state[name].double().norm()), norm, rel_tol=5e-4), name
    _check_final_values(start, state, golden)


def validate(model: VQModel, batches: Tensor, step: int) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = step
    loader = DataLoader(Batches(batches), batch_size=None)
    [logged] = trainer.validate(model, loader, verbose=False)
    return dict(logged)


def _check_logged(logged: dict[str, float], expected: dict[str, float], **close: float) -> None:
    for name, value in expected.items():
        assert math.isclose(logged[name], value, **close), name


def _check_final_values(
    start: dict[str, Tensor], state: dict[str, Tensor], golden: dict[str, Tensor]
) -> None:
    """All that training moved has moved as in the golden run, to a hundredth of the way."""
    final = {n.removeprefix("final."): t for n, t in golden.items() if n.startswith("final.")}
    still = [name for name in final if (state[name] - start[name]).abs().max() < 1e-6]
    for name in final.keys() - still:
        way = (final[name] - start[name]).double().abs().mean()
        assert (state[name] - final[name]).abs().double().mean() <= 0.01 * way, name
    # A bias before a norm, or of attention's keys, has no gradient but rounding's.
    assert all(re.search(r"(conv.|shortcut|attn.*\.k)\.bias$", name) for name in still)
    assert len(still) < 12 < len(final) / 10


def test_single_precision_follows_the_golden_run(tmp_path: Path) -> None:
    """As far as rounding leaves it alone: until the discriminator counts."""
    model, golden, spec = golden_training_model()
    recorder = train(model, golden["batches"][:2], tmp_path)
    for logged, expected in zip(recorder.rows, spec["logs"][:2], strict=True):
        _check_logged(logged, expected, rel_tol=2e-3, abs_tol=1e-3)


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    """Without a discriminator nothing couples the images of a batch."""

    def run(batches: Tensor, accumulate: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, _, _ = golden_training_model()
        model.accumulate_grad_batches = accumulate
        model.loss.discriminator_weight = 0.0
        recorder = train(model, batches, tmp_path, max_steps=-1, max_epochs=1)
        assert recorder.steps[-1] == 2
        return dict(model.encoder.state_dict())

    start, golden, spec = golden_training_model()
    start.accumulate_grad_batches, start.manual_backward = 4, Mock()
    start._trainer = SimpleNamespace(optimizers=[])
    start._backward(Mock(param_groups=[]), lambda side: torch.tensor(2.0 + side), 0)
    start._trainer = None
    start.manual_backward.assert_called_once_with(torch.tensor(0.5))  # Adam does not see it
    four = golden["batches"][:4]
    small, large = run(four, 2), run(four.reshape(2, 4, *four.shape[2:]), 1)
    for name, value in start.encoder.state_dict().items():
        if value.dim() < 2:
            continue  # Adam makes whole steps of noise: a bias before a norm has no gradient
        moved = (large[name] - value).abs().mean()
        assert moved > 0.5 * spec["learning_rate"], name
        assert (small[name] - large[name]).abs().mean() < 0.05 * moved, name


def test_a_validation_within_an_accumulation_changes_nothing(tmp_path: Path) -> None:
    """After each batch, of which two are added up."""
    trained = []
    for validated in (False, True):
        torch.manual_seed(0)
        model, golden, _ = golden_training_model()
        model.accumulate_grad_batches = 2
        batches = golden["batches"][:4]
        validation = [batches[:1]] * validated
        often = {"val_check_interval": 1, "num_sanity_val_steps": 0}
        train(model, batches, tmp_path, validation=validation, **(often if validated else {}))
        trained.append(model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_an_incomplete_last_accumulation_is_stepped(tmp_path: Path) -> None:
    model, golden, _ = golden_training_model()
    model.accumulate_grad_batches = 2
    recorder = train(model, golden["batches"][:3, :1], tmp_path, max_steps=-1, max_epochs=1)
    assert recorder.steps == [0, 1, 2]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    """With plain Adam the first update is blind to a gradient's scale, so look at the gradient."""
    model, golden, _ = golden_training_model()
    model.gradient_clip_val = 1e-3
    norms: list[float] = []

    def note_norm(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(nn.utils.get_total_norm([p.grad for p in parameters])))

    class Norm(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            for optimizer in trainer.optimizers:
                optimizer.register_step_post_hook(note_norm)

    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=2,
        callbacks=[Norm()],
        default_root_dir=str(tmp_path),
    )
    trainer.fit(model, DataLoader(Batches(golden["batches"]), batch_size=None))
    assert len(norms) == 4  # two optimisers a batch
    assert max(norms) <= 1.001e-3


def test_a_model_without_a_loss_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lossconfig"):
        train(made(VQModel, lossconfig=None), IMAGES[None], tmp_path)


# ---------------------------------------------------------------------- without a Trainer


def logged(step: str, **changes: Any) -> tuple[Any, set[str]]:
    """A model after one batch of validation or test, and the names of what it logged."""
    model = made(VQModel, lossconfig=OWN_LOSS, **changes).eval()
    model.log = model.log_dict = Mock()
    getattr(model, step)({"image": IMAGES}, 0)
    given = [call.args[0] for call in model.log.call_args_list]
    names = {name for each in given for name in ([each] if isinstance(each, str) else each)}
    assert all(call.kwargs["batch_size"] == 2 for call in model.log.call_args_list)
    assert all(
        call.kwargs["sync_dist"] and call.kwargs["on_epoch"] for call in model.log.call_args_list
    )
    return model, names


@pytest.mark.parametrize("use_ema", [False, True])
def test_validation_logs_both_sides_and_counts_codes_once(use_ema: bool) -> None:
    model, names = logged("validation_step", use_ema=use_ema)
    own = {"val/codebook_usage", "val/codebook_perplexity"}
    terms = {name.removeprefix("val/") for name in model.logged_names() - own if "val/" in name}
    assert {
        "aeloss",
        "discloss",
        "rec_loss",
        "logits_real",
    } <= terms and own <= model.logged_names()
    assert {name.split("/")[0] for name in names} == ({"val", "val_ema"} if use_ema else {"val"})
    assert {name.split("/")[1] for name in names} == terms
    assert names <= model.logged_names() and use_ema == any(
        "_ema/" in n for n in model.logged_names()
    )
    with torch.no_grad():
        indices = model.encode_to_indices(IMAGES.permute(0, 3, 1, 2))
    counts = torch.bincount(indices.flatten(), minlength=12)
    assert torch.equal(model.used_codes.counts_so_far(), counts)


def test_a_test_logs_under_its_own_name() -> None:
    _, names = logged("test_step")
    assert {name.split("/")[0] for name in names} == {"test"}
    assert {"test/aeloss", "test/discloss"} <= names


def test_batches_that_do_not_fit_are_refused_before_training() -> None:
    x, loss = {"image": IMAGES}, {**OWN_LOSS["params"], "disc_in_channels": 1}
    made(VQModel).check_batch(x)
    for config, message in (
        ({"ddconfig": ddconfig() | {"out_ch": 1}}, "out_ch is 1"),
        ({"ddconfig": ddconfig() | {"in_channels": 1}}, "in_channels of the model is 1"),
        ({"lossconfig": {**GAN_LOSS, "params": loss}}, "disc_in_channels is 1"),
    ):
        with pytest.raises(UserError, match=message):
            made(VQModel, **config).check_batch(x)


def test_optimizers_have_the_published_betas_and_what_is_trained() -> None:
    model = made(VQModel)
    assert model.learning_rate == 4.5e-6
    model.loss.own = nn.Parameter(torch.zeros(2))
    model.encoder.conv_in.requires_grad_(False)
    (generator, discriminator), schedules = model.configure_optimizers()
    assert schedules == [] and model.lr_g_factor == AutoencoderTraining.lr_g_factor == 1
    factored = made(VQModel, lr_g_factor=0.5, scheduler_config=cosine_config())
    optimizers, schedules = factored.configure_optimizers()
    assert [one.defaults["lr"] for one in optimizers] == [2.25e-6, 4.5e-6]
    assert [one["scheduler"].optimizer for one in schedules] == optimizers
    assert {one["interval"] for one in schedules} == {"step"}
    for optimizer in (generator, discriminator):
        assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.9)}
    trained = {id(p) for group in generator.param_groups for p in group["params"]}
    expected = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(("loss.", "encoder.conv_in."))
    }
    assert trained == {id(parameter) for parameter in expected.values()}
    game = {id(p) for group in discriminator.param_groups for p in group["params"]}
    assert game == {id(parameter) for parameter in model.loss.discriminator.parameters()}


SCHEDULE = {"target": "taming.lr_scheduler.CosineSchedule", "params": {"end": 0.5}}


def test_every_model_has_averages_and_the_other_options_of_training(tmp_path: Path) -> None:
    options = {"use_ema": True, "lr_g_factor": 0.5, "batch_resize_range": [32, 64]}
    options["temperature_scheduler_config"] = SCHEDULE
    weights = {
        k: t + 1 for k, t in made(GumbelVQ, **options).state_dict().items() if "ema" not in k
    }
    torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
    model = made(GumbelVQ, **options, ckpt_path=str(tmp_path / "model.ckpt"))
    assert (model.lr_g_factor, model.batch_resize_range) == (0.5, (32, 64))
    assert torch.equal(model.model_ema.quantizeprojweight, weights["quantize.proj.weight"])


def test_averages_follow_updates_and_start_from_what_is_loaded(tmp_path: Path) -> None:
    model = made(VQModel, use_ema=True)
    model.accumulate_grad_batches = 2
    model._trainer = SimpleNamespace(is_last_batch=False)
    for batch_idx, updates in ((0, 0), (1, 1), (2, 1), (3, 2)):
        model.on_train_batch_end(None, None, batch_idx)
        assert model.model_ema.num_updates == updates
    plain = {name: torch.rand_like(p) for name, p in made(VQModel).named_parameters()}
    torch.save({"state_dict": plain}, tmp_path / "model.ckpt")
    loaded = made(VQModel, use_ema=True, ckpt_path=str(tmp_path / "model.ckpt"))
    assert torch.equal(loaded.model_ema.encoderconv_inweight, plain["encoder.conv_in.weight"])
    kept = made(VQModel, ckpt_path=str(tmp_path / "model.ckpt"), ignore_keys=["encoder."])
    assert torch.equal(kept.encoder.conv_in.weight, made(VQModel).encoder.conv_in.weight)
    assert torch.equal(kept.decoder.conv_in.weight, plain["decoder.conv_in.weight"])


def test_losses_are_prepared_before_training(caplog: pytest.LogCaptureFixture) -> None:
    said = "beta weighs the codebook's term of the loss, as published (legacy: true)"
    for legacy, first in ((False, True), (True, False), (True, True)):
        model = made(VQModel, legacy=legacy)
        model.loss.prepare = Mock()
        model._trainer = SimpleNamespace(is_global_zero=first)
        with caplog.at_level("INFO"):
            model.on_fit_start()
        model.loss.prepare.assert_called_once_with()
        assert caplog.messages == ([said] if legacy and first else [])


def test_each_side_has_its_loss_and_the_autoencoder_alone_a_graph() -> None:
    """A graph in the discriminator's turn would move codebooks of averages a second time."""
    model = made(VQModel, lossconfig=OWN_LOSS)
    model.log = model.log_dict = Mock()
    loss_of, graphs = model._loss_of, []

    def note(images: Reconstruction, side: int, split: str) -> Tensor:
        graphs.append((side, images.outputs.requires_grad))
        loss = loss_of(images, side, split)
        name = ("train/aeloss", "train/discloss")[side]
        assert next(iter(model.loss_terms)) == name
        assert torch.equal(model.loss_terms[name], loss) and len(model.loss_terms) > 3
        return loss

    model._loss_of = note
    for options in ({}, {"optimizer_idx": 0}, {"optimizer_idx": 1}):
        assert model.training_step({"image": IMAGES}, 0, **options).requires_grad
    assert graphs == [(0, True), (0, True), (1, False)]
    how = {"on_step": True, "on_epoch": False, "sync_dist": False, "batch_size": 2}
    assert all(how.items() <= call.kwargs.items() for call in model.log.call_args_list)


def test_both_sides_are_trained_by_their_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder_training, "without_gradient_sync", lambda _: nullcontext())
    model, asked = made(VQModel), []
    model._trainer = SimpleNamespace(is_last_batch=True, global_step=5, precision_plugin=None)
    model._trainer.optimizers = []
    model.manual_backward, model.update = Mock(), Mock()
    first, second = (Mock(param_groups=[]) for _ in range(2))
    model.all_optimizers = lambda: [first, second]
    model.train_both(0, lambda side: asked.append(side) or torch.tensor(float(side)))
    assert asked == [0, 1] == [call.args[0] for call in model.manual_backward.call_args_list]
    updates = [call.args for call in model.update.call_args_list]
    assert updates == [(first, 0), (second, 0)]
    assert model._step is None


def test_averages_are_validated_in_the_weights_place() -> None:
    model, seen = made(VQModel, use_ema=True), []
    own = float(model.encoder.conv_in.bias.detach()[0])
    model.model_ema.get_buffer("encoderconv_inbias").fill_(7)
    model._evaluate = lambda batch, split: seen.append(
        (split, float(model.encoder.conv_in.bias.detach()[0]))
    )
    model.validation_step({"image": IMAGES}, 0)
    assert seen == [("val", own), ("val_ema", 7)] and model.encoder.conv_in.bias[0] == own


def test_the_codebooks_use_is_logged_by_the_first_process() -> None:
    model = made(VQModel)
    model.log, model._used_codes = Mock(), Mock(n_codes=model.quantize.n_e)
    model._used_codes.taken = lambda: torch.tensor([5, 5, 5] + [0] * 9)
    model.on_validation_epoch_end()
    assert [(call.args, call.kwargs) for call in model.log.call_args_list] == [
        (("val/codebook_usage", 0.25), {"sync_dist": True}),
        (("val/codebook_perplexity", pytest.approx(3)), {"sync_dist": True}),
    ]


@pytest.mark.parametrize("cls", [VQNoDiscModel, VQSegmentationModel])
def test_shorter_losses_get_the_images_first(cls: Any) -> None:
    labels = {"n_labels": 3} if cls is VQSegmentationModel else {}
    model = made(cls, **labels)
    model.loss.forward = Mock(return_value=(1, {}))
    x, outputs, codebook_loss = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert model._published_loss(Reconstruction(0, x, outputs, codebook_loss), 0, "val") == (1, {})
    model.loss.forward.assert_called_once_with(codebook_loss, x, outputs, split="val")
