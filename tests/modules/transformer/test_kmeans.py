from __future__ import annotations

import pytest
import torch

from taming.errors import UserError
from taming.modules.transformer.mingpt import KMeans


def test_finds_the_colours_and_draws_with_them() -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    image = colours[torch.randint(2, (2, 4, 6), generator=generator)].permute(0, 3, 1, 2)
    noisy = image + 0.01 * torch.randn(image.shape, generator=generator)
    kmeans = KMeans(ncluster=2)
    assert not kmeans.is_initialized()
    kmeans.initialize(noisy.permute(0, 2, 3, 1).reshape(-1, 3), generator)
    assert kmeans.is_initialized()
    indices = kmeans(noisy)
    assert indices.shape == (2, 24)
    assert (kmeans(indices, reverse=True, shape=(4, 6)) - image).abs().max() < 0.02


def test_state_survives() -> None:
    kmeans = KMeans(ncluster=4, nc=1)
    kmeans.initialize(torch.arange(16.0)[:, None])
    other = KMeans(ncluster=4, nc=1)
    other.load_state_dict(kmeans.state_dict())
    assert other.is_initialized()
    assert other(torch.tensor([[0, 1, 2, 3]]), reverse=True).shape == (1, 1, 2, 2)


def test_too_few_pixels() -> None:
    with pytest.raises(UserError, match="cannot form 512 clusters"):
        KMeans().initialize(torch.zeros(3, 3))


def test_as_a_first_stage_it_takes_its_colours_from_the_first_batch() -> None:
    kmeans = KMeans(ncluster=3, resolution=4)
    palette = torch.eye(3) * 2 - 1
    image = palette[torch.arange(2 * 4 * 6) % 3].reshape(2, 4, 6, 3).permute(0, 3, 1, 2)
    torch.manual_seed(1)
    quant, _, (_, _, indices) = kmeans.encode(image)
    assert kmeans.is_initialized() and indices.shape == (2, 24)
    assert kmeans.encode_to_indices(image).shape == (2, 4, 6)
    colours = kmeans.C.clone()
    kmeans.encode(-image)
    assert torch.equal(kmeans.C, colours)
    assert torch.equal(kmeans.decode_code(kmeans.encode_to_indices(image)), quant)
    assert kmeans.decode_indices(indices[:, :16]).shape == (2, 3, 4, 4)
    assert kmeans.latent_shape() == (3, 4, 4)
