from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.modules.diffusionmodules.layers import doubled_by_views
from taming.modules.diffusionmodules.model import (
    AttnBlock,
    Decoder,
    Downsample,
    Encoder,
    Normalize,
    ResnetBlock,
    Upsample,
    nonlinearity,
)
from tests.support import assert_close, defaults, fill_by_name, load_golden

SMALL = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "in_channels": 3,
    "resolution": 16,
    "z_channels": 4,
    "double_z": False,
}


def small(**changes):
    return {**SMALL, **changes}


@torch.no_grad()
def test_golden_forward_passes():
    golden, spec = load_golden("vqmodel")
    stage = fill_by_name(instantiate_from_config(spec["model"])).eval()
    latents = stage.encoder(golden["x"])
    assert_close(latents, golden["encoder"])
    assert_close(stage.quant_conv(latents), golden["prequant"])
    quant, loss, (_, _, indices) = stage.quantize(golden["prequant"])
    assert_close(quant, golden["quant"])
    assert_close(loss, golden["emb_loss"])
    assert_close(indices, golden["indices"])
    entry = stage.quantize.get_codebook_entry(indices, golden["codebook_entry"].movedim(1, 3).shape)
    assert_close(entry, golden["codebook_entry"])
    assert_close(stage.decode(golden["quant"]), golden["decode"])
    assert_close(stage(golden["x"])[0], golden["rec"])


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("size", [(16, 16), (8, 20), (34, 10)])
def test_any_channels_and_sizes(channels, size):
    config = small(in_channels=channels, out_ch=channels)
    images = torch.randn(2, channels, *size)
    latents = Encoder(**config)(images)
    assert latents.shape == (2, 4, size[0] // 2, size[1] // 2)
    assert Decoder(**config)(latents).shape == images.shape


def test_double_z_and_attributes_that_clients_read():
    config = small(double_z=True, ch_mult=(1, 1, 2))
    encoder, decoder = Encoder(**config), Decoder(**config)
    assert encoder.conv_out.out_channels == 8
    assert decoder.z_shape == (1, 4, 4, 4)
    assert decoder.num_resolutions == 3 and decoder.ch == 32
    assert decoder.conv_out.weight.shape == (3, 32, 3, 3)


def test_attention_sits_at_the_given_resolutions():
    encoder = Encoder(**small(ch_mult=[1, 1, 1]))
    decoder = Decoder(**small(ch_mult=[1, 1, 1], num_res_blocks=2))
    assert [len(level.attn) for level in encoder.down] == [0, 1, 0]
    assert [len(level.attn) for level in decoder.up] == [0, 3, 0]
    highest = small(ch_mult=[1, 1, 1], attn_resolutions=[16])
    assert [len(level.attn) for level in Encoder(**highest).down] == [1, 0, 0]
    assert [len(level.attn) for level in Decoder(**highest).up] == [2, 0, 0]
    for network in (Encoder(**small(attn_type="none")), Decoder(**small(attn_type="none"))):
        assert not any(isinstance(module, AttnBlock) for module in network.modules())
    with pytest.raises(UserError, match="attn_type is linear; known are vanilla and none"):
        Encoder(**small(attn_type="linear"))


def test_unknown_keys_are_ignored_and_pre_end_is_given():
    decoder = Decoder(**small(give_pre_end=True, attn_type="vanilla"))
    assert decoder(torch.randn(1, 4, 4, 4)).shape == (1, 32, 8, 8)


def test_widths_that_cannot_be_normalised_are_named():
    for ch, ch_mult in ((20, [1, 2]), (16, [2])):  # ch itself is a width, too
        with pytest.raises(UserError, match=f"ch={ch}.*multiple of 32"):
            Encoder(**small(ch=ch, ch_mult=ch_mult))
    with pytest.raises(UserError, match="ddconfig.ch.*320000"):
        Encoder(**small(ch=320_000))


def test_resolutions_without_a_level_are_named(caplog):
    Encoder(**small(attn_resolutions=[8, 7]))
    expected = "attn_resolutions: no level has a resolution of 7; the levels have 16, 8"
    assert caplog.messages == [expected]


@pytest.mark.parametrize("size", [(3, 5), (32, 32), (41, 25)])
@torch.no_grad()
def test_attention_is_softmax_of_scaled_products(monkeypatch, size):
    """Written out up to 1,024 positions, and in a fused kernel beyond."""
    fused = Mock(wraps=F.scaled_dot_product_attention)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    torch.manual_seed(0)
    block = AttnBlock(32)
    block.q.weight *= 5  # scores far enough apart that positions differ in weight
    x = torch.randn(2, 32, *size)
    h = block.norm(x)
    q, k, v = (conv(h).flatten(2) for conv in (block.q, block.k, block.v))  # (B, C, HW)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 32**0.5, dim=-1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    assert_close(block(x), x + block.proj_out(mixed))
    assert fused.call_count == (size[0] * size[1] > 1024)


def zeros(hidden):
    return float((hidden == 0).float().mean())


@torch.no_grad()
def test_dropout_zeroes_its_share_before_the_second_convolution_in_training():
    block = ResnetBlock(in_channels=32, dropout=0.9)
    shares = []
    for convolution in (block.conv1, block.conv2):
        convolution.register_forward_pre_hook(lambda _, args: shares.append(zeros(args[0])))
    x = torch.randn(4, 32, 16, 16)
    block.train()(x)
    block.eval()(x)
    assert 0.88 < shares.pop(1) < 0.92 and shares == [0, 0, 0]
    networks = Encoder(**small(dropout=0.4)), Decoder(**small(dropout=0.4))
    for network, blocks in zip(networks, (2 + 2, 4 + 2), strict=True):
        rates = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
        assert rates == [0.4] * blocks


def test_resampling_with_and_without_convolution():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(Upsample(1, with_conv=False)(x)[..., ::2, ::2], x)
    torch.testing.assert_close(Downsample(1, with_conv=False)(x)[0, 0, 0, 0], x[..., :2, :2].mean())
    for network in (Encoder, Decoder):
        names = network(**small(resamp_with_conv=False)).state_dict()
        assert not any("sample" in name for name in names)
    down = Downsample(1, with_conv=True)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    # Padding on the right and bottom alone: the last window holds two rows and columns of four.
    torch.testing.assert_close(down(x)[0, 0, 1, 1], x[..., 2:, 2:].sum())


def test_residual_block_options():
    block = ResnetBlock(in_channels=32, out_channels=64, conv_shortcut=True, temb_channels=8)
    x = torch.randn(2, 32, 4, 4)
    assert "conv_shortcut.weight" in block.state_dict()
    embedding = torch.randn(2, 8)
    h = block.conv1(nonlinearity(block.norm1(x)))
    for temb, shift in ((None, 0), (embedding, block.temb_proj(nonlinearity(embedding)))):
        h_shifted = h + (0 if temb is None else shift[:, :, None, None])
        residual = block.conv2(nonlinearity(block.norm2(h_shifted)))
        assert_close(block(x, temb), residual + block.conv_shortcut(x))


def test_published_defaults():
    common = {"ch_mult": (1, 2, 4, 8), "dropout": 0, "resamp_with_conv": True}
    common |= {"attn_type": "vanilla", "norm_groups": 32, "initial_weights": "torch"}
    assert defaults(Encoder) == {**common, "double_z": True}
    assert defaults(Decoder) == {**common, "decoder_ch_mult": None, "give_pre_end": False}


def test_small_functions():
    x = torch.randn(5)
    torch.testing.assert_close(nonlinearity(x), x * torch.sigmoid(x))
    assert (Normalize(64).num_groups, Normalize(64).eps) == (32, 1e-6)


def test_compiles_without_graph_breaks():
    encoder, decoder = Encoder(**SMALL), Decoder(**SMALL)
    x = torch.randn(1, 3, 16, 16)
    compiled = torch.compile(lambda x: decoder(encoder(x)), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), decoder(encoder(x)))


