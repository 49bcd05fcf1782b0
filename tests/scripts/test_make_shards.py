from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts.make_shards import main
from taming.training.data_module import DataModuleFromConfig
from tests.kit.images import truncate, write_images


def config(tmp_path: Path) -> str:
    (tmp_path / "list.txt").write_text("\n".join(write_images(tmp_path / "in", 7)))
    params = {"size": 16, "training_images_list_file": str(tmp_path / "list.txt")}
    train = {"target": "taming.data.custom.CustomTrain", "params": params}
    content = {"data": {"target": "main.DataModuleFromConfig", "params": {"train": train}}}
    OmegaConf.save(OmegaConf.create(content), tmp_path / "x.yaml")
    return str(tmp_path / "x.yaml")


def make(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_shards.py", *args])
    main()


def test_shards_of_a_config_are_loaded_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    make(monkeypatch, "-b", config(tmp_path), "--output", output, "-n", "3")
    assert "7 samples of CustomTrain" in capsys.readouterr().out
    train = {"target": "taming.data.shards.Shards", "params": {"shards": output, "size": 16}}
    keys = []
    for workers in (0, 2):
        data = DataModuleFromConfig(2, train, num_workers=workers)
        data.setup()
        loader = data.train_dataloader()
        assert loader.sampler.blocks.tolist() == [3, 3, 1]  # type: ignore[attr-defined]
        keys.append([key for batch in loader for key in batch["__key__"]])
    assert keys[0] == keys[1] and sorted(keys[0]) == [f"{i:09}" for i in range(7)]


def test_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = config(tmp_path)
    outdir = ["--outdir", str(tmp_path / "out")]
    for args, message in (
        ([*outdir, "--split", "test"], "no data.params.test; give --split train"),
        ([*outdir, "-n", "0"], "--per_shard is 0"),
        ([*outdir, "--size", "3"], "unknown argument --size"),
        ([], "--outdir is missing"),
    ):
        with pytest.raises(SystemExit, match="2"):
            make(monkeypatch, "-b", base, *args)
        assert message in capsys.readouterr().err
    truncate(tmp_path / "in/003.png", 0.01)
    with pytest.raises(SystemExit):
        make(monkeypatch, "-b", base, "-o", str(tmp_path / "out"))
    assert "003.png" in capsys.readouterr().err
