from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer import kmeans as kmeans_module
from taming.modules.transformer.mingpt import KMeans
from tests.support import assert_close


def test_finds_the_colours_and_draws_with_them() -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    image = colours[torch.randint(2, (2, 4, 6), generator=generator)].permute(0, 3, 1, 2)
    noisy = image + 0.01 * torch.randn(image.shape, generator=generator)
    kmeans = KMeans(ncluster=2)
    assert not kmeans.is_initialized()
    kmeans.initialize(noisy.permute(0, 2, 3, 1).reshape(-1, 3), generator)
    kmeans.initialized.zero_()
    assert kmeans.is_initialized()  # the buffer, which a GPU has, is not read again
    indices = kmeans(noisy)
    assert indices.shape == (2, 24)
    for shape in ((4, 6), (3, 4, 6), [4, 6], torch.Size((2, 3, 4, 6))):
        assert (kmeans(indices, reverse=True, shape=shape) - image).abs().max() < 0.02
    for wrong in (None, (4, 5), (3, 4, 4)):
        with pytest.raises(UserError, match="24 colors an image are not 4 x [45] pixels: give"):
            kmeans(indices, reverse=True, shape=wrong)


def test_colours_move_to_the_means_of_their_pixels() -> None:
    kmeans, pixels = KMeans(ncluster=3, nc=1), torch.tensor([[0.0], [1.0], [5.0], [20.0]])
    moved = kmeans._moved(pixels, torch.tensor([[1.0], [6.0], [19.0]]), None)
    assert moved.tolist() == [[0.5], [5.0], [20.0]]
    strays = set()
    for seed in range(32):
        generator = torch.Generator().manual_seed(seed)
        moved = kmeans._moved(pixels, torch.tensor([[1.0], [99.0], [6.0]]), generator)
        assert moved[[0, 2]].tolist() == [[0.5], [12.5]]
        strays.add(float(moved[1]))
    assert strays == {0, 1, 5, 20}


def test_every_iteration_and_a_random_start_count(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[tuple[float, ...]] = []

    def add_one(self: KMeans, x: Tensor, colors: Tensor, generator: Any) -> Tensor:
        starts.append(tuple(colors.flatten().tolist()))
        return colors + 1

    monkeypatch.setattr(KMeans, "_moved", add_one)
    kmeans, pixels = KMeans(ncluster=2, nc=1, niter=7), torch.arange(9.0)[:, None]
    kmeans.initialize(pixels, torch.Generator().manual_seed(0))
    assert len(starts) == 7 and KMeans().niter == 10
    first = torch.tensor(starts[0])
    assert torch.equal(kmeans.C.flatten(), first + 7)
    kmeans.initialize(pixels, torch.Generator().manual_seed(1))
    assert starts[0] != starts[7] and len(set(starts[0])) == 2


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
    KMeans(ncluster=3, nc=1).initialize(torch.arange(3.0)[:, None])  # just enough


def test_all_processes_have_the_colours_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_module, "same_on_all_ranks", lambda colours: colours.fill_(7))
    kmeans = KMeans(ncluster=3)
    kmeans.encode(torch.randn(2, 3, 4, 4))
    assert (kmeans.C == 7).all()


def test_as_a_first_stage_it_takes_its_colours_from_the_first_batch() -> None:
    kmeans = KMeans(ncluster=3, resolution=4)
    palette = torch.tensor([[1.0, -0.5, 0.2], [-1, 0.3, 0.8], [0.1, 0.9, -0.7]])
    image = palette[torch.arange(2 * 4 * 6) % 3].reshape(2, 4, 6, 3).permute(0, 3, 1, 2)
    torch.manual_seed(1)
    quant, _, (_, _, indices) = kmeans.encode(image)
    assert kmeans.is_initialized() and indices.shape == (2, 24)
    assert_close(quant, image)
    assert kmeans.encode_to_indices(image).shape == (2, 4, 6)
    colours = kmeans.C.clone()
    kmeans.encode(-image)
    assert torch.equal(kmeans.C, colours)
    assert torch.equal(kmeans.decode_code(kmeans.encode_to_indices(image)), quant)
    assert kmeans.decode_indices(indices[:, :16]).shape == (2, 3, 4, 4)
    assert KMeans(ncluster=5, resolution=4).latent_shape() == (3, 4, 4)
