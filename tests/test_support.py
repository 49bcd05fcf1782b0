"""What the tests' own helpers promise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from taming.atomic_files import user_cache
from taming.trust import remember
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


def test_caches_and_state_are_not_the_users(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sessions = tmp_path_factory.getbasetemp().parent
    assert user_cache().is_relative_to(sessions) and "TAMING_KERNEL" not in os.environ
    remember([])
    assert Path(os.environ["XDG_STATE_HOME"], "taming/trusted_runs.json").is_file()
    assert Path(os.environ["XDG_STATE_HOME"]).is_relative_to(sessions)
