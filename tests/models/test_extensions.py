"""Parts that users bring along: quantizers, losses, schedules, stages; and runs as stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from taming.errors import UserError
from taming.models.codes import as_pictures
from taming.models.vqgan import VQModel
from taming.modules.losses.vqperceptual import DummyLoss, VQLPIPSWithDiscriminator
from taming.modules.vqvae.codebook import (
    Codebook,
    Quantized,
    channels_first,
    channels_last,
    nearest_code,
    straight_through,
)
from tests.kit.datasets import Items, images
from tests.kit.models import (
    DEPTH,
    FIRST_STAGE,
    GAN_LOSS,
    SEGMENTATION,
    SPIRAL,
    VQGAN,
    build,
    cosine_config,
    first_stage_config,
    tiny_model,
    transformer_config,
)
from tests.kit.runs import tiny_run
from tests.kit.training import fit, tiny_trainer

HERE = "tests.models.test_extensions."


def here(name: str, **params: Any) -> dict[str, Any]:
    return {"target": HERE + name, "params": params}


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    return {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}


# ---------------------------------------------------------------------- quantizers


class Signs(nn.Module):
    """Each channel becomes -1 or 1, as in LFQ (arXiv 2310.05737); inherits from nothing of ours."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.n_e, self.e_dim = 2**bits, bits
        self.register_buffer("places", 2 ** torch.arange(bits))

    def forward(self, z: Tensor) -> Quantized:
        bits = z > 0
        indices = (bits.long() * self.places[:, None, None]).sum(dim=1)  # type: ignore[index]
        z_q = straight_through(z, bits.float() * 2 - 1)
        return z_q, (z - z_q.detach()).square().mean(), (None, None, indices)

    def get_codebook_entry(self, indices: Tensor, shape: Any = None) -> Tensor:
        codes = ((indices[..., None] & self.places) > 0).float() * 2 - 1  # type: ignore[operator]
        return codes if shape is None else codes.reshape(shape).permute(0, 3, 1, 2)


class Projected(Codebook):
    """Codes narrower than the latents, looked up after a projection (arXiv 2110.04627)."""

    def __init__(self, n_e: int, e_dim: int, width: int) -> None:
        super().__init__(n_e, e_dim)
        self.projection = nn.Conv2d(width, e_dim, 1)
        self.table = nn.Parameter(torch.randn(n_e, e_dim))

    @property
    def input_channels(self) -> int:
        return self.projection.in_channels

    @property
    def codes(self) -> Tensor:
        return self.table

    def forward(self, z: Tensor) -> Quantized:
        z = self.projection(z)
        rows = channels_last(z)
        indices = nearest_code(rows, self.codes)
        codes = self.get_codebook_entry(indices)
        loss = (rows - codes).square().mean()
        return channels_first(straight_through(rows, codes), z), loss, (None, None, indices)


QUANTIZERS = {
    "no base class": here("Signs", bits=3),
    "a Codebook": here("Projected", n_e=10, e_dim=2, width=6),
}


