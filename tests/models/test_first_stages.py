"""Every first stage: trained by the real Trainer, validated, shown, and used by its indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.vqgan import EMAVQ, GumbelVQ, VQModel
from taming.modules.vqvae.quantize import VectorQuantizer2
from tests.kit.datasets import images
from tests.kit.models import (
    SEGMENTATION,
    VQGAN,
    build,
    cosine_config,
    ddconfig,
    first_stage_config,
)
from tests.kit.training import fit
from tests.support import defaults

FSQ = {"target": "taming.modules.vqvae.fsq.FSQ", "params": {"levels": [3, 3]}}
BCE = {"target": "taming.modules.losses.segmentation.BCELossWithQuant"}
TEMPERATURE = cosine_config(lr_min=0.5, max_decay_steps=4)


def segmentations(count: int = 6, labels: int = 5) -> Tensor:
    return torch.nn.functional.one_hot(images(count, labels).argmax(dim=-1), labels)


def configs(folder: Path) -> dict[str, tuple[dict[str, Any], Tensor]]:
    """Name -> (config, training images [N, H, W, C])."""
    np.save(folder / "used.npy", np.array([1, 4, 5, 11]))
    remap = str(folder / "used.npy")
    gumbel = {"temperature_scheduler_config": TEMPERATURE, "kl_weight": 1e-3}
    return {
        "vq": (first_stage_config(), images()),
        "fixed beta": (first_stage_config(legacy=False, sane_index_shape=True), images()),
        "remap": (first_stage_config(remap=remap), images()),
        "gumbel": (first_stage_config(VQGAN + "GumbelVQ", **gumbel), images()),
        "gumbel remap": (first_stage_config(VQGAN + "GumbelVQ", remap=remap, **gumbel), images()),
        "ema": (first_stage_config(VQGAN + "EMAVQ", revive_after=1), images()),
        "ema remap": (first_stage_config(VQGAN + "EMAVQ", remap=remap), images()),
        "segmentation": (
            first_stage_config(VQGAN + "VQSegmentationModel", 5, n_labels=5, lossconfig=BCE),
            segmentations(),
        ),
        "no discriminator": (first_stage_config(VQGAN + "VQNoDiscModel", lossconfig=BCE), images()),
        "depth": (first_stage_config(channels=1), images(channels=1)[..., 0]),
        "grayscale": (first_stage_config(channels=1), images(channels=1)),
        "two channels": (first_stage_config(channels=2), images(channels=2)),
        "seven channels": (first_stage_config(channels=7, colorize_nlabels=7), images(channels=7)),
        "not square": (first_stage_config(), images(height=12, width=20)),
    }


NAMES = [
    *("vq", "fixed beta", "remap", "gumbel", "gumbel remap", "ema", "ema remap", "segmentation"),
    *("no discriminator", "depth", "grayscale", "two channels", "seven channels", "not square"),
]


@pytest.mark.parametrize("name", NAMES)
def test_trains_validates_shows_and_codes(name: str, tmp_path: Path) -> None:
    config, data = configs(tmp_path)[name]
    model = build(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = fit(model, {"image": data}, tmp_path)
    assert trainer.global_step == 3
    _check_training(model, before, trainer.callback_metrics)
    _check_pictures(model, data)
    _check_indices(model.eval(), data)


def _check_training(model: Any, before: dict[str, Tensor], logged: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()  # nothing that a strict load would trip over
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {"encoder.conv_in.weight", "decoder.conv_out.weight"} <= moved
    assert any(key.startswith("quantize.") for key in moved)
    discriminated = any(key.startswith("loss.discriminator.") for key in after)
    assert any(key.startswith("loss.discriminator.") for key in moved) == discriminated
    assert ("val/discloss" in logged) == discriminated
    assert all(value.isfinite() for value in logged.values())
    assert {"train/aeloss", "val/aeloss", "val/codebook_usage"} <= logged.keys()


def _check_pictures(model: Any, data: Tensor) -> None:
    pictures = model.log_images({"image": data[:3]})
    assert not torch.equal(pictures["inputs"], pictures["reconstructions"])
    for picture in pictures.values():
        assert picture.shape[0] == 3 and picture.shape[1] in (1, 3)
        assert picture.shape[2:] == data.shape[1:3]


@torch.no_grad()
def _check_indices(model: Any, data: Tensor) -> None:
    x = model.get_input({"image": data[:2]}, "image")
    quant, _, _ = model.encode(x)
    indices = model.encode_to_indices(x)
    assert indices.shape == (2, x.shape[2] // 2, x.shape[3] // 2)
    assert model.decode_indices(indices).shape == x.shape
    assert torch.equal(model.decode_code(indices), model.decode_indices(indices))
    if model.quantize.remap is None:  # a code outside the list has no index to come back by
        torch.testing.assert_close(model.decode_indices(indices), model.decode(quant))
    else:
        assert indices.max() < 4


def test_published_defaults() -> None:
    vqgan, gumbel = defaults(VQModel), defaults(GumbelVQ)
    assert vqgan["legacy"] is True and vqgan["sane_index_shape"] is False
    assert vqgan["image_key"] == gumbel["image_key"] == "image"
    assert (gumbel["n_embed"], gumbel["embed_dim"], gumbel["kl_weight"]) == (8192, 256, 1e-8)
    assert defaults(EMAVQ) == {"decay": 0.99}
    assert build(first_stage_config(n_embed=None, embed_dim=None)).quantize.codes.shape == (
        1024,
        256,
    )


def test_models_hand_their_options_to_their_parts(tmp_path: Path) -> None:
    made = {name: build(config) for name, (config, _) in configs(tmp_path).items()}
    assert made["vq"].quantize.beta == made["ema"].quantize.beta == 0.25
    assert not made["fixed beta"].quantize.legacy and made["fixed beta"].quantize.sane_index_shape
    for name in ("remap", "gumbel remap", "ema remap"):
        assert made[name].quantize.remap == str(tmp_path / "used.npy"), name
    assert made["gumbel"].quantize.kl_weight == 1e-3 and made["gumbel"].quantize.num_hiddens == 8
    wide = build(first_stage_config(ddconfig={**ddconfig(), "double_z": True}, monitor="val/x"))
    assert wide.quant_conv.in_channels == 16 and wide.monitor == "val/x"
    assert wide.encode_to_indices(torch.zeros(1, 3, 16, 16)).shape == (1, 8, 8)
    stage = made["segmentation"]
    assert stage.colorize.shape == (3, 5, 1, 1) and len(stage.colorize.unique()) == 15
    options = {
        "image_key": "photo",
        "monitor": "val/x",
        "temperature_scheduler_config": TEMPERATURE,
    }
    gumbel = build(first_stage_config(VQGAN + "GumbelVQ", **options))
    assert (gumbel.image_key, gumbel.monitor) == ("photo", "val/x")
    assert gumbel.logged_names() == build(first_stage_config()).logged_names() | {"temperature"}
    torch.save({"state_dict": made["gumbel"].state_dict()}, tmp_path / "gumbel.ckpt")
    config, _ = configs(tmp_path)["gumbel"]
    config["params"] |= {"ckpt_path": str(tmp_path / "gumbel.ckpt"), "ignore_keys": ["decoder."]}
    torch.manual_seed(1)
    loaded = instantiate_from_config(config)
    weights = [model.state_dict() for model in (loaded, made["gumbel"])]
    assert torch.equal(*(each["encoder.conv_in.weight"] for each in weights))
    assert not torch.equal(*(each["decoder.conv_in.weight"] for each in weights))
    assert loaded.loaded_from == str(tmp_path / "gumbel.ckpt")
    cold = {**TEMPERATURE["params"], "lr_start": 0.0, "warm_up_steps": 1}
    with pytest.raises(UserError, match="begins at 0.0; it must be above 0"):
        schedule = {**TEMPERATURE, "params": cold}
        build(first_stage_config(VQGAN + "GumbelVQ", temperature_scheduler_config=schedule))
    logits = torch.randn(2, 5, 4, 4)
    shown = made["segmentation"]._shown(logits)
    each = made["segmentation"]._shown(torch.eye(5)[None, :, None])[0, :, 0].t()  # (5, 3)
    assert len(each.unique(dim=0)) == 5
    assert torch.equal(shown, each[logits.argmax(dim=1)].permute(0, 3, 1, 2))


def test_the_temperature_follows_its_schedule(tmp_path: Path) -> None:
    config, data = configs(tmp_path)["gumbel"]
    model = build(config)
    trainer = fit(model, {"image": data}, tmp_path)
    # Of step 2, the last of three: half of the way.
    assert model.quantize.temperature == pytest.approx(0.75)
    assert trainer.callback_metrics["temperature"] == pytest.approx(0.75)


def test_the_published_beta_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, data = configs(tmp_path)["vq"]
    with caplog.at_level("INFO"):
        fit(build(config), {"image": data}, tmp_path, steps=1)
    assert caplog.text.count("legacy: true") == 1


def test_beta_weighs_the_term_that_legacy_says() -> None:
    z = torch.ones(1, 1, 1, 1)
    for legacy, weights in ((True, (1.0, 0.25)), (False, (0.25, 1.0))):
        quantizer = VectorQuantizer2(1, 1, beta=0.25, legacy=legacy)
        torch.nn.init.zeros_(quantizer.embedding.weight)
        leaf = z.clone().requires_grad_()
        quantizer(leaf)[1].backward()
        assert leaf.grad is not None and quantizer.embedding.weight.grad is not None
        slopes = leaf.grad.item(), -quantizer.embedding.weight.grad.item()
        assert slopes == tuple(2 * weight for weight in weights)


def test_dead_codes_are_revived_if_asked(tmp_path: Path) -> None:
    def codes_in_use(revive_after: int) -> int:
        torch.manual_seed(0)
        model: EMAVQ = build(
            first_stage_config(VQGAN + "EMAVQ", n_embed=64, revive_after=revive_after, decay=0.5)
        )
        with torch.no_grad():
            model.quantize.embedding.weight.add_(100)
            model.quantize.embedding.embed_avg.add_(100)
        fit(model, {"image": images()}, tmp_path, steps=4)
        with torch.no_grad():
            indices = model.encode_to_indices(images().permute(0, 3, 1, 2))
        return len(indices.unique())

    # Far from the latents one code takes them all; put among them, many share them.
    assert codes_in_use(0) < 5 < codes_in_use(2)


def test_ema_state_has_the_published_names() -> None:
    names = [n for n in build(first_stage_config(VQGAN + "EMAVQ")).state_dict() if "quantize" in n]
    assert sorted(names) == [
        "quantize.embedding.cluster_size",
        "quantize.embedding.embed_avg",
        "quantize.embedding.weight",
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            first_stage_config(
                VQGAN + "EMAVQ",
                n_embed=None,
                embed_dim=None,
                decay=0.9,
                quantizer_config=FSQ,
            ),
            "decay has no effect beside quantizer_config",
        ),
        (
            {**SEGMENTATION, "params": {**SEGMENTATION["params"], "colorize_nlabels": 7}},
            "colorize_nlabels is 7, but n_labels: 5 says",
        ),
    ],
)
def test_options_without_effect_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(config)
