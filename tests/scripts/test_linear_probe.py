"""Probes of first stages, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.linear_probe import main
from taming.evaluation.metrics.linear_probe import ProbeSettings, probe
from taming.evaluation.runner import Runner
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.tasks.probe import pooled
from taming.pictures import to_values
from tests.kit.images import image_classes, image_folder, image_sizes
from tests.kit.models import DALLE, FIRST_STAGE, tiny_model
from tests.kit.processes import in_two_processes
from tests.kit.runs import run_with_data, tiny_run

SMALL = ("--device", "cpu", "--decays", "0.01,1", "--folds", "3")


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that is the brighter the later the class."""
    root = tmp_path_factory.mktemp("classes")
    return image_classes(root / "images", {"bright": 7, "brighter": 6, "brightest": 6})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_run(tmp_path_factory.mktemp("logs") / "vqgan", FIRST_STAGE))


def result(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("probe-*.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_codes_and_latents_of_two_first_stages(
    run: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dalle, out = str(tiny_run(tmp_path / "dall-e", DALLE)), tmp_path / "out"
    flags = ["-r", run, "-r", dalle, "--images", str(images), "--grid", "2", *SMALL]
    main([*flags, "--size", "16", "-o", str(out)])
    found = result(out)
    assert list(found["metrics"]) == ["vqgan", "dall-e"]
    for scores in found["metrics"].values():
        assert list(scores) == ["histogram", "codes", "latents"]
        for one in scores.values():
            assert one["chance"] == pytest.approx(7 / 19) and len(one["folds"]) == 3
    assert found["metrics"]["dall-e"]["latents"]["accuracy"] > 0.5  # it shows brightness
    # 4 channels of codes and of latents, in 2 x 2 cells.
    dimensions = [found["metrics"]["vqgan"][kind]["dimensions"] for kind in ("codes", "latents")]
    assert dimensions == [16, 16]
    assert found["metrics"]["vqgan"]["histogram"]["dimensions"] <= 20
    assert found["protocol"]["grid"] == 2 and found["sets"]["images"]["images"] == 19
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 6 + 1 and "| accuracy (%) |" in printed[0]
    (latex,) = out.glob("*.tex")
    assert r"accuracy (\%) $\uparrow$" in latex.read_text()


def test_numbers_are_those_of_the_features(run: str, images: Path, tmp_path: Path) -> None:
    flags = ["-r", run, "--images", str(images), "--features", "latents,histogram", *SMALL]
    main([*flags, "--grid", "0", "-o", str(tmp_path / "out")])
    found = result(tmp_path / "out")["metrics"]["vqgan"]
    source, model = FolderSource(images, workers=0), tiny_model(FIRST_STAGE)
    x = to_values(torch.stack([torch.from_numpy(source.load(n)[0]) for n in range(19)]))
    labels = torch.tensor(source.labels)
    settings = ProbeSettings(folds=3, decays=(0.01, 1.0))
    with torch.no_grad():
        latents = model.encode_to_prequant(x).flatten(1)  # every position by itself
        codes = model.encode_to_indices(x).flatten(1)
    shares = torch.stack([(codes == code).double().mean(1) for code in range(20)], dim=1)
    for kind, features in (("latents", latents), ("histogram", shares)):
        expected = probe(features.double(), labels, settings)
        assert found[kind]["folds"] == pytest.approx(expected.folds)
        assert found[kind]["decays"] == expected.decays


def test_pooling_over_a_grid() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert pooled(maps, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert pooled(maps, 0).tolist() == [list(range(16))] == pooled(maps, 9).tolist()
    assert pooled(maps, 1).tolist() == [[7.5]]


def test_the_classes_of_a_dataset(tmp_path: Path) -> None:
    run = run_with_data(tmp_path / "run", length=12)
    main(["-r", str(run), *SMALL, "--features", "histogram"])
    found = result(run / "evaluation")["metrics"]["run"]["histogram"]
    assert (found["images"], found["classes"], found["chance"]) == (12, 2, 0.5)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    run = str(run_with_data(tmp_path / "run", length=12))
    main(["-r", run, *SMALL, "-o", str(tmp_path / "1"), "--no_cache"])
    flags = ["-r", run, *SMALL, "--workers", "0", "--no_cache", "--batch_size", "5"]
    in_two_processes(main, [*flags, "-o", str(tmp_path / "2")], fresh=True)
    one, two = result(tmp_path / "1"), result(tmp_path / "2")
    assert one["metrics"]["run"]["histogram"]["images"] == 12
    assert two["metrics"]["run"]["codes"]["folds"] == one["metrics"]["run"]["codes"]["folds"]


def test_the_first_images_of_each_class(run: str, images: Path, tmp_path: Path) -> None:
    flags = ["-r", run, "--images", str(images), "--features", "codes", *SMALL]
    main([*flags, "--per_class", "4", "-o", str(tmp_path / "out")])
    found = result(tmp_path / "out")["metrics"]["vqgan"]["codes"]
    assert found["images"] == 12 and found["chance"] == pytest.approx(1 / 3)


def test_other_weights_do_not_go_on_from_what_these_have_done(
    run: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def stopped(self: Any, source: Any, make: Any, key: str, label: str) -> None:
        keys.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", stopped)
    for weights in ([], ["--weights", "raw"], []):
        with pytest.raises(SystemExit):
            main(["-r", run, "--images", str(images), *SMALL, *weights])
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "FLAT"], "has no class folders; a probe needs classes"),
        (["--images", "ONE"], "all images are of one"),
        (["--images", "IMAGES", "--folds", "9"], "--folds 9 needs as many images of every class"),
        (["--images", "IMAGES", "--folds", "2"], "--folds must be at least 3"),
        (["--images", "IMAGES", "--features", "code"], "no features 'code'; did you mean"),
        (["--images", "IMAGES", "--grid", "-1"], "--grid must be at least 0"),
        (["--images", "IMAGES", "--decays", "0"], "--decays: decays are numbers above 0"),
        (["--images", "SIZES", "--grid", "0", "--folds", "3"], "codes of different sizes"),
        (["--data", "DATA", "--per_class", "1"], "--per_class chooses among class folders"),
    ],
)
def test_one_sentence_for_what_cannot_be(
    run: str,
    images: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"IMAGES": images}
    if "FLAT" in flags:
        places["FLAT"] = image_folder(tmp_path / "flat", 3)
    if "ONE" in flags:
        places["ONE"] = image_classes(tmp_path / "one", {"a": 6})
    if "SIZES" in flags:
        places["SIZES"] = tmp_path / "sizes"
        for name in ("a", "b"):
            sizes = {f"{n}.png": (8 + 4 * n, 8) for n in range(3)}
            image_sizes(tmp_path / "sizes" / name, sizes)
    if "DATA" in flags:
        made = run_with_data(tmp_path / "data")
        places["DATA"] = next((made / "configs").iterdir())
    with pytest.raises(SystemExit) as stop:
        main(["-r", run, "--device", "cpu", *(str(places.get(flag, flag)) for flag in flags)])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_latents_of_a_class_without_them(
    run: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from taming.evaluation.tasks import probe as task

    class Never:
        pass

    monkeypatch.setattr(task, "GivesLatents", Never)
    main(["-r", run, "--images", str(images), *SMALL, "-o", str(tmp_path / "out")])
    assert list(result(tmp_path / "out")["metrics"]["vqgan"]) == ["histogram", "codes"]
    assert "no encode_to_prequant" in caplog.text
    assert np.isfinite(result(tmp_path / "out")["metrics"]["vqgan"]["codes"]["accuracy"])
