"""scripts/compare_quantizers.py at small size: trains, goes on, and writes table and picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from scripts.compare_quantizers import Options, main, prepare_data, steps_a_second
from scripts.digits import main as digits
from taming.evaluation.tasks import quantizers
from taming.evaluation.tasks.quantizers import Evaluated, over_seeds, table_rows, unequal_bits
from taming.shipped import find_config
from taming.training import apart, run_folder
from taming.training.cli import main as train
from tests.training.test_logged_times import write_start

SMALL = """
model:
  params: {n_embed: 8, embed_dim: 2, ddconfig: {ch_mult: [1, 1]}}
data:
  params: {batch_size: 4}
"""
FSQ = """
data:
  params: {batch_size: 4}
model:
  params:
    n_embed: null
    embed_dim: null
    quantizer_config: {target: taming.modules.vqvae.fsq.FSQ, params: {levels: [3, 3]}}
"""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trainings in this process, by the names of their runs."""
    names: list[str] = []

    def run(words: Sequence[str], folder: Path | None = None) -> None:
        names.append(words[words.index("-n") + 1] if "-n" in words else words[2])
        quick = ["--limit_val_batches", "1"]
        monkeypatch.setattr(sys, "argv", ["main.py"])
        monkeypatch.delenv(run_folder._TIME_VARIABLE, raising=False)  # as a process of its own has
        train([*words[1:], *quick])

    monkeypatch.setattr(apart, "run_apart", run)
    return names


def test_two_quantizers_of_the_digits(
    trained: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = partial(quantizers.train_small_classifier, epochs=1)
    monkeypatch.setattr(quantizers, "train_small_classifier", quick)
    Path("plain.yaml").write_text(SMALL)
    Path("rounded.yaml").write_text(FSQ)
    words = ["--quantizers", "plain.yaml", "rounded.yaml", "--seeds", "1", "--max_steps", "2"]
    words += ["--rows", "2", "-o", "out"]
    main(words)
    assert trained == ["plain_2_steps_seed0", "rounded_2_steps_seed0"]
    result = json.loads(Path("out/quantizers.json").read_text())
    numbers: dict[str, Any] = result["metrics"]
    assert numbers["plain"]["bits_an_image"] == 16 * 16 * 3
    assert numbers["rounded"]["bits_a_position"] == pytest.approx(3.17, abs=0.01)
    for each in numbers.values():
        assert {"rfid", "l1", "psnr", "codebook_usage", "codebook_perplexity"} <= each.keys()
        assert each["l1"]["spread"] is None and len(each["l1"]["values"]) == 1
    written = Path("out/quantizers.md").read_text()
    assert written.startswith("| quantizer") and "| rounded" in written and "| None" not in written
    unequal = "Not at equal bits: an image takes from 50.72 to 768"
    assert unequal in written and unequal in capsys.readouterr().out
    with Image.open("out/quantizers.png") as picture:
        assert picture.width > 3 * 256 and picture.height > 2 * 256
    main(words)
    assert len(trained) == 2 and "| plain" in capsys.readouterr().out

    # One of them is edited; then the recipe is another one.
    words[words.index("rounded.yaml")] = "plain.yaml"
    words.remove("plain.yaml")
    text = find_config("digits_vqgan").read_text()
    Path("own_vqgan.yaml").write_text(text.replace("rate: 1.0e-4", "rate: 2.0e-4"))
    Path("plain.yaml").write_text(SMALL.replace("n_embed: 8", "n_embed: 4"))
    before = {path: path.stat().st_mtime_ns for path in Path("logs").rglob("*.ckpt")}
    main(words)
    said = capsys.readouterr().out
    assert trained[2:] == ["plain_2_steps_seed0"]
    assert "is of another recipe (model.params.n_embed was 8 and is 4): a new run" in said
    assert len(list(Path("logs").glob("*_plain_2_steps_seed0"))) == 2
    assert before.items() <= {p: p.stat().st_mtime_ns for p in Path("logs").rglob("*.ckpt")}.items()
    Path("plain.yaml").write_text(SMALL)
    main(words)
    assert len(trained) == 3  # the first run is there
    main([*words[:-2], "--recipe", "own_vqgan.yaml"])  # beside the whole course's table
    assert [path.name for path in Path("comparison").iterdir()] == ["own_vqgan_2_steps"]
    assert trained[3:] == ["plain_2_steps_seed0"]
    assert "model.base_learning_rate was 0.0001 and is 0.0002" in capsys.readouterr().out


def test_a_classifier_is_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quantizers,
        "train_small_classifier",
        partial(quantizers.train_small_classifier, epochs=1),
    )

    monkeypatch.setattr(quantizers, "read_labeled", lambda source, what: source)
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (8, 8, 8, 3), np.uint8), np.arange(8) % 2

    def files_after(*labeled: Any) -> dict[Path, int]:
        quantizers.classifier_extractor(labeled, tmp_path / "out")  # type: ignore[arg-type]
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}

    first = files_after(images, labels)
    assert len(first) == 1 and files_after(images, labels) == first
    second = files_after(255 - images, labels)
    assert len(second) == 2 and first.items() < second.items()
    assert len(files_after(images, 1 - labels)) == 3


