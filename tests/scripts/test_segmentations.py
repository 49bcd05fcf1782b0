"""First stages of segmentations, whatever the number of labels, and transformers over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset

import main
from scripts import complete, evaluate_first_stage, linear_probe, make_samples, report, sample_fast
from scripts import reconstruct as reconstruct_script
from taming.evaluation.sources.prepared import ColoredLabelSource
from taming.models.codes import as_pictures, each_label
from taming.pictures import to_uint8
from taming.sampling.animation import Recorder
from taming.sampling.engine import sample_images
from taming.sampling.requests import requests_for_labels
from tests.kit.models import SEGMENTATION, ddconfig, tiny_model, transformer_config
from tests.kit.runs import newest, tiny_run

COUNTS = (1, 3, 5)  # as many channels as gray images, as images in color, and as neither


class Maps(Dataset[dict[str, Any]]):
    """One-hot maps of labels 8 x 8, of two classes."""

    def __init__(self, labels: int, length: int = 8) -> None:
        self.labels, self.length = labels, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        numbers = np.random.RandomState(index).randint(0, self.labels, (8, 8))
        one_hot = np.eye(self.labels, dtype=np.float32)[numbers]
        return {"segmentation": one_hot, "class_label": index % 2}


def stage_config(labels: int) -> dict[str, Any]:
    params: dict[str, Any] = {**SEGMENTATION["params"], "n_labels": labels, "n_embed": 20}
    params["ddconfig"] = ddconfig(labels, resolution=8, z_channels=4)
    return {**SEGMENTATION, "params": params}


def over(stage: Any) -> dict[str, Any]:
    """An unconditional transformer."""
    unconditional = {"cond_stage_config": "__is_unconditional__"}
    gpt = {"block_size": 80}
    key = {"first_stage_key": "segmentation"}
    return transformer_config(gpt, first_stage_config=stage, **key, **unconditional)


def with_data(run: Path, labels: int) -> Path:
    """The run, with data for training and validation."""
    dataset = {"target": f"{__name__}.Maps", "params": {"labels": labels}}
    params = {"batch_size": 4, "train": dataset, "validation": dataset}
    data = {"target": "main.DataModuleFromConfig", "params": params}
    OmegaConf.save(OmegaConf.create({"data": data}), run / "configs" / "0-project.yaml")
    return run


def colors_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def label_colors(stage: Any) -> set[tuple[int, ...]]:
    colors = to_uint8(as_pictures(stage, each_label(stage.channels)))[0, :, 0].t()
    return set(map(tuple, colors.tolist()))


@pytest.mark.parametrize("labels", COUNTS)
def test_first_stages_are_evaluated_by_their_labels(
    labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = with_data(tiny_run(tmp_path / "run", stage_config(labels)), labels)
    quick = ["-r", str(run), "--device", "cpu", "--workers", "0"]
    evaluate_first_stage.main([*quick, "--speed_rounds", "0"])
    metrics = json.loads(newest(run, "**/first_stages.json").read_text())["metrics"]["run"]
    x = torch.stack([torch.from_numpy(Maps(labels)[n]["segmentation"]) for n in range(8)])
    x = x.permute(0, 3, 1, 2)
    with torch.no_grad():
        found = tiny_model(stage_config(labels))(x)[0].argmax(1)
    right = float((found == x.argmax(1)).double().mean())
    assert metrics["pixel_accuracy"] == pytest.approx(right)
    linear_probe.main([*quick, "--folds", "3"])
    assert newest(run, "**/probe-*.json").is_file()
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(x[0].argmax(0).byte().numpy()).save(maps / "a.png")
    out = tmp_path / "out"
    reconstruct_script.main(["-r", str(run), "--device", "cpu", "-o", str(out), str(maps)])


@pytest.mark.parametrize("labels", COUNTS)
def test_transformers_are_trained_and_shown_in_the_labels_colors(
    labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = tiny_run(tmp_path / "stage", stage_config(labels))
    dataset = {"target": f"{__name__}.Maps", "params": {"labels": labels}}
    params = {"batch_size": 4, "num_workers": 0, "train": dataset, "validation": dataset}
    config = {
        "model": {"base_learning_rate": 1e-4, **over(str(stage))},
        "data": {"target": "main.DataModuleFromConfig", "params": params},
    }
    OmegaConf.save(OmegaConf.create(config), "seg.yaml")
    main.main(["-b", "seg.yaml", "-t", "True", "--max_steps", "1", "--accelerator", "cpu"])
    (run,) = Path("logs").iterdir()
    logged = sorted((run / "images" / "train").glob("*.png"))
    names = {"inputs", "reconstructions", "samples_half", "samples_nopix", "samples_det"}
    logged = [path for path in logged if not path.name.startswith("side_by_side")]
    assert {path.name.split("_gs")[0] for path in logged} == names
    expected = label_colors(tiny_model(stage_config(labels)))
    for path in logged:
        assert len(colors_of(path) - expected) <= 1  # black between the pictures


@pytest.mark.parametrize("labels", COUNTS)
def test_transformers_are_sampled_and_reported_in_the_labels_colors(
    labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = over(stage_config(labels))
    run, expected = with_data(tiny_run(tmp_path / "run", config), labels), None
    model = tiny_model(config)
    expected = label_colors(model.first_stage_model)
    assert len(expected) == labels
    on_cpu = ["-r", str(run), "--device", "cpu"]
    sample_fast.main([*on_cpu, "-n", "8", "-k", "20"])
    make_samples.main([*on_cpu, "-n", "2"])
    numbers = Maps(labels)[1]["segmentation"].argmax(2).astype(np.uint8)
    Image.fromarray(numbers).save(tmp_path / "map.png")
    given = ["--image", str(tmp_path / "map.png"), "--keep", "top-half", "-n", "1"]
    complete.main([*on_cpu, *given, "-o", str(tmp_path / "out")])
    kept = next(tmp_path.glob("out/**/kept.png"))
    written = [*run.rglob("*.png"), *tmp_path.glob("out/**/*.png")]
    assert len(written) == 8 + 6 + 3
    for path in written:
        beyond = colors_of(path) - expected
        assert beyond <= ({(128, 128, 128)} if path == kept else set())
    with Image.open(kept.with_name("input.png")) as image:
        source = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
    x = torch.from_numpy(Maps(labels)[1]["segmentation"]).permute(2, 0, 1)[None]
    assert torch.equal(to_uint8(as_pictures(model.first_stage_model, x))[0], source)
    report.main(on_cpu)
    shown = ColoredLabelSource(
        model.first_stage_model,
        run / "configs" / "0-project.yaml",
        "validation",
        "segmentation",
        workers=0,
    )
    assert np.array_equal(shown.load(1)[0], source.numpy())
    assert (run / "report" / "samples.png").is_file()
    found = json.loads((run / "report" / "report.json").read_text())
    assert found["sets"]["reference"]["shown"] == "labels in the first stage's colors"


def test_a_label_has_one_color_in_all_pictures() -> None:
    model = tiny_model(over(stage_config(5)))
    alone, together = (
        [
            sample.image
            for sample in sample_images(
                model, requests_for_labels(model, [None], 4), batch_size=size
            )
        ]
        for size in (1, 4)
    )
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    films, requests = Recorder(model, (4, 4)), requests_for_labels(model, [None], 1)
    list(sample_images(model, requests, on_step=films))
    colors = set(map(tuple, np.asarray(films.frames[-1]).reshape(-1, 3).tolist()))
    assert colors <= label_colors(model.first_stage_model)
