"""The example data as docs/data.md has them made: enough for a batch of every config."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.make_example_data import main
from taming.config import load_config
from taming.data.from_config import dataset_of
from tests.support import ROOT


def test_they_fill_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["--outdir", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in (ROOT / "configs").rglob("*.yaml"):
        if "digits" in path.name:  # which are in no files
            continue
        config = load_config([path])
        items = {split: len(dataset_of(config, split)) for split in ("train", "validation")}
        assert items["train"] >= config.data.params.batch_size, path.name
        assert items["validation"] > 0, path.name
