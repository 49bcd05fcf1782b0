from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

config = pytest.importorskip("streamlit.config")


@pytest.fixture(autouse=True)
def local_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The demo refuses to be open to the network by accident; its runs are in ./logs."""
    before = config.get_option("server.address")
    config.set_option("server.address", "localhost")
    monkeypatch.chdir(tmp_path)
    yield
    config.set_option("server.address", before)
