"""The pyramid of residuals: numbers of VAR's public code, sizes, statistics and the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.vqvae import multi_scale
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.scales import PUBLISHED, Phi, phi_numbers, scales_for, side_of, sizes_on
from tests.support import GOLDEN, load_golden

GOLDEN_TENSORS, SPEC = load_golden("multi_scale")
SCALES = SPEC["v_patch_nums"]
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "znorm": {"using_znorm": True},
    "noresi": {"quant_resi": 0.0},
    "shared1": {"share_quant_resi": 1},
    "nonshared0": {"share_quant_resi": 0},
}


def golden_quantizer(name: str = "base", **options: Any) -> MultiScaleQuantizer:
    """One with the state that VAR's own quantizer had, under its names."""
    quantizer = MultiScaleQuantizer(64, 8, SCALES, **{**VARIANTS[name], **options})
    start = f"{name}.state."
    state = {k.removeprefix(start): v for k, v in GOLDEN_TENSORS.items() if k.startswith(start)}
    state.setdefault("ema_vocab_hit_SV", torch.zeros(10, 64))
    quantizer.load_state_dict(state)
    return quantizer


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_values_under_published_names(name: str) -> None:
    quantizer = golden_quantizer(name).eval()
    z_q, loss, (_, _, indices) = quantizer(GOLDEN_TENSORS["prequant"])
    prefix = "" if name == "base" else f"{name}."
    expected = GOLDEN_TENSORS["zq" if name == "base" else f"{name}.zq_first"]
    assert torch.equal(indices, GOLDEN_TENSORS[f"{prefix}indices"].long())
    torch.testing.assert_close(z_q[: len(expected)], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, GOLDEN_TENSORS[f"{prefix}vq_loss"], atol=1e-6, rtol=1e-5)
    entry = quantizer.get_codebook_entry(indices, (2, 16, 16, 8))
    torch.testing.assert_close(entry, z_q, atol=1e-5, rtol=1e-5)


def test_golden_sums_and_inputs_of_a_second_stage() -> None:
    quantizer, indices = golden_quantizer(), GOLDEN_TENSORS["indices"].long()
    sums = quantizer.latents_after(indices)
    assert len(sums) == 10 and sums[0].shape == (2, 8, 16, 16)
    torch.testing.assert_close(sums[4][:1], GOLDEN_TENSORS["latents_after_5_first"])
    inputs = quantizer.next_scale_inputs(indices)
    assert inputs.shape == (2, 679, 8)
    expected = GOLDEN_TENSORS["next_scale_inputs_first"]
    torch.testing.assert_close(inputs[:1], expected, atol=1e-5, rtol=1e-5)


def test_golden_hits_of_a_batch_of_training() -> None:
    quantizer = golden_quantizer().train()
    with torch.no_grad():  # the discriminator's turn, which does not count
        quantizer(GOLDEN_TENSORS["prequant"])
    assert quantizer.ema_vocab_hit_SV.sum() == 0
    quantizer(GOLDEN_TENSORS["prequant"])
    hits = quantizer.ema_vocab_hit_SV
    torch.testing.assert_close(hits, GOLDEN_TENSORS["hits_after_1"], atol=1e-5, rtol=0)
    assert "hit_updates" not in quantizer.state_dict()
    before = hits.clone()
    quantizer.eval()(GOLDEN_TENSORS["prequant"])
    assert torch.equal(hits, before)


def test_hits_decay_slowly_after_a_hundred_scales() -> None:
    quantizer = MultiScaleQuantizer(4, 2, [1, 2])
    ones = torch.ones(2, 4)
    quantizer._follow_hits(ones)
    assert quantizer.ema_vocab_hit_SV[:, 0].tolist() == pytest.approx([1.0, 0.1])
    for _ in range(49):
        quantizer._follow_hits(ones)
    before = quantizer.ema_vocab_hit_SV.clone()  # after 100 updates
    quantizer._follow_hits(ones * 101)
    torch.testing.assert_close(quantizer.ema_vocab_hit_SV, 0.99 * before + 1.01)


# ---------------------------------------------------------------------- gradients


def small(**options: Any) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(16, 4, [1, 2, 4], **options)
    nn.init.normal_(quantizer.embedding.weight)
    return quantizer


def latents(height: int = 4, width: int = 4) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(1))


