from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.imagenet import write_imagenet


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small ImageNet, which datasets find."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_imagenet(tmp_path)
