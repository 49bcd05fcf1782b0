"""Tokenizers of other projects against numbers of their own code, for small models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.checkpoint.layouts import LAYOUTS
from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.magvit2 import MagVit2VQ
from taming.models.maskgit import MaskGitVQ
from taming.modules import magvit2, maskgit
from taming.modules.losses.adversarial import D_LOSSES, G_LOSSES
from tests.kit.models import build, ddconfig, first_stage_config
from tests.kit.tokenizers import (
    NAMES,
    built,
    golden,
    manifests,
    needs_golden_sets,
    small_section,
)
from tests.support import assert_close, golden_weight

LOSS = "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"


def ours(name: str, images: Tensor) -> Tensor:
    """Images in the project's range -> in [-1, 1]."""
    return 2 * images - 1 if name == "maskgit" else images


def theirs(name: str, images: Tensor) -> Tensor:
    return (images + 1) / 2 if name == "maskgit" else images


def pixel_loss(name: str, images: Tensor, outputs: Tensor) -> Tensor:
    squared = name in ("llamagen", "maskgit")
    return (F.mse_loss if squared else F.l1_loss)(outputs, images)


def assert_gradient(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the largest."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@needs_golden_sets
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_encoding_and_decoding(name: str) -> None:
    numbers, _ = golden(name)
    model, x = built(name).eval(), ours(name, numbers["x"])
    assert_close(model.encoder(x), numbers["enc"])
    if "prequant" in numbers:
        assert_close(model.encode_to_prequant(x), numbers["prequant"])
    codes, _, (_, _, indices) = model.encode(x)
    assert_close(codes, numbers["zq"])
    grid = numbers["indices"].reshape(2, 16, 16).long()
    assert torch.equal(indices.reshape(2, 16, 16), grid)
    assert torch.equal(model.encode_to_indices(x), grid)
    entry = model.quantize.get_codebook_entry(grid.reshape(-1), (2, 16, 16, codes.shape[1]))
    assert_close(entry, numbers["codebook_entry"])
    assert_close(theirs(name, model.decode(numbers["zq"])), numbers["dec"])
    decoded = theirs(name, model.decode_indices(grid))
    assert_close(decoded.clamp(0, 1) if name == "maskgit" else decoded, numbers["dec_from_indices"])


@needs_golden_sets
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(name: str) -> None:
    numbers, spec = golden(name)
    model, x = built(name).train(), ours(name, numbers["x"])
    outputs, codebook_loss = model(x)
    assert_close(theirs(name, outputs), numbers["train.rec"])
    loss = pixel_loss(name, numbers["x"], theirs(name, outputs)) + codebook_loss
    assert_close(loss.reshape(()), numbers["train.loss_sum"])
    loss.backward()
    for parameter in spec["grad_parameters"]:  # of the same names here
        assert_gradient(model.get_parameter(parameter).grad, numbers[f"grad.{parameter}"])


def gan_model(name: str, **loss: Any) -> Any:
    """A golden set's model with a loss of ours, whose discriminator is the golden set's."""
    own = {"disc_start": 0, "perceptual_weight": 0.0, "disc_ndf": 4, "disc_num_layers": 2}
    model = built(name, lossconfig={"target": LOSS, "params": {**own, **loss}}).train()
    numbers, _ = golden(name)
    weights = {k.removeprefix("disc."): t for k, t in numbers.items() if k.startswith("disc.")}
    model.loss.discriminator.load_state_dict(weights)
    return model


HINGE_LECAM = {
    "generator_loss": "non_saturating",
    "adaptive_weight": False,
    "disc_weight": 0.1,
    "lecam_weight": 0.05,
    "lecam_decay": 0.999,
    "lecam_one_sided": True,
}
SQUARED = {"disc_weight": 0.5, "disc_loss_weight": 0.5, "pixel_loss": "l2"}
GAMES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "latent diffusion": ("ldm_vq", "gan", {"disc_weight": 0.6}),
    "LlamaGen, adaptive": ("llamagen", "gan_adaptive", SQUARED),
    "LlamaGen": ("llamagen", "gan", {**SQUARED, "adaptive_weight": False}),
    "IBQ": ("ibq", "gan", HINGE_LECAM),
    "Open-MAGVIT2": ("open_magvit2", "gan", HINGE_LECAM),
    "SimVQ": ("simvq", "gan", {**HINGE_LECAM, "lecam_weight": 0.0}),
}


@needs_golden_sets
@pytest.mark.parametrize(("name", "group", "options"), GAMES.values(), ids=GAMES)
def test_the_adversarial_game(name: str, group: str, options: dict[str, Any]) -> None:
    """By options of our loss: the generator's total, its gradients, and the discriminator's."""
    numbers, spec = golden(name)
    model = gan_model(name, **options)
    outputs, codebook_loss = model(numbers["x"])
    last = model.decoder.conv_out.weight
    loss, _ = model.loss.generator_loss(numbers["x"], outputs, codebook_loss, 0, last_layer=last)
    assert_close(loss.reshape(()), numbers[f"{group}.gen_total"])
    loss.backward()
    for parameter in spec["grad_parameters"]:
        actual = model.get_parameter(parameter).grad
        assert_gradient(actual, numbers[f"{group}.grad.{parameter}"])
    for end in ("_1", "_2"):  # LeCAM's averages move in each
        loss, _ = model.loss.discriminator_loss(numbers["x"], outputs, 0)
        expected = numbers.get(f"{group}.disc_total{end}")
        if expected is None:
            expected = numbers[f"{group}.disc_total"]
        assert_close(loss, expected)


