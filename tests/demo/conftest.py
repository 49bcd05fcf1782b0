from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.demo import served_locally


@pytest.fixture(autouse=True)
def local_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from served_locally(tmp_path, monkeypatch)