def test_fewer_groups_keep_how_bright_an_image_is() -> None:
    """A group of one channel has the same mean in every image; its weights are as before."""
    sizes = {**SMALL, "ch_mult": [1, 1], "attn_resolutions": []}
    made = {}
    for groups in (32, 8):
        torch.manual_seed(0)
        decoder = Decoder(**sizes, norm_groups=groups)
        made[groups] = decoder
        normalized = [m for m in decoder.modules() if isinstance(m, nn.GroupNorm)]
        assert {m.num_groups for m in normalized} == {groups}
        means = decoder.norm_out(torch.randn(2, 32, 8, 8) + torch.arange(32)[:, None, None])
        flat = means.mean((2, 3)).abs().max() < 1e-4
        assert bool(flat) == (groups == 32)
    assert made[8].state_dict().keys() == made[32].state_dict().keys()
    with pytest.raises(UserError, match="cannot split into 24"):
        Decoder(**sizes, norm_groups=24)


@pytest.mark.parametrize(("initial", "variance"), [("torch", 1 / 3), ("lecun", 1.0)])
def test_initial_weights_by_their_variance(initial: str, variance: float) -> None:
    """Times the fan-in; only convolutions are drawn, and the weights are the same ones."""
    torch.manual_seed(0)
    for kind in (Encoder, Decoder):
        network = kind(**SMALL, initial_weights=initial)
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        drawn = [m.weight * m.weight[0].numel() ** 0.5 for m in convolutions]
        assert torch.cat([w.flatten() for w in drawn]).var().item() == pytest.approx(
            variance, rel=0.02
        )
        assert (network.norm_out.weight == 1).all()
        assert network.state_dict().keys() == kind(**SMALL).state_dict().keys()


def test_widths_that_32_does_not_divide() -> None:
    sizes = {**SMALL, "ch": 48, "attn_resolutions": [8]}
    encoder, decoder = (kind(**sizes, norm_groups=16) for kind in (Encoder, Decoder))
    groups = {
        m.num_groups for n in (encoder, decoder) for m in n.modules() if hasattr(m, "num_groups")
    }
    assert groups == {16} and decoder(encoder(torch.randn(1, 3, 16, 16))).shape == (1, 3, 16, 16)


def gradients(y, *inputs):
    torch.manual_seed(1)
    return torch.autograd.grad(y, inputs, torch.randn_like(y))


def test_what_is_compiled_for_gpus_is_the_same_upsampling():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    y, expected = doubled_by_views(x), F.interpolate(x, scale_factor=2.0, mode="nearest")
    assert torch.equal(y, expected)
    assert torch.allclose(*gradients(y, x), *gradients(expected, x))
