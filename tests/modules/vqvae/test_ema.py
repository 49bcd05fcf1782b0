"""The EMA quantizer: codes that are moving averages of their latents, and their revival."""

import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize

from taming.modules.vqvae import ema, revival
from taming.modules.vqvae.ema import EmbeddingEMA
from taming.modules.vqvae.quantize import EMAVectorQuantizer
from tests.support import GOLDEN, assert_close

USED = str(GOLDEN / "used.npy")


def test_ema_codes_reach_the_mean_of_their_latents():
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(3, 2, 0.25, decay=0.9)
    quantizer.embedding.weight.copy_(torch.tensor([[5.0, 5.0], [-5.0, 0.0], [0.0, -90.0]]))
    quantizer.embedding.embed_avg.copy_(quantizer.embedding.weight)
    z = torch.tensor([[4.0, 6.0], [6.0, 7.0], [-3.0, 1.0]]).T.reshape(1, 2, 3, 1)
    for _ in range(200):
        z_q, _, (_, _, indices) = quantizer(z)
    assert indices.tolist() == [0, 0, 1]
    expected = torch.tensor([[5.0, 6.5], [-3.0, 1.0]])
    torch.testing.assert_close(quantizer.embedding.weight[:2], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(z_q[0, :, 2, 0], expected[1], atol=1e-3, rtol=1e-3)
    assert quantizer.embedding.weight[2].norm() < 91  # unused, and not thrown far away


def test_ema_loss_and_gradient_are_the_encoders():
    quantizer = EMAVectorQuantizer(40, 8, beta=0.25)
    z = torch.randn(2, 8, 4, 5, requires_grad=True)
    before = quantizer.embedding.weight.clone()
    z_q, loss, (usage, _, indices) = quantizer(z)
    codes = F.embedding(indices, before).reshape(2, 4, 5, 8).movedim(3, 1)
    assert_close(z_q, codes)
    assert_close(loss, 0.25 * (z - codes).square().mean())
    assert 1 < usage <= 40 and indices.shape == (40,)
    loss.backward()
    assert_close(z.grad, 0.5 * (z - codes).detach() / z.numel())
    assert not list(quantizer.parameters())


def test_ema_update_is_smoothed():
    """arXiv 1711.00937, equations 6 to 8, with Laplace smoothing."""
    embedding = EmbeddingEMA(3, 2, decay=0.9, eps=0.5)
    averages = embedding.embed_avg.clone()
    rows, indices = torch.randn(5, 2), torch.tensor([0, 0, 2, 0, 2])
    embedding.follow(rows, indices)
    sums = torch.stack([rows[[0, 1, 3]].sum(0), torch.zeros(2), rows[[2, 4]].sum(0)])
    sizes, averages = torch.tensor([1.2, 0.9, 1.1]), 0.9 * averages + 0.1 * sums
    assert_close(embedding.cluster_size, sizes)
    assert_close(embedding.embed_avg, averages)
    smoothed = (sizes + 0.5) / (3.2 + 3 * 0.5) * 3.2
    assert_close(embedding.weight, averages / smoothed[:, None])


def test_ema_equals_the_library():
    """Also in where its codes move to."""
    ours = EMAVectorQuantizer(12, 6, 0.25, decay=0.9, eps=1e-3)
    theirs = VectorQuantize(
        6,
        12,
        decay=0.9,
        eps=1e-3,
        rotation_trick=False,
        accept_image_fmap=True,
        commitment_weight=0.25,
    )
    states = (("weight", "embed"), ("embed_avg", "embed_avg"), ("cluster_size", "cluster_size"))
    for own, _ in states[:2]:
        getattr(ours.embedding, own).copy_(torch.randn(12, 6, generator=seeded(1)))
    for own, other in states:
        getattr(theirs._codebook, other).copy_(getattr(ours.embedding, own)[None])
    start = ours.codes.clone()
    for batch in range(4):
        own = torch.randn(2, 6, 4, 5, generator=seeded(batch)).requires_grad_()
        other = own.detach().clone().requires_grad_()
        z_q, loss, (_, _, indices) = ours(own)
        expected, places, of_library = theirs(other)
        assert torch.equal(indices, places.flatten())
        weights = torch.randn(z_q.shape, generator=seeded(9))
        ((z_q * weights).sum() + 3 * loss).backward()
        ((expected * weights).sum() + 3 * of_library.sum()).backward()
        pairs = [(z_q, expected), (loss, of_library.sum()), (own.grad, other.grad)]
        pairs += [
            (getattr(ours.embedding, mine), getattr(theirs._codebook, library)[0])
            for mine, library in states
        ]
        for mine, library in pairs:
            torch.testing.assert_close(mine, library, atol=1e-5, rtol=1e-5)
    assert (ours.codes - start).norm(dim=1).min() > 1e-3  # also unused ones


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_revived_code_weighs_as_much_as_a_new_one():
    """With the weight that it had, the next update would throw it far away."""
    embedding = EmbeddingEMA(4, 2, decay=0.9, eps=1e-5)
    embedding.cluster_size.copy_(torch.tensor([0.5, 1e-6, 2.0, 0.49]))
    before, rows = embedding.weight.clone(), torch.randn(6, 2) + 50
    embedding.revive(rows, threshold=0.5)
    assert embedding.cluster_size.tolist() == [0.5, 1, 2, 1]
    assert torch.equal(embedding.weight[[0, 2]], before[[0, 2]])
    many = EmbeddingEMA(50, 2)
    many.revive(torch.arange(2000.0).reshape(1000, 2), threshold=2)
    assert many.weight.max() > 1000  # any latent may be taken
    for code in (1, 3):
        assert (rows == embedding.weight[code]).all(dim=1).any()
        assert torch.equal(embedding.embed_avg[code], embedding.weight[code])


def test_moving_averages_count_all_processes_and_revive_alike(monkeypatch):
    one, two = (EmbeddingEMA(4, 2) for _ in range(2))
    two.load_state_dict(one.state_dict())
    rows, indices = torch.randn(5, 2), torch.tensor([0, 0, 2, 0, 2])
    one.follow(rows.repeat(2, 1), indices.repeat(2))
    monkeypatch.setattr(ema, "sum_over_ranks", lambda tensor: 2 * tensor)
    monkeypatch.setattr(revival, "same_on_all_ranks", lambda tensor: torch.full_like(tensor, 7))
    two.follow(rows, indices)
    for name, tensor in one.state_dict().items():
        assert_close(two.state_dict()[name], tensor)
    two.cluster_size[1] = 0
    two.revive(rows, threshold=0.5)
    assert (two.weight == 7).all(dim=1).tolist() == [False, True, False, False]


def test_ema_state_names_and_frozen_evaluation():
    quantizer = EMAVectorQuantizer(40, 8, 0.25).eval()
    state = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "embedding.weight": (40, 8),
        "embedding.cluster_size": (40,),
        "embedding.embed_avg": (40, 8),
    }
    quantizer(torch.randn(2, 8, 4, 5))
    with torch.no_grad():  # the discriminator's turn
        quantizer.train()(torch.randn(2, 8, 4, 5))
    quantizer.embedding.update = False
    quantizer(torch.randn(2, 8, 4, 5))
    assert all(torch.equal(quantizer.state_dict()[name], old) for name, old in state.items())


