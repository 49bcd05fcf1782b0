"""The example data as docs/data.md has them made: enough for a batch of every config."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts.make_example_data import main
from taming.config import load_config
from taming.data.from_config import dataset_of
from taming.training.arguments import parse_arguments
from tests.support import ROOT

MADE_BY_OTHERS = ("data/photographs", "data/landscapes")  # the YAMLs say by what


def test_the_command_that_is_printed_fits_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.make_example_data.write_all", lambda *_: 9)
    monkeypatch.chdir(tmp_path)  # which is not the clone's
    main([])
    _, command = capsys.readouterr().out.split("\n", 1)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["cd", "example_data", "&&"] and "TORCH_HOME=~/.cache/torch" in words
    place = words.index("python") + 1
    assert (tmp_path / "example_data" / words[place]).resolve() == ROOT / "main.py"
    args, flags, overrides = parse_arguments(words[place + 1 :])
    assert args.train and flags == {"max_steps": 1}
    config = load_config(args.base, overrides)
    assert config.model.params.lossconfig.params.perceptual_weight == 0


def test_the_configs_with_a_perceptual_loss_are_named() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    listed = text[text.index("The VQGANs\nof images and depth") : text.index("train with LPIPS")]
    for path in (ROOT / "configs").glob("*_vqgan.yaml"):
        loss = load_config([path]).model.params.lossconfig
        loads = "LPIPS" in loss.target and loss.params.get("perceptual_weight") != 0
        assert (f"`{path.stem.removesuffix('_vqgan')}`" in listed) == loads, path.name


@pytest.mark.slow  # renders a few hundred images
def test_they_fill_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["--outdir", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in (ROOT / "configs").rglob("*.yaml"):
        config = load_config([path])
        # Options have no data, digits are in no files, some lists are those of another run.
        if "data" not in config or "digits" in path.name or OmegaConf.missing_keys(config.data):
            continue
        if any(made in OmegaConf.to_yaml(config.data) for made in MADE_BY_OTHERS):
            continue
        items = {split: len(dataset_of(config, split)) for split in ("train", "validation")}
        assert items["train"] >= config.data.params.batch_size, path.name
        assert items["validation"] > 0, path.name