def test_gradients_are_those_of_the_published_loss() -> None:
    """Written out: residuals of what is detached, every scale's sum with all gradients to codes."""
    quantizer, z = small(beta=0.3), latents().requires_grad_()
    z_q, loss, _ = quantizer(z)
    weight = torch.randn_like(z_q)
    ((z_q * weight).sum() + loss).backward()
    sums = quantizer.latents_after(quantizer(z)[2][2])
    encoder = torch.stack([(total.detach() - z).square().mean() for total in sums]).mean()
    (expected,) = torch.autograd.grad(0.3 * encoder, z)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected + weight)
    codes = torch.stack([(total - z.detach()).square().mean() for total in sums]).mean()
    trained = [p for p in quantizer.parameters() if p.grad is not None]
    assert len(trained) == 1 + 2 * 3  # three of the four convolutions have a scale
    expected_of = torch.autograd.grad(codes, trained)
    for parameter, gradient in zip(trained, expected_of, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
    assert quantizer.scale_losses.shape == (3,)
    torch.testing.assert_close(quantizer.scale_losses.mean(), loss.detach())


def test_residuals_keep_no_graph() -> None:
    steps = list(small().steps(latents().requires_grad_()))
    assert not any(step.rows.requires_grad for step in steps)
    assert all(step.latents.requires_grad for step in steps)


def test_computed_in_full_precision_under_autocast() -> None:
    quantizer, z = small(), latents()
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        within = quantizer(z)
        entry = quantizer.get_codebook_entry(within[2][2])
    assert torch.equal(within[0], plain[0]) and within[0].dtype == torch.float32
    torch.testing.assert_close(entry, plain[0], atol=1e-5, rtol=1e-5)


def test_distances_are_sought_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the search that all quantizers share, which holds a bounded number of them."""
    rows: list[int] = []

    def search(latents: Tensor, codes: Tensor) -> Tensor:
        rows.append(len(latents))
        return torch.zeros(len(latents), dtype=torch.long)

    monkeypatch.setattr(multi_scale.codebook, "nearest_code", search)
    small()(latents())
    assert rows == [2, 8, 32]


# ---------------------------------------------------------------------- sizes


def test_which_convolution_smooths_which_scale() -> None:
    assert phi_numbers(4, 10) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert phi_numbers(10, 10) == tuple(range(10)) and phi_numbers(1, 6) == (0,) * 6
    assert phi_numbers(4, 6) == (0, 0, 1, 2, 3, 3) and phi_numbers(3, 1) == (0,)
    assert phi_numbers(2, 4) == (0, 0, 1, 1)


def test_scales_of_latents() -> None:
    assert scales_for(16) == PUBLISHED[16] == tuple(SCALES)
    assert scales_for(8) == (1, 2, 3, 4, 5, 6, 8) and scales_for(1) == (1,)
    for side in (*range(1, 40), 64, 100):
        scales = scales_for(side)
        assert scales[0] == 1 and scales[-1] == side and list(scales) == sorted(set(scales))
    assert sizes_on([1, 2, 4], 4, 6) == ((1, 2), (2, 3), (4, 6))
    assert sizes_on([1, 2, 8], 2, 1) == ((1, 1), (1, 1), (2, 1))
    assert (
        side_of([1, 2, 4], 21) == 4 and side_of([1, 2, 4], 84) == 8 and side_of([1, 2], 6) is None
    )


@torch.no_grad()
def test_other_sizes_and_lists_of_sizes() -> None:
    quantizer, z = small(), latents(4, 6)
    z_q, _, (_, _, indices) = quantizer(z)
    assert quantizer.index_shape(4, 6) == (2 + 6 + 24,) and indices.shape == (2, 32)
    grids = quantizer.split(indices, quantizer.sizes(4, 6))
    assert [tuple(grid.shape) for grid in grids] == [(2, 1, 2), (2, 2, 3), (2, 4, 6)]
    torch.testing.assert_close(quantizer.get_codebook_entry(indices, (2, 4, 6, 4)), z_q)
    assert quantizer.next_scale_inputs(indices, (4, 6)).shape == (2, 30, 4)
    steps = list(quantizer.steps(z, [(1, 1), (2, 4), (3, 3), (4, 6)]))
    assert [len(step.indices) for step in steps] == [2, 16, 18, 48]
    with pytest.raises(UserError, match="last of the sizes must be the latents' own, 4 x 6"):
        list(quantizer.steps(z, [(1, 1), (4, 4)]))
    larger = quantizer(latents(8, 8))
    torch.testing.assert_close(quantizer.get_codebook_entry(larger[2][2]), larger[0])


def test_wrong_sizes_are_a_sentence() -> None:
    quantizer = small()
    for scales in ([], [2, 1], [1, 1], [0, 2]):
        with pytest.raises(UserError, match="scales are sides that grow"):
            MultiScaleQuantizer(4, 2, scales)
    with pytest.raises(UserError, match="20 indices are those of no square image: .* have 21; of"):
        quantizer.get_codebook_entry(torch.zeros(1, 20, dtype=torch.long))
    with pytest.raises(UserError, match="scales of 1 x 2, 2 x 3, 4 x 6 have 32 indices, .* 21"):
        quantizer.latents_after(torch.zeros(1, 21, dtype=torch.long), (4, 6))
    with pytest.raises(UserError, match=r"are \[B, n\], scale by scale; these are \[2, 3, 7\]"):
        quantizer.split_levels(torch.zeros(2, 3, 7, dtype=torch.long))


def test_remapped_indices() -> None:
    used = str(GOLDEN / "used.npy")
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(40, 4, [1, 2, 4], remap=used, unknown_index=0)
    nn.init.normal_(quantizer.embedding.weight)
    z_q, _, (_, _, indices) = quantizer(latents())
    assert indices.max() < quantizer.re_embed < 40
    everything = torch.cat([s.indices.reshape(2, -1) for s in quantizer.steps(latents())], dim=1)
    assert torch.equal(indices, quantizer.remap_to_used(everything))
    known = quantizer.unmap_to_all(indices)
    plain = MultiScaleQuantizer(40, 4, [1, 2, 4])
    plain.load_state_dict({n: v for n, v in quantizer.state_dict().items() if n != "used"})
    expected = plain.get_codebook_entry(known)
    torch.testing.assert_close(quantizer.get_codebook_entry(indices), expected)
    assert not torch.equal(expected, z_q)


def test_phi_mixes_by_its_ratio() -> None:
    phi = Phi(2, -0.25)
    x = torch.randn(1, 2, 3, 3)
    expected = 0.75 * x + 0.25 * nn.functional.conv2d(x, phi.weight, phi.bias, padding=1)
    torch.testing.assert_close(phi(x), expected)
