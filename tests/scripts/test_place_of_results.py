"""Evaluations that could not write their results say so before they look at an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import squeezenet1_1

from scripts import (
    evaluate_classes,
    evaluate_fid,
    evaluate_first_stage,
    evaluate_scenes,
    evaluate_transformer,
    figures,
    linear_probe,
)
from taming.evaluation.runner import Runner
from tests.kit.images import image_classes
from tests.kit.runs import run_with_data, tiny_run
from tests.kit.scenes import scene_run, write_scenes

TINY = ["--extractor", "tests.kit.extractor:TinyExtractor"]
NOISE = {"target": "tests.kit.datasets.Noise", "params": {"length": 3, "size": 8}}
SCRIPTS: dict[str, tuple[Any, list[str]]] = {
    "fid": (evaluate_fid, ["IMAGES", "IMAGES", *TINY]),
    "first stages": (evaluate_first_stage, ["-r", "STAGE", *TINY]),
    "probe": (linear_probe, ["-r", "STAGE", "--images", "IMAGES", "--size", "16"]),
    "likelihood": (evaluate_transformer, ["-r", "RUN"]),
    "scenes": (evaluate_scenes, ["-r", "SCENES", *TINY, "-R", "8,8", "--isc_splits", "2"]),
    "classes": (evaluate_classes, ["IMAGES", "--judge", "squeezenet1_1:JUDGE"]),
    "neighbors": (figures, ["neighbors", "RUN", "IMAGES", "--by", "features", *TINY]),
    "likelihoods": (figures, ["likelihood", "-r", "RUN"]),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("place")
    torch.save(squeezenet1_1().state_dict(), root / "judge.pth")
    found = {
        "IMAGES": image_classes(root / "images", {"0": 3, "1": 3}),
        "RUN": tiny_run(root / "run", validation=NOISE),
        "STAGE": run_with_data(root / "stage"),
        "SCENES": scene_run(write_scenes(root / "scenes", 5)),
        "JUDGE": root / "judge.pth",
    }
    return {name: str(path) for name, path in found.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_results_that_could_not_be_written(
    name: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Runner, "run", lambda *_, **__: pytest.fail("images were looked at"))
    script, words = SCRIPTS[name]
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        script.main([*words, "--device", "cpu", "-o", str(tmp_path / "file")])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "file, not a folder; choose another --outdir" in error