@pytest.mark.parametrize("data", ["data.params.train.params=null", "data=null"])
def test_recipes_without_parameters_of_data(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = OmegaConf.load(find_config("digits_vqgan"))
    if data == "data=null":
        del recipe["data"]
    else:
        recipe.data.params.train = {"target": recipe.data.params.train.target}
    OmegaConf.save(recipe, "own.yaml")
    prepare_data(Path("own.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


def test_means_and_spreads() -> None:
    def run(fid: float, **numbers: float) -> Evaluated:
        return Evaluated({"rfid": fid, **numbers}, 6.0, 96.0, {})

    results = {"worse": [run(3.0), run(5.0)], "better": [run(1.0, l1=0.5)]}
    assert over_seeds(results["worse"])["rfid"]["spread"] == pytest.approx(2**0.5)
    first, second = table_rows(results)
    assert (first["quantizer"], first["FID"], first["L1"]) == ("better", "1.00", "0.5000")
    assert (second["FID"], second["L1"], second["seeds"]) == ("4.00 ± 1.41", "-", "2")
    assert unequal_bits(results) == []
    assert (second["bits a position"], second["bits an image"]) == ("6", "96")


def test_speed_is_that_of_the_log(tmp_path: Path) -> None:
    assert steps_a_second(tmp_path) is None
    folder = tmp_path / "tensorboard"
    write_start(folder, {20: 10.0, 40: 12.0, 120: 20.0}, begun=1000.0, name="train/aeloss")
    assert steps_a_second(tmp_path) == pytest.approx(10.0)


WRONG = {
    ("--seeds", "0"): "--seeds must be at least 1, not 0",
    ("--max_steps", "0"): "--max_steps is at least 1, or -1 for the whole course, not 0",
    ("--max_steps", "-5"): "--max_steps is at least 1, or -1 for the whole course, not -5",
    ("--recipe", "custom_vqgan"): "no shipped quantizers for custom_vqgan; name some",
    (
        "--quantizers",
        "digits_fsk",
    ): "no config file digits_fsk; did you mean 'quantizers/digits_fsq'",
    (
        "--quantizers",
        "photographs_fsq",
    ): "photographs_fsq is of another recipe; name that with --recipe quantizers/photographs",
    ("--recipe", "quantizers/photographs", "--quantizers", "digits_vq"): "--recipe digits_vqgan",
    ("--quantizers", "fsq", "digits_fsq"): "have the same name",
    ("--quantizers", "digits_vq", "digits_vq.yaml"): "have the same name",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_flags_are_a_sentence(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(list(words))
    assert WRONG[words] in capsys.readouterr().err
    if "--max_steps" in words:
        with pytest.raises(SystemExit):
            digits(list(words))
        assert WRONG[words] in capsys.readouterr().err


def test_all_shipped_quantizers_are_the_default() -> None:
    assert len(Options().configs()) == 12
    assert len(Options(recipe="quantizers/photographs").configs()) == 12
