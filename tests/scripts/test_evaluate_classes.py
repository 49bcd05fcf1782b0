from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scripts import evaluate_classes
from scripts.evaluate_classes import main
from taming.evaluation import arguments
from taming.evaluation.metrics.small_classifier import train_small_classifier
from taming.evaluation.results import read_result
from taming.evaluation.runner import Runner
from tests.evaluation.metrics.test_accuracy import stripes
from tests.kit.images import image_folder
from tests.kit.processes import in_two_processes
from tests.kit.runs import tiny_run

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("judge") / "classifier.pt"
    train_small_classifier(*stripes(120, seed=0), epochs=6).save(path)
    return f"small:{path}"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes in folders of their classes; the last one is in a wrong one."""
    root = tmp_path_factory.mktemp("samples")
    images, labels = stripes(12, seed=7)
    labels = torch.cat([labels[:-1], torch.tensor([0])])
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / str(label) / f"{number:06}.png")
    return root


def evaluate(out: Path, *words: str) -> dict[str, Any]:
    main([*words, "--device", "cpu", "-o", str(out)])
    (path,) = out.glob("classes-*.json")
    assert path.with_suffix(".png").is_file()
    return read_result(path)


def test_samples_of_a_folder(samples: Path, judge: str, tmp_path: Path) -> None:
    alone = evaluate(tmp_path / "a", str(samples), "--judge", judge)
    assert alone["metrics"]["images"] == 12
    assert alone["metrics"]["top_1"] == pytest.approx(11 / 12)
    assert alone["by_class"]["0"] == {"images": 5, "top_1": 0.8, "top_5": 1.0}
    assert alone["protocol"]["weights_sha256"]
    argv = [str(samples), "--judge", judge, "--batch_size", "2", "--device", "cpu"]
    in_two_processes(main, [*argv, "-o", str(tmp_path / "b")])
    (path,) = (tmp_path / "b").glob("*.json")
    shared = read_result(path)
    assert shared["hardware"]["processes"] == 2
    assert shared["by_class"] == alone["by_class"]
    assert shared["sets"] == alone["sets"]


def test_the_plot_the_batches_and_the_key_are_the_classifiers(
    samples: Path, judge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots: list[dict[int, float]] = []
    keys: list[str] = []

    class Noted(Runner):
        def run(self, source: Any, make: Any, key: str, *rest: Any, **options: Any) -> Any:
            assert self.batch_size == 5
            keys.append(key)
            return super().run(source, make, key, *rest, **options)

    def plot(values: dict[int, float], path: Path, label: str) -> Path:
        plots.append(values)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr(arguments, "Runner", Noted)
    monkeypatch.setattr(evaluate_classes, "plot_bars", plot)
    other = tmp_path / "other.pt"
    train_small_classifier(*stripes(30, seed=1), epochs=1).save(other)
    monkeypatch.setenv("HOME", str(tmp_path))  # behind a colon shells leave ~ as it is
    for own in (judge, "small:~/other.pt"):
        found = evaluate(
            tmp_path / str(len(keys)), str(samples), "--judge", own, "--batch_size", "5"
        )
        top = {int(label): row["top_1"] for label, row in found["by_class"].items()}
        assert plots[-1] == top
    assert keys[0] != keys[1] and plots[0] == {0: 0.8, 1: 1.0, 2: 1.0}


def test_samples_of_a_run(judge: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    words = [str(run), "-n", "2", "--classes", "0,2", "--judge", judge]
    found = evaluate(tmp_path / "out", *words)
    assert {label: row["images"] for label, row in found["by_class"].items()} == {"0": 2, "2": 2}
    assert found["sets"]["samples"]["checkpoint_hash"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "-n", "2", "--judge", "JUDGE"], "classes 0 to 2, and the samples are of class"),
        (["PLAIN", "--judge", "JUDGE"], "these have none"),
        (["PLAIN", "--judge", "small"], "small needs the file"),
        (["PLAIN", "--judge", "resnet1000"], "no classifier 'resnet1000'"),
        (["--judge", "resnet18"], "give SAMPLES"),
    ],
)
def test_one_sentence(
    words: list[str],
    message: str,
    judge: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = image_folder(tmp_path / "plain", 2)
    places = {"RUN": tmp_path / "run", "PLAIN": plain, "JUDGE": judge}
    if "RUN" in words:
        tiny_run(tmp_path / "run")
    with pytest.raises(SystemExit):
        main([*(str(places.get(word, word)) for word in words), "--device", "cpu"])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
