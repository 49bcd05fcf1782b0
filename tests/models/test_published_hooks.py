"""Hooks of the original's models: what a subclass overrides is called, in training too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from taming.models.cond_transformer import Net2NetTransformer, disabled_train
from taming.models.vqgan import EMAVQ, GumbelVQ, VQModel, VQNoDiscModel
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.modules.vqvae.ema import EmbeddingEMA
from taming.modules.vqvae.gumbel import GumbelQuantize
from taming.modules.vqvae.nearest import VectorQuantizer2
from tests.kit.first_stages import IMAGES, assert_equal, batches, loader, made, train
from tests.kit.models import (
    GAN_LOSS,
    cosine_config,
    tiny_model,
    transformer_config,
)
from tests.kit.training import tiny_trainer
from tests.modules.losses.backbones import backbone_file

NO_DISC = {"target": "taming.modules.losses.segmentation.BCELossWithQuant"}


# ---------------------------------------------------------------------- first stages


class TwoSides(VQModel):
    """Written for the original, whose Trainer asks for the loss of each side."""

    def training_step(self, batch, batch_idx, optimizer_idx):  # type: ignore[no-untyped-def, override]
        x = self.get_input(batch, self.image_key)
        rec, loss = self(x)
        total, terms = self.loss(
            loss,
            x,
            rec,
            optimizer_idx,
            self.global_step,
            last_layer=self.get_last_layer(),
            split="train",
        )
        self.log_dict(terms)
        steps.append((optimizer_idx, self.global_step))
        return total


class Extends(TwoSides):
    def training_step(self, batch, batch_idx, optimizer_idx):  # type: ignore[no-untyped-def, override]
        return super().training_step(batch, batch_idx, optimizer_idx)


class Passes(VQModel):
    """Written for this project: it adds something around the step."""

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def, override]
        steps.append((0, batch_idx))
        return super().training_step(batch, batch_idx)


steps: list[tuple[int, int]] = []


@pytest.mark.parametrize("cls", [TwoSides, Extends, Passes])
def test_training_steps_of_both_kinds_train_as_ours(tmp_path: Path, cls: Any) -> None:
    expected = train(made(VQModel), tmp_path)
    steps.clear()
    assert_equal(expected, train(made(cls), tmp_path))
    both = [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert steps == (both if cls is not Passes else [(0, 0), (0, 1)])


class SkipsASide(TwoSides):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return (
            super().training_step(batch, batch_idx, optimizer_idx) if optimizer_idx == 0 else None
        )


def test_the_discriminator_may_be_left_out(tmp_path: Path) -> None:
    model = made(SkipsASide, lossconfig=GAN_LOSS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = train(model, tmp_path)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trained = {name for name, _ in model.named_parameters()} & changed
    assert "encoder.conv_in.weight" in trained
    assert not any(name.startswith("loss.discriminator") for name in trained)


class OneSide(VQNoDiscModel):
    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def, override]
        x = self.get_input(batch, self.image_key)
        rec, loss = self(x)
        return self.loss(loss, x, rec, split="train")[0]


def test_a_model_without_discriminator_may_return_its_loss(tmp_path: Path) -> None:
    expected = train(made(VQNoDiscModel, lossconfig=NO_DISC), tmp_path)
    assert_equal(expected, train(made(OneSide, lossconfig=NO_DISC), tmp_path))
    assert not torch.equal(
        expected["encoder.conv_in.weight"], made(OneSide).state_dict()["encoder.conv_in.weight"]
    )


def test_a_loop_of_ones_own_needs_no_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As notebooks train; LPIPS loads its weights when it is first used."""
    file = backbone_file("vgg", tmp_path, monkeypatch)
    loss = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "perceptual_weight": 1.0, "disc_start": 0}}
    loss["params"]["vgg_path"] = str(file)
    model = made(VQModel, lossconfig=loss)
    assert not model.loss.perceptual_loss.ready
    (generator, discriminator), _ = model.configure_optimizers()
    before = copy.deepcopy(model.state_dict())
    for number, optimizer in ((0, generator), (1, discriminator)):
        x = model.get_input({"image": IMAGES}, "image")
        rec, codebook_loss = model(x)
        total, terms = model.loss(
            codebook_loss, x, rec, number, 5, last_layer=model.get_last_layer(), split="train"
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        assert all(name.startswith("train/") for name in terms)
    assert model.loss.perceptual_loss.ready
    after = model.state_dict()
    for name in ("encoder.conv_in.weight", "loss.discriminator.main.0.weight"):
        assert not torch.equal(before[name], after[name])
    losses = [model.training_step({"image": IMAGES}, 0, side) for side in (0, 1)]
    losses.append(model.training_step({"image": IMAGES}, 0, optimizer_idx=1))
    assert all(isinstance(loss, Tensor) and loss.requires_grad for loss in losses)
    assert torch.equal(losses[1], losses[2])


class Heard(VQModel):
    """Overrides what it can, and says what was called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.heard: set[str] = set()
        super().__init__(*args, **kwargs)

    def get_input(self, batch, k):  # type: ignore[no-untyped-def, override]
        self.heard.add("get_input")
        return super().get_input(batch, k)

    def encode(self, x):  # type: ignore[no-untyped-def, override]
        self.heard.add("encode")
        return super().encode(x)

    def encode_to_prequant(self, x):  # type: ignore[no-untyped-def, override]
        self.heard.add("encode_to_prequant")
        return super().encode_to_prequant(x)

    def decode(self, quant):  # type: ignore[no-untyped-def, override]
        self.heard.add("decode")
        return super().decode(quant)

    def get_last_layer(self):  # type: ignore[no-untyped-def, override]
        self.heard.add("get_last_layer")
        return self.decoder.conv_out.weight

    def configure_optimizers(self):  # type: ignore[no-untyped-def, override]
        self.heard.add("configure_optimizers")
        parts = self.autoencoder_parameters(), self.loss.discriminator.parameters()
        return [SGD(part, lr=self.learning_rate) for part in parts], []

    def validation_step(self, batch, batch_idx):  # type: ignore[no-untyped-def, override]
        self.heard.add("validation_step")
        return super().validation_step(batch, batch_idx)

    def to_rgb(self, x):  # type: ignore[no-untyped-def, override]
        self.heard.add("to_rgb")
        return super().to_rgb(x)

    def init_from_ckpt(self, path, ignore_keys=()):  # type: ignore[no-untyped-def, override]
        self.heard.add("init_from_ckpt")


def test_hooks_of_first_stages_are_called(tmp_path: Path) -> None:
    model = made(Heard, ckpt_path="anything")
    assert model.heard == {"init_from_ckpt"}
    model.learning_rate = 1e-3
    trainer = tiny_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(model, batches(1), batches(1))
    model.log_images({"image": IMAGES}, split="train", pl_module=model)
    own = {name for name in vars(Heard) if not name.startswith("_")}
    assert model.heard == own
    assert all(isinstance(one.optimizer, SGD) for one in model.optimizers())


class Annealed(GumbelVQ):
    def temperature_scheduling(self) -> None:
        self.quantize.temperature = 0.25


def test_the_temperature_follows_the_hook(tmp_path: Path) -> None:
    model = made(Annealed, temperature_scheduler_config=cosine_config())
    train(model, tmp_path, 1)
    assert model.quantize.temperature == 0.25
    assert model.encode_to_prequant(torch.zeros(1, 3, 16, 16)).shape == (1, 8, 8, 8)


class Weighed(VQLPIPSWithDiscriminator):
    weight = 0.5

    def calculate_adaptive_weight(self, nll_loss, g_loss, last_layer=None):  # type: ignore[no-untyped-def, override]
        own = super().calculate_adaptive_weight(nll_loss, g_loss, last_layer=last_layer)
        seen.append((nll_loss.detach(), g_loss.detach(), own))
        return own * self.weight


seen: list[tuple[Tensor, ...]] = []


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_an_adaptive_weight_of_ones_own(tmp_path: Path, weight: float) -> None:
    lossconfig = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0}}
    ours, own = made(VQModel, lossconfig=lossconfig), made(VQModel, lossconfig=lossconfig)
    own.loss.__class__, Weighed.weight = Weighed, weight
    gradients = []
    for model in (ours, own):
        model.training_step({"image": IMAGES}, 0, 0).backward()
        gradients.append(model.encoder.conv_in.weight.grad)
    assert seen[-1][2] > 0
    d_weight = own.loss_terms["train/d_weight"]
    torch.testing.assert_close(d_weight, weight * ours.loss_terms["train/d_weight"])
    close = torch.allclose(*gradients, rtol=1e-4, atol=1e-7)
    assert close == (weight == 1.0)


class Table(EmbeddingEMA):
    def cluster_size_ema_update(self, new_cluster_size):  # type: ignore[no-untyped-def, override]
        calls.append(("cluster_size", tuple(new_cluster_size.shape)))
        super().cluster_size_ema_update(new_cluster_size)

    def embed_avg_ema_update(self, new_embed_avg):  # type: ignore[no-untyped-def, override]
        calls.append(("embed_avg", tuple(new_embed_avg.shape)))
        super().embed_avg_ema_update(new_embed_avg)

    def weight_update(self, num_tokens):  # type: ignore[no-untyped-def, override]
        calls.append(("weight", (num_tokens,)))
        super().weight_update(num_tokens)


calls: list[tuple[str, tuple[int, ...]]] = []


def test_averages_of_codes_are_updated_by_their_hooks() -> None:
    model, x = made(EMAVQ), torch.rand(1, 3, 16, 16)
    ours = copy.deepcopy(model)
    model.quantize.embedding.__class__ = Table
    model(x)
    ours(x)
    assert calls == [("cluster_size", (12,)), ("embed_avg", (12, 4)), ("weight", (12,))]
    assert_equal(ours.state_dict(), model.state_dict())
    model.quantize.embedding.update = False
    model(x)
    assert len(calls) == 3
    assert torch.equal(model.quantize.embedding(torch.tensor([3])), model.quantize.codes[3:4])


class Remapped(VectorQuantizer2):
    def remap_to_used(self, indices):  # type: ignore[no-untyped-def, override]
        return torch.zeros_like(indices)

    def unmap_to_all(self, indices):  # type: ignore[no-untyped-def, override]
        return torch.full_like(indices, 3)


class RemappedGumbel(GumbelQuantize):
    def remap_to_used(self, indices):  # type: ignore[no-untyped-def, override]
        assert set(indices.flatten().tolist()) <= {1, 3}  # codes of the whole table
        return torch.full_like(indices, 9)


def test_remapping_of_gumbel_codes_is_heard(tmp_path: Path) -> None:
    np.save(tmp_path / "used.npy", np.array([1, 3]))
    options = {"remap": str(tmp_path / "used.npy")}
    _, _, (_, _, indices) = RemappedGumbel(2, 4, 5, **options).eval()(torch.rand(1, 2, 2, 2))
    assert indices.eq(9).all()
    torch.manual_seed(0)
    own = GumbelQuantize(2, 4, 5, **options).eval()
    codes, _, (_, _, indices) = own(torch.randn(1, 2, 3, 3))
    assert torch.equal(own.get_codebook_entry(indices, (1, 3, 3, 4)), codes)


def test_remapping_is_heard(tmp_path: Path) -> None:
    np.save(tmp_path / "used.npy", np.array([1, 3]))
    quantizer = Remapped(5, 2, 0.25, remap=str(tmp_path / "used.npy"))
    _, _, (_, _, indices) = quantizer(torch.rand(1, 2, 2, 2))
    assert indices.eq(0).all()
    entry = quantizer.get_codebook_entry(indices.reshape(-1), (1, 2, 2, 2))
    assert torch.equal(entry[0, :, 0, 0], quantizer.codes[3])


# ---------------------------------------------------------------------- transformers


class HeardTransformer(Net2NetTransformer):
    def init_first_stage_from_ckpt(self, config):  # type: ignore[no-untyped-def, override]
        heard.append("first stage")
        super().init_first_stage_from_ckpt(config)

    def init_cond_stage_from_ckpt(self, config):  # type: ignore[no-untyped-def, override]
        heard.append("cond stage")
        super().init_cond_stage_from_ckpt(config)

    def get_input(self, key, batch):  # type: ignore[no-untyped-def, override]
        heard.append("get_input")
        return super().get_input(key, batch)

    def get_xc(self, *args):  # type: ignore[no-untyped-def, override]
        heard.append("get_xc")
        return super().get_xc(*args)

    def encode_to_z(self, x):  # type: ignore[no-untyped-def, override]
        heard.append("encode_to_z")
        return super().encode_to_z(x)

    def encode_to_c(self, c):  # type: ignore[no-untyped-def, override]
        heard.append("encode_to_c")
        return super().encode_to_c(c)

    def shared_step(self, batch, batch_idx):  # type: ignore[no-untyped-def, override]
        heard.append("shared_step")
        return super().shared_step(batch, batch_idx)

    def top_k_logits(self, logits, k):  # type: ignore[no-untyped-def, override]
        heard.append("top_k_logits")
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    def decode_to_img(self, index, zshape):  # type: ignore[no-untyped-def, override]
        heard.append("decode_to_img")
        return super().decode_to_img(index, zshape)


heard: list[str] = []


def test_hooks_of_transformers_are_called(tmp_path: Path) -> None:
    heard.clear()
    model = HeardTransformer(**transformer_config()["params"])
    assert heard == ["first stage", "cond stage"]
    batch = {"image": IMAGES[:, :8, :8], "class_label": torch.tensor([1, 2])}
    trainer = tiny_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(model, loader(batch), loader(batch))
    assert heard.count("shared_step") == 2 and {"get_xc", "get_input", "encode_to_z"} <= set(heard)
    heard.clear()
    model.log_images(batch, top_k=3)
    assert {"encode_to_c", "decode_to_img", "top_k_logits"} <= set(heard)
    start = torch.zeros(2, 0, dtype=torch.long)
    indices = model.sample(start, torch.tensor([[1], [2]]), 3, top_k=2, sample=True)
    assert indices.eq(7).all()


def test_sampling_with_top_k_is_what_it_was() -> None:
    model = tiny_model()
    start, classes = torch.zeros(2, 0, dtype=torch.long), torch.tensor([[1], [2]])
    torch.manual_seed(0)
    expected = model.sample(start, classes, 4, 0.9, True, 5)
    torch.manual_seed(0)
    model.top_k_logits = lambda logits, k: Net2NetTransformer.top_k_logits(model, logits, k)
    assert torch.equal(model.sample(start, classes, 4, 0.9, True, 5), expected)


def test_a_disabled_train_keeps_the_mode() -> None:
    layer = nn.Linear(1, 1).eval()
    assert disabled_train(layer) is layer and disabled_train(layer, True).training is False