def with_quantizer(name: str, **params: Any) -> dict[str, Any]:
    sizes = {"n_embed": None, "embed_dim": None}
    return first_stage_config(quantizer_config=QUANTIZERS[name], **{**sizes, **params})


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantizer_of_ones_own_is_a_class_and_a_line_of_yaml(name: str, tmp_path: Path) -> None:
    model: VQModel = build(with_quantizer(name))
    before = copies(model)
    trainer = fit(model, {"image": images()}, tmp_path)
    assert trainer.callback_metrics["val/codebook_usage"] > 0
    assert {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= changed(model, before)
    assert ("quantize.table" in changed(model, before)) == (name == "a Codebook")
    model.eval()
    x = images(2).permute(0, 3, 1, 2)
    with torch.no_grad():
        indices = model.encode_to_indices(x)
        assert indices.shape == (2, 8, 8) and indices.max() < model.quantize.n_e
        torch.testing.assert_close(model.decode_indices(indices), model(x)[0])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_transformer_learns_its_codes(name: str, tmp_path: Path) -> None:
    small = with_quantizer(name, ddconfig=FIRST_STAGE["params"]["ddconfig"])
    model = build(transformer_config(first_stage_config=small))
    assert model.n_codes == model.first_stage_model.quantize.n_e
    columns = {"image": images(height=8, width=8), "class_label": torch.arange(6) % 5}
    fit(model, columns, tmp_path)
    assert model.eval().log_images(columns)["samples_nopix"].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_embed": 12}, "n_embed is 12, but quantizer_config makes a quantizer with 8"),
        ({"embed_dim": 4}, "embed_dim is 4, .* with 3; make embed_dim null or leave it out"),
        ({"remap": "used.npy"}, "remap has no effect beside quantizer_config"),
        ({"legacy": False}, "legacy has no effect"),
        ({"sane_index_shape": True}, "sane_index_shape has no effect"),
    ],
)
def test_options_that_a_quantizer_overrules_are_refused(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(with_quantizer("no base class", **params))


def test_sizes_that_agree_with_the_quantizer_are_fine() -> None:
    model = build(with_quantizer("no base class", n_embed=8, embed_dim=3))
    assert model.quantize.n_e == 8


def test_mistakes_in_a_quantizers_config_name_their_place() -> None:
    for config, message in (
        (here("Sings", bits=3), r"quantizer_config: .* did you mean 'Signs'"),
        (here("Signs", bit=3), r"quantizer_config.params: .* no parameter 'bit'"),
    ):
        with pytest.raises(UserError, match=message):
            build(first_stage_config(quantizer_config=config))


# ---------------------------------------------------------------------- losses


class PublishedGame(nn.Module):
    """A loss with a discriminator that was written for the original."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = nn.Conv2d(3, 1, 4, 4)
        self.calls: list[tuple[int, int, str, bool]] = []

    def forward(
        self,
        codebook_loss: Tensor,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls.append((optimizer_idx, global_step, split, last_layer is not None))
        if optimizer_idx == 0:
            distance = (inputs - reconstructions).abs().mean() + codebook_loss.mean()
            loss = distance - self.discriminator(reconstructions).mean()
            return loss, {f"{split}/distance": distance.detach(), f"{split}/rec_loss": distance}
        fake = self.discriminator(reconstructions.detach()).mean()
        loss = fake - self.discriminator(inputs.detach()).mean()
        return loss, {f"{split}/fake": fake.detach()}


class PublishedDistance(nn.Module):
    """One without a discriminator."""

    def forward(
        self, qloss: Tensor, target: Tensor, prediction: Tensor, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        distance = (target - prediction).square().mean()
        return distance + qloss.mean(), {f"{split}/distance": distance.detach()}


class WithSquares(VQLPIPSWithDiscriminator):
    """One of ours, with another term, as projects around the original add them."""

    def forward(self, *args: Any, split: str = "train", **options: Any) -> Any:
        loss, terms = super().forward(*args, split=split, **options)
        _, inputs, outputs, optimizer_idx, *_ = args
        if optimizer_idx:
            return loss, terms
        squares = (inputs - outputs).square().mean()
        return loss + 1000 * squares, {**terms, f"{split}/squares": squares.detach()}


def trained(config: dict[str, Any], folder: Path, **columns: Tensor) -> tuple[VQModel, pl.Trainer]:
    model: VQModel = build(config)
    before = copies(model)
    trainer = fit(model, columns, folder)
    assert trainer.global_step == 3
    moved = changed(model, before)
    assert {"encoder.conv_in.weight", "decoder.conv_out.weight"} <= moved
    assert "quantize.embedding.weight" in moved
    if model.discriminator is not None:
        assert any(name.startswith("loss.discriminator.") for name in moved)
    return model, trainer


def test_a_published_loss_trains_both_sides(tmp_path: Path) -> None:
    model, trainer = trained(
        first_stage_config(lossconfig=here("PublishedGame")), tmp_path, image=images()
    )
    loss = model.loss
    assert isinstance(loss, PublishedGame)
    training = [call for call in loss.calls if call[2] == "train"]
    # Both sides of a batch play at one step, which counts batches.
    assert training == [(side, step, "train", True) for step in range(3) for side in (0, 1)]
    assert {"val/distance", "val/fake", "val/aeloss"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (first_stage_config(VQGAN + "VQNoDiscModel", lossconfig=here("PublishedDistance")), 3),
        (SEGMENTATION, 5),
    ],
)
def test_models_without_a_game_take_the_shorter_call(
    config: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    params = {**config["params"], "lossconfig": here("PublishedDistance"), "image_key": "image"}
    _, trainer = trained({**config, "params": params}, tmp_path, image=images(channels=channels))
    logged = trainer.callback_metrics
    assert {"train/distance", "val/distance", "val/aeloss"} <= logged.keys()
    assert logged["val/aeloss"] > logged["val/distance"]


def test_what_a_subclass_adds_to_a_loss_is_trained(tmp_path: Path) -> None:
    def kind_of(target: str) -> dict[str, Tensor]:
        config = first_stage_config(lossconfig={**GAN_LOSS, "target": target})
        model, trainer = trained(config, tmp_path, image=images())
        assert ("val/squares" in trainer.callback_metrics) == (target != GAN_LOSS["target"])
        return copies(model)

    plain, extended = kind_of(GAN_LOSS["target"]), kind_of(HERE + "WithSquares")
    weight = "decoder.conv_out.weight"
    assert not torch.allclose(plain[weight], extended[weight], atol=1e-4)


# ---------------------------------------------------------------------- schedules of the rate


class Rates(pl.Callback):
    """The learning rates of all optimizers at the beginning of every batch."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        rates = [one.param_groups for one in trainer.optimizers]
        self.rows.append([groups[0]["lr"] for groups in rates])


SCHEDULE = cosine_config(lr_min=0.1, max_decay_steps=4)
FALLING = [1.0, 0.868, 0.55, 0.232]  # half a cosine from 1 to 0.1
STAGES = {
    "first stage": (first_stage_config(scheduler_config=SCHEDULE), 2, 16),
    "gumbel": (
        first_stage_config(
            VQGAN + "GumbelVQ",
            temperature_scheduler_config=cosine_config(),
            scheduler_config=SCHEDULE,
        ),
        2,
        16,
    ),
    "transformer": (transformer_config(scheduler_config=SCHEDULE), 1, 8),
}


@pytest.mark.parametrize("name", STAGES)
def test_rates_follow_their_schedule_also_after_a_resume(name: str, tmp_path: Path) -> None:
    config, optimizers, size = STAGES[name]
    columns = {"image": images(4, 3, size, size), "class_label": torch.arange(4)}

    def run(epochs: int, checkpoint: Path | None = None) -> tuple[list[list[float]], pl.Trainer]:
        rates = Rates()
        torch.manual_seed(0)
        trainer = tiny_trainer(tmp_path, max_epochs=epochs, callbacks=[rates])
        loader = DataLoader(Items(columns), batch_size=2)  # two batches an epoch
        trainer.fit(
            build(config), loader, ckpt_path=None if checkpoint is None else str(checkpoint)
        )
        return rates.rows, trainer

    rates, whole = run(2)
    expected = [[1e-3 * factor] * optimizers for factor in FALLING]
    assert rates == [pytest.approx(row, rel=1e-3) for row in expected]
    half, trainer = run(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest, resumed = run(2, tmp_path / "half.ckpt")
    assert half + rest == rates and resumed.global_step == 4
    if name != "gumbel":  # whose noise is random
        after = copies(resumed.model)  # type: ignore[arg-type]
        assert not changed(whole.model, after)  # type: ignore[arg-type]


def test_without_a_schedule_the_rate_is_constant(tmp_path: Path) -> None:
    for config, size in ((first_stage_config(), 16), (transformer_config(), 8)):
        rates = Rates()
        columns = {"image": images(6, 3, size, size), "class_label": torch.arange(6) % 5}
        fit(build(config), columns, tmp_path, callbacks=[rates])
        assert {rate for row in rates.rows for rate in row} == {1e-3}


# ---------------------------------------------------------------------- runs as stages


def test_a_run_is_a_first_stage(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "stage", FIRST_STAGE)
    expected = tiny_model(FIRST_STAGE).state_dict()
    for path in (run, run / "checkpoints" / "last.ckpt"):
        model = build(transformer_config(first_stage_config=str(path)))
        stage = model.first_stage_model
        assert isinstance(stage.loss, DummyLoss) and not stage.training
        assert stage.loaded_from == str(run / "checkpoints" / "last.ckpt")
        assert all(torch.equal(stage.state_dict()[name], expected[name]) for name in expected)


def test_a_run_is_a_condition_stage(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "stage", DEPTH)
    model = build(
        transformer_config({"block_size": 80}, cond_stage_config=str(run), cond_stage_key="depth")
    )
    assert model.condition_kind == "image" and model.cond_stage_model.channels == 1
    assert not any(p.requires_grad for p in model.cond_stage_model.parameters())


def test_a_stage_that_is_no_run_is_refused(tmp_path: Path) -> None:
    transformer = tiny_run(tmp_path / "transformer")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path / "empty", "no checkpoints/last.ckpt"),
        (transformer, "is a transformer"),
    ):
        with pytest.raises(UserError, match=message):
            build(transformer_config(first_stage_config=str(path)))
        with pytest.raises(UserError, match=message):
            build(transformer_config(cond_stage_config=str(path)))
    with pytest.raises(UserError, match="__is_nothing__"):
        build(transformer_config(cond_stage_config="__is_nothing__"))


