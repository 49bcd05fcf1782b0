from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.vqvae.two_level import TwoLevelQuantizer

NETWORK: dict[str, Any] = {
    "in_channels": 4,
    "out_ch": 4,
    "resolution": 8,
    "double_z": False,
    "z_channels": 6,
    "ch": 32,
    "num_res_blocks": 1,
    "attn_resolutions": [],
}


def quantizer(levels: int = 2, **options: Any) -> TwoLevelQuantizer:
    torch.manual_seed(0)
    return TwoLevelQuantizer(10, 3, {**NETWORK, "ch_mult": [1] * levels}, **options)


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))


def test_shapes_of_both_levels(latents: Tensor) -> None:
    for levels, shape in ((2, (2, 4, 8, 5)), (3, (2, 2, 4, 17))):
        module = quantizer(levels)
        codes, loss, (_, _, indices) = module(latents)
        assert codes.shape == (2, 6, 8, 16) and loss.shape == () and loss > 0
        assert indices.shape == shape and indices.dtype == torch.long
        top, squares = indices[..., 0], indices[..., 1:]
        assert top.min() >= 0 and top.max() < 10 <= squares.min() and squares.max() < 20
        torch.testing.assert_close(module.get_codebook_entry(indices), codes)


def test_an_index_s_place_and_meaning() -> None:
    module = quantizer()
    top = torch.tensor([[[7, 1]]])
    bottom = torch.tensor([[[0, 9, 4, 5], [3, 0, 6, 7]]])
    joined = module.join(top, bottom)
    assert joined.tolist() == [[[[7, 10, 19, 13, 10], [1, 14, 15, 16, 17]]]]
    again = module.split(joined)
    assert torch.equal(again[0], top) and torch.equal(again[1], bottom)
    codes = module.get_codebook_entry(joined)
    assert torch.equal(codes[0, :3, 1, 1], module.top.codes[7])
    assert torch.equal(codes[0, 3:, 1, 0], module.bottom.codes[3])
    assert torch.equal(codes[0, :3, 0, 2], module.top.codes[1])


def test_the_bottom_depends_on_the_top(latents: Tensor) -> None:
    module = quantizer().eval()
    before = module.split(module(latents)[2][2])
    with torch.no_grad():
        module.top.embedding.weight.add_(5.0)
    after = module.split(module(latents)[2][2])
    assert not torch.equal(before[1], after[1])


def test_the_loss_is_that_of_both_levels(latents: Tensor) -> None:
    module, squares = quantizer(), []
    for table in (module.top, module.bottom):
        table.register_forward_hook(
            lambda _, given, found: squares.append((given[0] - found[0]).square().mean())
        )
    loss = module(latents)[1]
    torch.testing.assert_close(loss, 1.25 * (squares[0] + squares[1]))  # beta is 0.25


def test_all_parts_get_gradients(latents: Tensor) -> None:
    module = quantizer()
    z = latents.clone().requires_grad_()
    codes, loss, _ = module(z)
    (codes.square().mean() + loss).backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    without = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # Biases before a softmax over keys change nothing.
    assert [name for name in without if not name.endswith("attn_1.k.bias")] == []


def test_idle_codes_of_both_levels_are_revived(latents: Tensor) -> None:
    module = quantizer(revive_after=1).train()
    for table in (module.top, module.bottom):
        torch.nn.init.constant_(table.embedding.weight, 50.0)
    for _ in range(3):
        module(latents)
    for table in (module.top, module.bottom):
        assert (table.codes != 50.0).any()


def test_wrong_indices_are_refused() -> None:
    module = quantizer()
    with pytest.raises(UserError, match=r"\[B, h, w, 5\].* these are \[1, 4, 4\]"):
        module.get_codebook_entry(torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(
        UserError, match=r"top \[1, 4, 4\] and of the bottom \[1, 4, 4\] do not fit"
    ):
        module.join(*torch.zeros(2, 1, 4, 4, dtype=torch.long))