def test_ema_with_remap():
    quantizer = EMAVectorQuantizer(40, 8, 0.25, remap=USED, unknown_index="extra")
    _, _, (_, _, indices) = quantizer(torch.randn(2, 8, 4, 5))
    assert indices.shape == (40, 1) and indices.max() <= 13
    shaped = EMAVectorQuantizer(40, 8, 0.25, sane_index_shape=True)
    assert shaped(torch.randn(2, 8, 4, 5))[2][2].shape == (2, 4, 5)


def revived(after):
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(8, 2, 0.25, decay=0.9, revive_after=after)
    quantizer.embedding.weight.add_(100)
    quantizer.embedding.weight[0] = 0
    quantizer.embedding.embed_avg.copy_(quantizer.embedding.weight)
    z = torch.randn(2, 2, 6, 6)
    used = []
    for _ in range(12):
        _, _, (_, _, indices) = quantizer(z)
        used.append(len(indices.unique()))
    return used, quantizer.embedding.weight.clone()


def test_dead_codes_are_revived_on_time_and_reproducibly():
    assert revived(after=0)[0] == [1] * 12
    used, weight = revived(after=5)
    assert used[:6] == [1] * 6 and used[6] > 4
    assert torch.equal(weight, revived(after=5)[1])
    assert revived(after=1)[0][2] > 4
