import pytest
import torch

from taming.errors import UserError
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init


@pytest.mark.parametrize(
    ("layers", "size", "patches"), [(1, 6, 1), (2, 32, 6), (3, 24, 1), (3, 64, 6)]
)
def test_one_logit_per_patch(layers, size, patches):
    discriminator = NLayerDiscriminator(input_nc=4, ndf=8, n_layers=layers)
    assert discriminator(torch.randn(2, 4, size, size)).shape == (2, 1, patches, patches)


def test_images_below_the_smallest_size_are_refused():
    with pytest.raises(UserError, match="at least 24 pixels.*23x40"):
        NLayerDiscriminator(ndf=8)(torch.randn(1, 3, 23, 40))


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