@torch.no_grad()
def test_a_transformer_codes_images_as_its_first_stage_does() -> None:
    model = tiny_model(transformer_config(permuter_config=SPIRAL))
    x = images(2, 3, 8, 16).permute(0, 3, 1, 2)
    stage = model.first_stage_model
    indices = model.encode_to_indices(x)
    assert indices.shape == (2, 4, 8)  # in rows and columns, whatever the permuter
    assert torch.equal(indices, stage.encode_to_indices(x))
    assert torch.equal(model.decode_indices(indices), stage.decode_indices(indices))
    square = indices[:, :, :4]
    assert torch.equal(model.decode_indices(square.flatten(1)), stage.decode_indices(square))
    with pytest.raises(UserError, match="no square grid"):
        model.decode_indices(indices.flatten(1))


# ---------------------------------------------------------------------- images of conditions


class Planes(nn.Module):
    """A condition stage of images with any number of channels; its codes are the images."""

    def encode(self, c: Tensor) -> tuple[Tensor, None, tuple[None, None, Tensor]]:
        return c, None, (None, None, c.argmax(dim=1).flatten(1))


class KnownPlanes(Planes):
    kind = "image"


class DecodedPlanes(Planes):
    def decode(self, quant: Tensor) -> Tensor:
        return quant


