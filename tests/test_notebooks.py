"""The notebooks, run from the first cell to the last on models of a few thousand weights."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from tests.kit.models import FIRST_STAGE, transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import SEGMENTED, write_data
from tests.scripts.test_make_scene_samples import SCENES, write_scenes
from tests.support import ROOT

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((ROOT / "scripts").glob("*.ipynb"))
TRANSFORMER, RECONSTRUCTION = "taming-transformers", "reconstruction_usage"


def read(name: str) -> Any:
    return nbformat.read(ROOT / "scripts" / f"{name}.ipynb", as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def add_data(run: Path, data: Path) -> Path:
    """The run, with the data section of a YAML in its config."""
    (config,) = (run / "configs").iterdir()
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(config), OmegaConf.load(data)), config)
    return run


def execute(name: str) -> tuple[str, list[bytes]]:
    """What a notebook prints, and the pictures it shows, when a kernel runs it."""
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = read(name)
    client.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "scripts")}}
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    text = "".join(out.text for out in outputs if out.output_type == "stream")
    pictures = [out.data for out in outputs if out.output_type == "display_data"]
    return text, [data["image/png"] for data in pictures if "image/png" in data]


def test_they_are_committed_without_outputs() -> None:
    assert [path.stem for path in NOTEBOOKS] == [RECONSTRUCTION, TRANSFORMER]
    for path in NOTEBOOKS:
        content = json.loads(path.read_text())
        for cell in content["cells"]:
            assert not cell.get("outputs"), f"{path.name}: clear the outputs"
            assert cell.get("execution_count") is None, f"{path.name}: clear the outputs"
            assert not cell["metadata"]
        assert content["metadata"]["kernelspec"]["name"] == "python3"
        nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.slow
def test_sampling_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_data(tiny_run(tmp_path / "tiny"), write_data(tmp_path / "data.yaml"))
    monkeypatch.setenv("TAMING_RUN", str(run))
    monkeypatch.setenv("TAMING_DEVICE", "cpu")
    text, pictures = execute(TRANSFORMER)
    assert "tiny, after 7 steps, on cpu" in text
    assert 0 < float(re.findall(r"PSNR ([0-9.]+) dB", text)[0]) < 40
    assert re.search(r"[1-9][0-9]*% of the 20 codes occur in these 3 images", text)
    assert "8 x 8 codes, torch.Size([16, 16]) pixels" in text
    assert len(pictures) >= 7


@pytest.mark.slow
def test_reconstruction_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    smaller = {**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "n_embed": 6}}
    runs = [tiny_run(tmp_path / "a", smaller), tiny_run(tmp_path / "b")]
    monkeypatch.setenv("TAMING_RUNS", ", ".join(map(str, runs)))
    monkeypatch.setenv("TAMING_IMAGES", str(tmp_path))
    monkeypatch.setenv("TAMING_SIZE", "13")
    monkeypatch.setenv("TAMING_DEVICE", "cpu")
    text, pictures = execute(RECONSTRUCTION)
    assert "3 images, the first of 12 x 12 pixels" in text
    scores = re.findall(
        r"^(\w): L1 ([0-9.]+), PSNR (-?[0-9.]+) dB, usage ([0-9.]+)%", text, re.MULTILINE
    )
    assert [score[0] for score in scores] == ["a", "b"]
    assert all(0 < float(l1) < 2 and 0 < float(usage) <= 100 for _, l1, _, usage in scores)
    counts = re.findall(r"(\w): (\d+) of (\d+) codes occur", text)
    assert [(name, total) for name, _, total in counts] == [("a", "6"), ("b", "20")]
    assert float(scores[0][3]) == pytest.approx(100 * int(counts[0][1]) / 6, abs=0.06)
    assert len(pictures) == 6


KINDS: dict[str, dict[str, Any]] = {
    "map": SEGMENTED,
    "none": {"cond_stage_config": "__is_unconditional__"},
    "scenes": SCENES,
}


@pytest.mark.parametrize("kind", [*KINDS, "class without data"])
def test_sampling_for_every_kind_of_condition(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("IPython")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = tiny_run(tmp_path / "run", transformer_config(**KINDS.get(kind, {})))
    if kind in KINDS:
        scenes = kind == "scenes"
        add_data(run, write_scenes(tmp_path) if scenes else write_data(tmp_path / "data.yaml"))
    Image.effect_noise((40, 30), 80).save(tmp_path / "noise.png")
    monkeypatch.setenv("TAMING_RUN", str(run))
    monkeypatch.setenv("TAMING_IMAGES", str(tmp_path))
    monkeypatch.setenv("TAMING_DEVICE", "cpu")
    names: dict[str, Any] = {}
    for source in code_of(read(TRANSFORMER)):
        exec(source, names)
    assert names["sample"].image.shape == (3, *(2 * side for side in names["alike"][0].x.shape[2:]))
    assert len(names["recorder"].frames) > 10
    first = names["known"] >= 0
    assert 0 < int(first.sum()) < first.numel()
    assert "PSNR" in capsys.readouterr().out


def test_the_demos_runs_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from taming.errors import UserError

    pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for variable in ("TAMING_RUN", "TAMING_RUNS", "TAMING_IMAGES"):
        monkeypatch.delenv(variable, raising=False)
    for name in (TRANSFORMER, RECONSTRUCTION):
        with pytest.raises(UserError, match="no run of the demo in logs/; run `make demo`"):
            exec("\n".join(code_of(read(name))[:2]), {})
    data = write_data(tmp_path / "data.yaml")
    for day in (1, 2):
        add_data(tiny_run(tmp_path / f"logs/2026-01-0{day}_digits_transformer"), data)
    stage = tiny_run(tmp_path / "logs/2026-01-01_digits_vqgan", FIRST_STAGE) / "checkpoints"
    early = torch.load(stage / "last.ckpt", weights_only=False)
    for name in (TRANSFORMER, RECONSTRUCTION):
        torch.save(early, stage / "epoch=000000.ckpt")  # first the same weights, then others
        exec("\n".join(code_of(read(name))[:2]), {})
        early["state_dict"] = {key: 2 * value for key, value in early["state_dict"].items()}
    lines = capsys.readouterr().out
    assert "2026-01-02_digits_transformer, after 7 steps" in lines
    for stage_name in ("2026-01-01_digits_vqgan", "2026-01-01_digits_vqgan, step 7"):
        assert f"{stage_name}: 20 codes, each for 2 x 2 pixels" in lines
    assert "nothing to compare" not in lines
    torch.save(torch.load(stage / "last.ckpt", weights_only=False), stage / "epoch=000000.ckpt")
    exec("\n".join(code_of(read(RECONSTRUCTION))[:2]), {})
    assert "with which there is nothing to compare" in capsys.readouterr().out
    assert "2026-01-01_digits_transformer" not in lines
