"""Codes without a table, against vector-quantize-pytorch and against what they are meant to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import vector_quantize_pytorch as library
from torch import Tensor

from taming.errors import UserError
from taming.modules.vqvae import codebook, entropy
from taming.modules.vqvae.bsq import BSQ
from taming.modules.vqvae.cosine import CosineQuantizer
from taming.modules.vqvae.entropy import entropies
from taming.modules.vqvae.fsq import FSQ
from taming.modules.vqvae.lfq import LFQ
from taming.modules.vqvae.simvq import SimVQ
from tests.support import GOLDEN


def latents(channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 4, 5, generator=generator)


def close(ours: Tensor | None, theirs: Tensor | None) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def backward(z_q: Tensor, loss: Tensor) -> None:
    weights = torch.randn(z_q.shape, generator=torch.Generator().manual_seed(9))
    ((z_q * weights).sum() + 3 * loss).backward()


@pytest.mark.parametrize(
    ("levels", "symmetric"),
    [([8, 5, 5, 5], False), ([3, 4], False), ([7], False), ([2, 2, 5, 4], True), ([2], True)],
)
def test_fsq_equals_the_library(levels: list[int], symmetric: bool) -> None:
    ours, theirs = FSQ(levels, symmetric), library.FSQ(levels, preserve_symmetry=symmetric)
    own, other = (3 * latents(len(levels)).clone().requires_grad_() for _ in range(2))
    own.retain_grad()
    other.retain_grad()
    z_q, loss, (_, _, indices) = ours(own)
    expected, places = theirs(other)
    assert torch.equal(indices, places.long()) and len(indices.unique()) > 1
    close(z_q, expected)
    close(ours.codes, theirs.implicit_codebook)
    backward(z_q, loss)
    backward(expected, expected.new_zeros(()))
    close(own.grad, other.grad)


def test_fsq_reaches_all_codes() -> None:
    quantizer = FSQ([3, 5])
    assert quantizer.n_e == 15 and not quantizer.state_dict()
    assert quantizer.codes[5].tolist() == [1.0, -0.5]
    # Far from the bounds' ends, codes that are decoded again are themselves.
    z = (quantizer.codes * 0.999).clamp(-0.999, 0.999).atanh().t().reshape(1, 2, 3, 5)
    assert quantizer(z)[2][2].flatten().tolist() == list(range(15))


@pytest.mark.parametrize(
    ("levels", "symmetric"),
    [
        ([3, 8], False),
        ([1024], False),
        ([1025, 5, 2048], False),
        ([1024, 2], True),
        ([2**24], True),
    ],
)
def test_fsq_stays_within_its_levels(levels: list[int], symmetric: bool) -> None:
    """Of many levels, the margin of the outermost is more than half a step."""
    quantizer, end = FSQ(levels, symmetric), 1e4
    rows = torch.tensor(
        [[-end] * len(levels), [end] * len(levels), [end, *[-end] * len(levels)][:-1]]
    )
    z = rows.t().reshape(1, len(levels), 3, 1).requires_grad_()
    z_q, _, (_, _, indices) = quantizer(z)
    assert indices.flatten().tolist() == [0, quantizer.n_e - 1, levels[0] - 1]
    close(quantizer.get_codebook_entry(indices, (1, 3, 1, len(levels))), z_q)
    assert z_q.abs().max() <= 1
    z_q.sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()


BINARY: Any = {"LFQ": LFQ, "BSQ": BSQ}


@pytest.mark.parametrize("name", BINARY)
def test_signs_equal_the_library(name: str) -> None:
    """Whose first channel is the highest bit."""
    theirs = library.LFQ(
        codebook_size=32,
        entropy_loss_weight=0.3,
        commitment_loss_weight=0.7,
        diversity_gamma=0.5,
        spherical=name == "BSQ",
    )
    options: dict[str, Any] = {"entropy_weight": 0.3, "entropy_diversity": 0.5}
    ours = BINARY[name](32, 0.7, entropy_epsilon=0.0, entropy_temperature=2.0, **options)
    own, other = latents(5).requires_grad_(), latents(5).requires_grad_()
    z_q, loss, (_, _, indices) = ours(own)
    # Of p above 1e-5, below which the library cuts logarithms.
    result = theirs.train()(other.flip(1), inv_temperature=0.5)
    assert torch.equal(indices, result.indices.long())
    close(z_q, result.quantized.flip(1))
    close(loss, result.entropy_aux_loss)
    close(ours.codes, theirs.indices_to_codes(torch.arange(32)).flip(1))
    backward(z_q, loss)
    backward(result.quantized.flip(1), result.entropy_aux_loss)
    close(own.grad, other.grad)


@pytest.mark.parametrize("bits", [1, 4, 5])
@pytest.mark.parametrize("name", BINARY)
def test_entropies_of_signs_are_those_over_all_codes(name: str, bits: int) -> None:
    quantizer = BINARY[name](2**bits)
    rows = quantizer._seen(codebook.channels_last(latents(bits) * 0.01))
    expected = entropies(rows, quantizer.codes, 0.01, epsilon=1e-5)
    for ours, written_out in zip(quantizer._entropies(rows), expected, strict=True):
        close(ours, written_out)


def test_entropies_of_wide_codes_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """N x K would be 2^18 x 40 numbers."""
    largest = 0
    products = entropy.fp32_products

    def counted(rows: Tensor, others: Tensor) -> Tensor:
        nonlocal largest
        result = products(rows, others)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(entropy, "fp32_products", counted)
    loss = LFQ(2**18)(latents(18))[1]
    assert torch.isfinite(loss) and largest == 2**18


def test_zero_is_below() -> None:
    assert LFQ(4)(torch.zeros(1, 2, 1, 1))[2][2].item() == 0


def test_simvq_equals_the_library() -> None:
    ours = SimVQ(12, 6)
    torch.nn.init.zeros_(ours.embedding_proj.bias)
    theirs = library.SimVQ(
        dim=6, codebook_size=12, channel_first=True, rotation_trick=False, commitment_weight=1.0
    )
    theirs.frozen_codebook.copy_(ours.embedding.weight)
    theirs.code_transform.weight.data.copy_(ours.embedding_proj.weight)
    own, other = latents(6).requires_grad_(), latents(6).requires_grad_()
    z_q, loss, (_, _, indices) = ours(own)
    expected, places, of_library = theirs(other)
    assert torch.equal(indices, places)
    close(z_q, expected)
    close(loss, of_library)
    backward(z_q, loss)
    backward(expected, of_library)
    close(own.grad, other.grad)
    close(ours.embedding_proj.weight.grad, theirs.code_transform.weight.grad)


def test_cosine_equals_the_library() -> None:
    """Of latents of length 1, around which the library's gradients are."""
    ours = CosineQuantizer(12, 6, 1.0)
    theirs = library.VectorQuantize(
        6,
        12,
        use_cosine_sim=True,
        rotation_trick=False,
        accept_image_fmap=True,
        commitment_weight=1.0,
    )
    theirs._codebook.embed.data.copy_(ours.codes.detach()[None])
    theirs._codebook.initted.fill_(True)
    z = torch.nn.functional.normalize(latents(6), dim=1)
    own, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    z_q, loss, (_, _, indices) = ours(own)
    expected, places, of_library = theirs(other, freeze_codebook=True)
    assert torch.equal(indices, places)
    close(z_q, expected)
    close(loss, 2 * of_library.sum())  # the codebook's side has the same value
    backward(z_q, loss)
    backward(expected, of_library.sum())
    close(own.grad, other.grad)


