"""Steps of first stages without a Trainer; see test_vqgan.py for the golden run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from taming.errors import UserError
from taming.models.vqgan import VQModel, VQNoDiscModel, VQSegmentationModel
from taming.modules.losses.base import Reconstruction
from tests.kit.first_stages import IMAGES, made
from tests.kit.models import GAN_LOSS, ddconfig

OWN_LOSS = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0}}


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
    with torch.no_grad():
        indices = model.encode_to_indices(IMAGES.permute(0, 3, 1, 2))
    counts = torch.bincount(indices.flatten(), minlength=12)
    assert torch.equal(model._used_codes.counts_so_far(), counts)


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
    assert schedules == []
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


def test_averages_follow_updates_and_start_from_what_is_loaded(tmp_path: Any) -> None:
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


def test_batches_are_resized_as_images_are() -> None:
    model, x = made(VQModel, batch_resize_range=[32, 64]), IMAGES.permute(0, 3, 1, 2)
    for step in (0, 4):  # the largest, so that a lack of memory shows
        model._step = step
        resized = model.get_input({"image": IMAGES}, "image")
        assert torch.equal(resized, nn.functional.interpolate(x, (64, 64), mode="bicubic"))
    made(VQModel, batch_resize_range=[32, 32])
    with pytest.raises(UserError, match="from 16 on"):
        made(VQModel, batch_resize_range=[8, 32])


def test_losses_are_prepared_before_training() -> None:
    model = made(VQModel)
    model.loss.prepare = Mock()
    model._trainer = SimpleNamespace(is_global_zero=True)
    model.on_fit_start()
    model.loss.prepare.assert_called_once_with()


@pytest.mark.parametrize("cls", [VQNoDiscModel, VQSegmentationModel])
def test_shorter_losses_get_the_images_first(cls: Any) -> None:
    labels = {"n_labels": 3} if cls is VQSegmentationModel else {}
    model = made(cls, **labels)
    model.loss.forward = Mock(return_value=(1, {}))
    x, outputs, codebook_loss = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert model._published_loss(Reconstruction(0, x, outputs, codebook_loss), 0, "val") == (1, {})
    model.loss.forward.assert_called_once_with(codebook_loss, x, outputs, split="val")
