"""First stages against the golden numbers; see test_autoencoder_training.py for their training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.vqgan import VQModel
from taming.modules.losses.base import MissingLoss
from taming.modules.vqvae.ema import EMAVectorQuantizer
from tests.kit.models import build, first_stage_config
from tests.support import assert_close, fill_by_name, load_golden


def golden_vqmodel() -> tuple[VQModel, dict[str, Tensor]]:
    tensors, spec = load_golden("vqmodel")
    model = instantiate_from_config(spec["model"])
    fill_by_name(model)
    return model.eval(), tensors


@torch.no_grad()
def test_forward_passes_equal_the_golden_numbers() -> None:
    model, golden = golden_vqmodel()
    hidden = model.encoder(golden["x"])
    assert_close(hidden, golden["encoder"])
    assert_close(model.quant_conv(hidden), golden["prequant"])
    quant, loss, (_, _, indices) = model.encode(golden["x"])
    assert_close(quant, golden["quant"])
    assert_close(loss, golden["emb_loss"])
    assert_close(indices, golden["indices"])
    assert_close(model.decode(quant), golden["decode"])
    assert_close(model(golden["x"])[0], golden["rec"])
    entry = model.quantize.get_codebook_entry(indices, (2, 16, 16, 8))
    assert_close(entry, golden["codebook_entry"])


@torch.no_grad()
def test_indices_come_back_as_images() -> None:
    model, golden = golden_vqmodel()
    indices = model.encode_to_indices(golden["x"])
    assert indices.shape == (2, 16, 16)
    for given in (indices, indices.flatten(1)):
        assert_close(model.decode_indices(given), golden["rec"])
        assert_close(model.decode_code(given), golden["rec"])
    with pytest.raises(UserError, match="no square grid"):
        model.decode_indices(indices[:, :3].flatten(1)[:, :47])


@torch.no_grad()
def test_any_size_that_the_factor_divides() -> None:
    model, _ = golden_vqmodel()
    x = torch.rand(1, 3, 24, 40) * 2 - 1
    assert model.encode_to_indices(x).shape == (1, 12, 20)
    assert model(x)[0].shape == x.shape


def test_pictures() -> None:
    model, golden = golden_vqmodel()
    pictures = model.log_images({"image": golden["x"].permute(0, 2, 3, 1)})
    assert_close(pictures["reconstructions"], golden["rec"])
    labels = torch.rand(2, 7, 8, 8)
    shown = model.to_rgb(labels)
    assert torch.equal(model.to_rgb(labels), shown)
    assert shown.shape == (2, 3, 8, 8) and shown.min() == -1 and shown.max() == 1


def test_options_reach_what_they_are_for() -> None:
    options = {"use_ema": True, "batch_resize_range": [32, 48], "lr_g_factor": 0.5}
    model = instantiate_from_config(first_stage_config(**options))
    plain = instantiate_from_config(first_stage_config())
    assert (model.learning_rate, model.lr_g_factor, plain.lr_g_factor) == (4.5e-6, 0.5, 1)
    assert model.batch_resize_range == (32, 48) and plain.batch_resize_range is None
    averages = {name.replace(".", "") for name, _ in model.named_parameters()}
    assert dict(model.model_ema.named_buffers()).keys() == averages | {"decay", "num_updates"}
    assert not plain.use_ema and not any("ema" in name for name in plain.state_dict())


def test_a_quantizer_of_ones_own_has_its_options_itself() -> None:
    params = {"n_embed": 12, "embedding_dim": 4, "beta": 0.25}
    own = {"target": "taming.modules.vqvae.ema.EMAVectorQuantizer", "params": params}
    model = build(first_stage_config(quantizer_config=own))  # of the sizes that it has itself
    assert isinstance(model.quantize, EMAVectorQuantizer)
    for name, value in (("n_embed", 11), ("embed_dim", 3)):
        with pytest.raises(UserError, match=f"{name} is {value}, but quantizer_config makes"):
            build(first_stage_config(quantizer_config=own, **{name: value}))
    for name, value in (("remap", "used.npy"), ("sane_index_shape", True), ("legacy", False)):
        with pytest.raises(UserError, match=f"{name} has no effect beside quantizer_config"):
            build(first_stage_config(quantizer_config=own, **{name: value}))


def test_loading_a_checkpoint_without_the_loss(tmp_path: Path) -> None:
    model = build(first_stage_config())
    torch.nn.init.ones_(model.encoder.conv_in.weight)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("loss.")}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    other = build(first_stage_config(ckpt_path=str(tmp_path / "model.ckpt")))
    assert torch.equal(other.encoder.conv_in.weight, model.encoder.conv_in.weight)
    averaged = build(first_stage_config(ckpt_path=str(tmp_path / "model.ckpt"), use_ema=True))
    assert torch.equal(averaged.model_ema.encoderconv_inweight, model.encoder.conv_in.weight)
    foreign = build(first_stage_config(lossconfig={"target": "not_there.Loss"}))
    assert isinstance(foreign.loss, MissingLoss) and foreign.loss.target == "not_there.Loss"
