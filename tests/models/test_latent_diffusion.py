"""First stages of latent diffusion."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.evaluation.sources.images import SourceImage
from taming.evaluation.tasks.probe import FeatureKinds
from taming.evaluation.tasks.quantizers import evaluate
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.latent_diffusion import VQModelInterface
from taming.models.vqgan import VQModel
from taming.modules.losses.vqperceptual import LPIPS
from taming.pictures import to_uint8
from tests.kit.first_stages import assert_equal, batches, made, train
from tests.kit.models import (
    ddconfig,
    first_stage_config,
    transformer_config,
)
from tests.kit.training import tiny_trainer
from tests.modules.losses.backbones import backbone_file


def test_the_interface_encodes_to_what_diffusion_models_take() -> None:
    model, plain = made(VQModelInterface).eval(), made(VQModel).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        latents = model.encode(x)
        assert torch.equal(latents, plain.encode_to_prequant(x))
        quant, _, _ = plain.encode(x)
        assert torch.equal(model.decode(latents), plain.decode(quant))
        assert torch.equal(model.decode(quant, force_not_quantize=True), plain.decode(quant))
        assert not torch.equal(model.decode(latents, force_not_quantize=True), plain.decode(quant))
        assert torch.equal(model(x)[0], plain(x)[0])
        indices = model.encode_to_indices(x)
        assert torch.equal(indices, plain.encode_to_indices(x))
        assert torch.equal(model.decode_indices(indices), plain.decode_indices(indices))


def test_the_interface_is_evaluated_as_the_model_that_it_is() -> None:
    """By its codes, where its `encode` stops before them."""
    model, plain = made(VQModelInterface).eval(), made(VQModel).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 16, 24)
    probed, expected = FeatureKinds().of(model, x), FeatureKinds().of(plain, x)
    assert list(probed) == ["histogram", "codes", "latents"]
    assert all(torch.equal(features, expected[kind]) for kind, features in probed.items())
    images: Any = SimpleNamespace(batches=lambda _: iter([[SourceImage(0, to_uint8(x[0]))]]))
    counted: Any = lambda *_: SimpleNamespace(metrics={}, reconstructions={})  # noqa: E731
    stages: list[Any] = [SimpleNamespace(model=one) for one in (model, plain)]
    found, right = (evaluate(counted, stage, images) for stage in stages)
    assert found == right and found.bits_a_position > 0


def test_the_interface_is_no_stage_of_a_transformer() -> None:
    stage = first_stage_config("taming.models.latent_diffusion.VQModelInterface")
    with pytest.raises(UserError, match="first_stage_config: VQModelInterface is for diffusion"):
        Net2NetTransformer(**transformer_config(first_stage_config=stage)["params"])


def test_the_interface_can_be_trained(tmp_path: Path) -> None:
    model, plain = made(VQModelInterface), made(VQModel)
    assert_equal(train(plain, tmp_path), train(model, tmp_path))


def test_the_generators_rate_has_a_factor() -> None:
    model = made(VQModel, lr_g_factor=0.5)
    model.learning_rate = 0.25
    (generator, discriminator), _ = model.configure_optimizers()
    assert generator.param_groups[0]["lr"] == 0.125
    assert discriminator.param_groups[0]["lr"] == 0.25


def test_batches_are_resized_in_training_alone() -> None:
    model = made(VQModel, batch_resize_range=[32, 64])
    batch = {"image": torch.rand(1, 48, 48, 3)}
    assert model.get_input(batch, "image").shape == (1, 3, 64, 64)
    model._step = 5
    sides = {model.get_input(batch, "image").shape[-1] for _ in range(40)}
    assert sides == {32, 48, 64}
    assert model.eval().get_input(batch, "image").shape == (1, 3, 48, 48)
    with pytest.raises(UserError, match="batch_resize_range is two sides"):
        made(VQModel, batch_resize_range=[64, 32])


def test_averages_follow_are_validated_and_saved(tmp_path: Path) -> None:
    model = made(VQModel, use_ema=True)
    names = {n for n in model.state_dict() if n.startswith("model_ema.")}
    assert {"model_ema.decay", "model_ema.num_updates", "model_ema.encoderconv_inweight"} <= names
    assert "model_ema.lossdiscriminatormain0weight" in names
    start = model.encoder.conv_in.weight.detach().clone()
    model.learning_rate = 1e-3
    trainer = tiny_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(model, batches(1), batches(1))
    now = model.encoder.conv_in.weight.detach()
    expected = start + (1 - 2 / 11) * (now - start)  # the decay is (1 + 1) / (10 + 1) at first
    torch.testing.assert_close(model.model_ema.encoderconv_inweight, expected)
    assert model.model_ema.num_updates == 1
    assert trainer.callback_metrics["val/rec_loss"] != trainer.callback_metrics["val_ema/rec_loss"]
    fresh = made(VQModel)
    assert_equal(fresh.state_dict(), made(VQModel, use_ema=True).state_dict())


@pytest.mark.parametrize("target", ["not_there.Loss", "ldm.modules.losses.LPIPSWithDiscriminator"])
def test_a_foreign_loss_is_needed_to_train_alone(tmp_path: Path, target: str) -> None:
    model = made(VQModel, lossconfig={"target": target, "params": {"disc_start": 1}})
    assert model(torch.rand(1, 3, 16, 16))[0].shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match=f"lossconfig: {target} is not installed here"):
        train(model, tmp_path, 1)


@pytest.mark.parametrize("attn_type", ["vanilla", "none"])
def test_attention_can_be_left_out(attn_type: str) -> None:
    config = {**ddconfig(), "attn_resolutions": [8], "attn_type": attn_type}
    model = made(VQModel, ddconfig=config)
    names = [name for name in model.state_dict() if ".attn" in name]
    assert bool(names) == (attn_type == "vanilla")
    assert model(torch.rand(1, 3, 16, 16))[0].shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match="attn_type is linear; known are vanilla and none"):
        made(VQModel, ddconfig={**config, "attn_type": "linear"})


def test_latent_diffusions_loss_uses_lpips_as_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMING_VGG16", str(backbone_file("vgg", tmp_path, monkeypatch)))
    perceptual = LPIPS().eval()
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    perceptual(x.contiguous(), -x.contiguous()).mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
