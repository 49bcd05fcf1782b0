"""Shards beside checkpoints, and files beside them that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taming.checkpoint import consolidate, find_run, remove_unused_shards, save_atomic
from taming.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of a run, of which one has shards, and shards of nobody."""
    folder = tmp_path / "run" / "checkpoints"
    for name in ("used", "unused"):
        (folder / "shards" / name).mkdir(parents=True)
        (folder / "shards" / name / "x.distcp").write_bytes(b"x")
    shards = {"folder": "shards/used", "files": {}}
    save_atomic({"state_dict": {}, "global_step": 1, "shards": shards}, folder / "last.ckpt")
    save_atomic({"no": "weights"}, folder / "foreign.ckpt")
    return folder


def test_shards_that_an_unreadable_file_may_need_stay(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "damaged.ckpt").write_bytes(b"PK\x03\x04 cut short")
    for _ in range(2):  # said once
        remove_unused_shards(folder)
    assert len(list((folder / "shards").iterdir())) == 2
    assert caplog.text.count("no shards are removed, of which it may need some") == 1
    assert "damaged.ckpt is" in caplog.text
    (folder / "damaged.ckpt").unlink()
    remove_unused_shards(folder)
    assert [path.name for path in (folder / "shards").iterdir()] == ["used"]
    assert (folder / "foreign.ckpt").is_file()


def test_files_of_others_do_not_stop_what_needs_the_run(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "damaged.ckpt").write_bytes(b"PK\x03\x04 cut short")
    assert find_run(folder.parent).checkpoint == folder / "last.ckpt"
    with pytest.raises(UserError, match="shards/used cannot be read"):  # there is nothing in them
        consolidate(folder.parent)
    assert "damaged.ckpt is" in caplog.text and "it is left out" in caplog.text
    save_atomic({"state_dict": {"x": torch.ones(1)}, "global_step": 1}, folder / "last.ckpt")
    with pytest.raises(UserError, match="last.ckpt has no shards"):
        consolidate(folder.parent)
