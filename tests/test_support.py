"""What the tests' own helpers promise."""

from __future__ import annotations

import torch

from tests.support import exact_products


def test_products_are_exact_meanwhile() -> None:
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("medium")
    try:
        with cudnn.flags(deterministic=True, allow_tf32=True):
            with exact_products():
                assert not cudnn.allow_tf32 and cudnn.deterministic
                assert torch.get_float32_matmul_precision() == "highest"
            assert cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