WRONG: dict[str, tuple[Any, str]] = {
    "levels": (lambda: FSQ([8, 1]), r"levels are \[8, 1\]; give .* at least three \(two with sym"),
    "no levels": (lambda: FSQ([]), r"levels are \[\]; give each"),
    "two levels": (lambda: FSQ([2, 5]), "need symmetric: true"),
    "too many": (lambda: FSQ([8] * 9), "are 134,217,728 codes, more than 16,777,216"),
    "no power": (lambda: LFQ(1000), "n_e is 1000, and codes of signs are a power of two.* it 512"),
    "one code": (lambda: BSQ(1), "BSQ: n_e is 1, .* make it 2"),
    "too wide": (lambda: LFQ(2**25), "from 2 to 16777216; make it 16777216"),
}


@pytest.mark.parametrize("name", WRONG)
def test_sizes_that_cannot_be(name: str) -> None:
    make, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize("name", ["LFQ", "BSQ", "FSQ"])
def test_remap(name: str) -> None:
    used = str(GOLDEN / "used.npy")
    options: Any = {"remap": used, "unknown_index": "extra"}
    quantizer = FSQ([8, 8], **options) if name == "FSQ" else BINARY[name](64, **options)
    z = latents(quantizer.e_dim)
    _, _, (_, _, indices) = quantizer(z)
    assert indices.max() <= 13 and quantizer.re_embed == 14
    entry = quantizer.get_codebook_entry(indices, (*indices.shape, quantizer.e_dim))
    known = indices < 13
    assert known.any()
    full = quantizer.look_up(quantizer.used[indices[known]])
    close(entry.permute(0, 2, 3, 1)[known], full)
