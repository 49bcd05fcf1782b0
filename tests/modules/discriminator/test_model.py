import pytest
import torch
from torch import nn

from taming.errors import UserError
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from taming.modules.util import ActNorm


@pytest.mark.parametrize(
    ("layers", "size", "patches"), [(1, 6, 1), (2, 32, 6), (3, 24, 1), (3, 64, 6)]
)
def test_one_logit_per_patch(layers, size, patches):
    discriminator = NLayerDiscriminator(input_nc=4, ndf=8, n_layers=layers)
    assert discriminator(torch.randn(2, 4, size, size)).shape == (2, 1, patches, patches)


@pytest.mark.parametrize("actnorm", [False, True])
def test_the_published_layers(actnorm):
    layers = list(NLayerDiscriminator(use_actnorm=actnorm).main)
    convolutions = [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0], m.bias is None)
        for m in layers
        if isinstance(m, nn.Conv2d)
    ]
    no_bias = not actnorm
    assert convolutions == [
        (3, 64, 4, 2, 1, False),
        (64, 128, 4, 2, 1, no_bias),
        (128, 256, 4, 2, 1, no_bias),
        (256, 512, 4, 1, 1, no_bias),
        (512, 1, 4, 1, 1, False),
    ]
    assert [m.negative_slope for m in layers if isinstance(m, nn.LeakyReLU)] == [0.2] * 4
    norm = ActNorm if actnorm else nn.BatchNorm2d
    assert [type(m) for m in layers[:5]] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d, norm, nn.LeakyReLU]


def test_images_below_the_smallest_size_are_refused():
    for height, width in ((23, 40), (40, 23)):
        with pytest.raises(UserError, match=f"at least 24 pixels.*{height}x{width}"):
            NLayerDiscriminator(ndf=8)(torch.randn(1, 3, height, width))


def test_widths_stop_growing_at_eight_times():
    discriminator = NLayerDiscriminator(ndf=4, n_layers=5)
    widths = [m.out_channels for m in discriminator.main if isinstance(m, torch.nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


def test_actnorm_replaces_batch_normalisation():
    discriminator = NLayerDiscriminator(ndf=8, n_layers=2, use_actnorm=True)
    names = set(discriminator.state_dict())
    assert {"main.2.bias", "main.3.loc", "main.3.scale", "main.3.initialized"} <= names
    assert not any("running" in name for name in names)
    discriminator(torch.randn(2, 3, 32, 32))
    assert discriminator.state_dict()["main.3.initialized"] == 1


def test_initialisation():
    torch.manual_seed(0)
    discriminator = NLayerDiscriminator(ndf=32, n_layers=2).apply(weights_init)
    conv, norm = discriminator.main[5].weight, discriminator.main[6]
    assert abs(conv.std().item() - 0.02) < 1e-3 and abs(conv.mean().item()) < 1e-3
    assert abs(norm.weight.mean().item() - 1) < 0.02 and norm.bias.abs().max() == 0
    assert 0.015 < norm.weight.std().item() < 0.025
