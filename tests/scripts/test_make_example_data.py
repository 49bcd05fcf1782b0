"""The example data as docs/data.md has them made: enough for a batch of every config."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts.make_example_data import main
from taming.config import load_config
from taming.data.from_config import dataset_of
from tests.support import ROOT


@pytest.mark.slow  # renders a few hundred images
def test_they_fill_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["--outdir", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in (ROOT / "configs").rglob("*.yaml"):
        config = load_config([path])
        # Digits are in no files, and some lists are those of another run.
        if "digits" in path.name or OmegaConf.missing_keys(config.data):
            continue
        items = {split: len(dataset_of(config, split)) for split in ("train", "validation")}
        assert items["train"] >= config.data.params.batch_size, path.name
        assert items["validation"] > 0, path.name