@needs_golden_sets
def test_the_hinge_game_of_one_batch() -> None:
    numbers, _ = golden("llamagen")
    real, fake = numbers["fn.logits_real"], numbers["fn.logits_fake"]
    assert_close(D_LOSSES["hinge"](real, fake), numbers["fn.hinge_d"])
    assert_close(D_LOSSES["vanilla"](real, fake), numbers["fn.vanilla_d"])
    assert_close(G_LOSSES["mean"](fake), numbers["fn.hinge_g"])


# ---------------------------------------------------------------------- networks


def test_pixels_of_the_way_up_are_the_slow_part_of_the_channels() -> None:
    channels = torch.arange(8.0).reshape(1, 8, 1, 1)  # 4 pixels of 2 channels
    pixels = magvit2.depth_to_space(channels)
    assert pixels[0, 0].tolist() == [[0, 2], [4, 6]] and pixels[0, 1].tolist() == [[1, 3], [5, 7]]


def test_where_widths_differ_maskgit_drops_the_blocks_input() -> None:
    block = maskgit.Block(32, 64, 0.0)
    x = torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        h = block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))
        assert block.nin_shortcut is not None
        assert_close(block(x), h + block.nin_shortcut(h))


def test_adaptive_norm_needs_several_positions() -> None:
    stage = instantiate_from_config(small_section("open_magvit2"))
    with pytest.raises(UserError, match="codes of more than one position"):
        stage.decode_indices(torch.zeros(1, 1, 1, dtype=torch.long))


def test_codes_have_the_width_of_the_latents() -> None:
    for cls, name in ((MagVit2VQ, "open_magvit2"), (MaskGitVQ, "maskgit")):
        network = small_section(name)["params"]["ddconfig"]
        with pytest.raises(UserError, match="z_channels is 4, but the quantizer's codes have the"):
            cls(ddconfig=network, n_embed=16, embed_dim=8)
        gumbel = {"num_hiddens": 8, "embedding_dim": 4, "n_embed": 16}
        target = "taming.modules.vqvae.gumbel.GumbelQuantize"
        with pytest.raises(UserError, match="have the width 4, and it takes latents of 8; "):
            cls(ddconfig=network, quantizer_config={"target": target, "params": gumbel})
    with pytest.raises(UserError, match="decoder_ch_mult has 1 levels, but ch_mult 2"):
        network = {**ddconfig(), "decoder_ch_mult": [1]}
        build(first_stage_config(ddconfig=network))


# ---------------------------------------------------------------------- full size


FULL = {
    "llamagen_vq16": "llamagen",
    "llamagen_vq8": "llamagen",
    "maskgit": "maskgit",
    "ibq_16384": "ibq",
    "open_magvit2_256L": "open_magvit2",
    "simvq_1k": "simvq",
    "ldm_vq_f4_noattn": "vqgan",
}
MANIFEST_OF = {"simvq_1k": "simvq", "ldm_vq_f4_noattn": "vq-f4-noattn"}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights by their names, as those of the published architecture's numbers."""
    state = {name: golden_weight(name, torch.empty(shape), 0) for name, shape in shapes.items()}
    if "quantize.codebook_used" in state:
        state["quantize.codebook_used"].zero_()
    return state


@pytest.mark.slow
@needs_golden_sets
@pytest.mark.parametrize("name", FULL)
@torch.no_grad()
def test_the_published_architecture(name: str) -> None:
    numbers, spec = golden(name, "full")
    layout, shapes = LAYOUTS[FULL[name]], manifests()[MANIFEST_OF.get(name, name)]
    model = instantiate_from_config(layout.config(shapes)).eval()
    model.load_state_dict(layout.to_model(filled(shapes)))
    size = spec["image_size"]
    x = golden_weight("x", torch.empty(1, 3, size, size), 0).mul((3 * size * size) ** 0.5).tanh()
    corner = (x + 1) / 2 if name == "maskgit" else x
    assert_close(corner[..., :4, :4], numbers["x_corner"])
    latents = model.encoder(x)
    assert_close(latents[:, :4], numbers["enc_first4"])
    assert_close(latents.flatten(2).norm(dim=2), numbers["enc_norms"])
    codes, _, (_, _, indices) = model.encode(x)
    wrong = indices.reshape(-1) != numbers["indices"].reshape(-1)
    assert not (wrong & (numbers["index_margins"].reshape(-1) > 1e-4)).any()
    if not wrong.any():
        assert_close(codes[:, :4], numbers["zq_first4"])
    grid = numbers["indices"].reshape(1, *codes.shape[2:]).long()
    images = theirs(name, model.decode_indices(grid))
    assert_close(images[..., :32, :32], numbers["dec_top32"])
    assert_close(images[..., -32:, -32:], numbers["dec_bottom32"])
