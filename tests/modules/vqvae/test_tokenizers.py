"""Quantizers of other projects, against numbers of their public code (tests/golden/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.modules.vqvae import codebook
from taming.modules.vqvae.cosine import CosineQuantizer
from taming.modules.vqvae.entropy import COPIES, entropies
from taming.modules.vqvae.grouped import GroupedQuantizer
from taming.modules.vqvae.ibq import IBQ
from taming.modules.vqvae.lfq import LFQ
from taming.modules.vqvae.nearest import VectorQuantizer2
from taming.modules.vqvae.products import fp32_products
from taming.modules.vqvae.simvq import SimVQ
from tests.support import load_golden

TENSORS, SPEC = load_golden("tokenizer_quantizers")
ENTROPY: dict[str, Any] = {"entropy_weight": 0.1, "entropy_epsilon": 1e-5}


def golden(project: str, variant: str = "") -> dict[str, Tensor]:
    start = f"{project}.{variant}"
    return {k.removeprefix(start): v for k, v in TENSORS.items() if k.startswith(start)}


def with_state(quantizer: Any, project: str) -> Any:
    """Under the names of the original."""
    quantizer.load_state_dict(golden(project, "state.quantize."), strict=True)
    return quantizer


def check_codes(quantizer: Any, project: str, latents: str) -> Tensor:
    """Forward pass and look-up; the loss."""
    numbers = golden(project)
    z = numbers[latents]
    z_q, loss, (_, _, indices) = quantizer(z)
    assert indices.flatten().tolist() == numbers["indices"].flatten().tolist()
    close(z_q, numbers["zq"])
    entry = quantizer.get_codebook_entry(indices, (*indices.shape, z.shape[1]))
    close(entry, numbers["codebook_entry"])
    assert isinstance(loss, Tensor)
    return loss


def check_gradients(quantizer: Any, z: Tensor, numbers: dict[str, Tensor], **weights: str) -> None:
    """Of the loss + sum(z_q * z.flip(0))."""
    z = z.clone().requires_grad_()
    z_q, loss, _ = quantizer(z)
    (loss + (z_q * z.detach().flip(0)).sum()).backward()
    assert z.grad is not None
    close(z.grad, numbers["dz"])
    parameters = dict(quantizer.named_parameters())
    for name, key in weights.items():
        gradient = parameters[name.replace("__", ".")].grad
        assert gradient is not None
        close(gradient, numbers[key])


def close(ours: Tensor, theirs: Tensor, share: float = 1e-5) -> None:
    """Within a share of the largest value."""
    torch.testing.assert_close(
        ours, theirs, rtol=1e-4, atol=share * max(1, float(theirs.abs().max()))
    )


def test_llamagen() -> None:
    loss = check_codes(with_state(CosineQuantizer(64, 8), "llamagen"), "llamagen", "prequant")
    numbers = golden("llamagen", "train.")
    close(loss, numbers["vq_loss"] + numbers["commit_loss"])


@pytest.mark.parametrize("variant", ["quant_entropy.", "quant_no_l2."])
def test_llamagen_with_the_entropy_term(variant: str) -> None:
    if variant == "quant_entropy.":
        quantizer: Any = CosineQuantizer(64, 8, **ENTROPY)
    else:
        quantizer = VectorQuantizer2(64, 8, 0.25, legacy=False, **ENTROPY)
    with_state(quantizer, "llamagen")
    z, numbers = golden("llamagen")["prequant"], golden("llamagen", variant)
    z_q, loss, (_, _, indices) = quantizer(z)
    assert indices.flatten().tolist() == numbers["indices"].tolist()
    close(z_q, numbers["zq"])
    close(loss, numbers["vq_loss"] + numbers["commit_loss"] + numbers["entropy_loss"])
    # The original itself moves by 2e-4 of the largest value without normalization.
    check_gradients(quantizer, z, numbers, embedding__weight="dweight")


def test_ibq() -> None:
    quantizer = with_state(IBQ(64, 16), "ibq")
    loss, numbers = check_codes(quantizer, "ibq", "prequant"), golden("ibq", "train.")
    close(loss, numbers["quant_loss"] + 0.05 * numbers["entropy_loss"])
    rows = codebook.channels_last(golden("ibq")["prequant"])
    both = entropies(rows, quantizer.codes, 0.01, epsilon=1e-5, scores=fp32_products)
    close(both[0], numbers["sample_entropy"])
    close(both[1], numbers["avg_entropy"])


@pytest.mark.parametrize("rows", [512, 100])
def test_ibq_gradients(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """In one part, and in parts that are made again in the backward pass."""
    monkeypatch.setattr(codebook, "MAX_DISTANCES", rows * 64 * COPIES)
    quantizer = with_state(IBQ(64, 16, entropy_weight=0.0), "ibq")
    z, numbers = golden("ibq")["prequant"], golden("ibq", "quant_no_entropy.")
    close(quantizer(z)[1], numbers["loss"])
    check_gradients(quantizer, z, numbers, embedding__weight="dweight")


def test_open_magvit2() -> None:
    quantizer = LFQ(64)
    assert not quantizer.state_dict()
    loss, numbers = check_codes(quantizer, "open_magvit2", "enc"), golden("open_magvit2", "train.")
    close(loss, 0.1 * numbers["entropy_loss"] + 0.25 * numbers["commit_loss"])
    rows = codebook.channels_last(golden("open_magvit2")["enc"])
    both = quantizer._entropies(rows)
    close(both[0], numbers["per_sample_entropy"])
    close(both[1], numbers["codebook_entropy"])


def test_open_magvit2_in_factors() -> None:
    """Of two groups of signs: the lower bits, and the higher ones."""
    halves = {"target": "taming.modules.vqvae.lfq.LFQ", "params": {"n_e": 8}}
    quantizer = GroupedQuantizer(2, halves)
    numbers = golden("open_magvit2")
    z_q, _, (_, _, indices) = quantizer(numbers["enc"])
    close(z_q, numbers["zq"])
    for level, key in (("0", "factorized.indices_pre"), ("1", "factorized.indices_post")):
        assert quantizer.split_levels(indices)[level].flatten().tolist() == numbers[key].tolist()
    close(quantizer.get_codebook_entry(indices), numbers["codebook_entry"])


def test_simvq() -> None:
    quantizer = with_state(SimVQ(64, 16), "simvq")
    close(check_codes(quantizer, "simvq", "enc"), golden("simvq", "train.")["commit_loss"])
    close(quantizer.codes, golden("simvq")["codebook"])
    legacy = with_state(SimVQ(64, 16, legacy=True), "simvq")
    z, numbers = golden("simvq")["enc"], golden("simvq", "quant_legacy.")
    close(legacy(z)[1], numbers["loss"])
    layer = {"embedding_proj__weight": "dproj_weight", "embedding_proj__bias": "dproj_bias"}
    check_gradients(legacy, z, numbers, **layer)
    assert legacy.embedding.weight.grad is None


def test_maskgit() -> None:
    quantizer = with_state(VectorQuantizer2(64, 16, 0.25, sane_index_shape=True), "maskgit")
    close(check_codes(quantizer, "maskgit", "enc"), golden("maskgit", "train.")["quant_loss"])


@pytest.mark.parametrize("variant", ["plain", "l2"])
def test_titok(variant: str) -> None:
    quantizer = with_state(titok(variant == "l2"), "maskgit")
    z, numbers = golden("maskgit")["enc"], golden("maskgit", f"titok_{variant}.")
    z_q, loss, (_, _, indices) = quantizer(z)
    assert torch.equal(indices, numbers["indices"].long())
    close(z_q, numbers["zq"])
    close(loss, numbers["codebook_loss"] + numbers["commitment_loss"])
    check_gradients(quantizer, z, numbers, embedding__weight="dweight")


def titok(normalized: bool, **options: Any) -> VectorQuantizer2:
    if normalized:
        return CosineQuantizer(64, 16, **options)
    return VectorQuantizer2(64, 16, 0.25, sane_index_shape=True, legacy=False, **options)


@pytest.mark.parametrize("variant", ["clustering", "l2_clustering"])
def test_titok_clustering(variant: str) -> None:
    quantizer = titok(variant != "clustering", clustering=True)
    quantizer.embedding.load_state_dict(
        {"weight": golden("maskgit", "state.quantize.embedding.")["weight"]}
    )
    z, numbers = golden("maskgit")["enc"].requires_grad_(), golden("maskgit", f"titok_{variant}.")
    z_q, loss, (_, _, indices) = quantizer(z)
    assert torch.equal(indices, numbers["indices"].long())
    close(loss, numbers["codebook_loss"] + numbers["commitment_loss"])
    (loss + z_q.sum()).backward()  # although codes have moved
    assert quantizer.clusters is not None
    close(quantizer.clusters.embed_prob, numbers["embed_prob_after"])
    close(quantizer.embedding.weight, numbers["embedding_after"])
    with torch.no_grad():
        quantizer(z)
    quantizer.eval()(z)
    close(quantizer.clusters.embed_prob, numbers["embed_prob_after"])