class Windows(DecodedPlanes):
    kind = "tokens"


@torch.no_grad()
def shown(config: Any, c: Tensor) -> dict[str, Tensor]:
    model = tiny_model(transformer_config(cond_stage_config=config))
    quant = c if c.dim() == 4 else torch.zeros(len(c), 1)
    return model.condition_images(c, quant, (16, 24))


def test_labels_are_written_out() -> None:
    config = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 5}}
    written = shown(config, torch.tensor([3, 4]))
    assert written.keys() == {"conditioning"}
    pictures = written["conditioning"]
    assert pictures.shape == (2, 3, 16, 24) and not torch.equal(pictures[0], pictures[1])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_a_stage_of_ones_own(channels: int) -> None:
    c = torch.rand(2, channels, 8, 8)
    decoded = shown(here("DecodedPlanes"), c)
    assert decoded.keys() == {"conditioning", "conditioning_rec"}
    assert torch.equal(decoded["conditioning"], decoded["conditioning_rec"])
    assert decoded["conditioning"].shape == (2, 1 if channels == 1 else 3, 8, 8)
    if channels < 4:
        assert torch.equal(decoded["conditioning"], c)
    else:  # a color for each label
        colors = decoded["conditioning"].permute(0, 2, 3, 1).flatten(0, 2)
        labels = c.argmax(dim=1).flatten()
        for label in range(channels):
            assert len(colors[labels == label].unique(dim=0)) == 1
        assert len(colors.unique(dim=0)) == channels


def test_what_a_stage_cannot_decode_is_not_shown() -> None:
    c = torch.rand(2, 3, 8, 8)
    for stage in ("Planes", "KnownPlanes", "Windows"):
        assert shown(here(stage), c).keys() == {"conditioning"}
    assert shown(here("DecodedPlanes"), torch.zeros(2, 7, dtype=torch.long)) == {}
    assert shown("__is_unconditional__", c) == {}


def test_segmentations_are_shown_in_their_stages_colors() -> None:
    c = torch.nn.functional.one_hot(torch.randint(5, (2, 8, 8)), 5).permute(0, 3, 1, 2).float()
    model = tiny_model(transformer_config(cond_stage_config=SEGMENTATION))
    images = as_pictures(model.cond_stage_model, c)
    assert torch.equal(images, model.cond_stage_model.to_rgb(c))
    assert not torch.equal(images, as_pictures(None, c))
