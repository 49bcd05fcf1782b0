"""Shards and their indices that claim what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taming.data.files.shard_index import read_index, scan
from taming.errors import UserError
from tests.kit.archives import sparse_tar


@pytest.mark.parametrize("name", ["a.jpg", "a.json", "a.txt"])
def test_sparse_members_are_refused(tmp_path: Path, name: str) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(sparse_tar(name, 2**40))
    with pytest.raises(UserError, match=f"a.tar holds '{name}' as a sparse file"):
        list(scan(str(tar)))


@pytest.mark.parametrize(
    "row", ["{", "1", '["a"]', '["a", 1, {}]', '["a", {"jpg": 3}, {}]', '["a", {}, 3]', "[" * 9999]
)
def test_damaged_indices_are_named(tmp_path: Path, row: str) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(bytes(10))
    index = Path(f"{tar}.index")
    index.write_text(f"10\n{json.dumps(['b', {'jpg': [1, 2]}, {}])}\n{row}\n")
    with pytest.raises(UserError, match="a.tar.index is damaged"):
        list(read_index(str(tar)))
