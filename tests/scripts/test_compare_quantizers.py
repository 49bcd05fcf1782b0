"""scripts/compare_quantizers.py at small size: trains, goes on, and writes table and picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.compare_quantizers import Options, main, steps_a_second
from taming import program
from taming.evaluation.tasks import quantizers
from taming.evaluation.tasks.quantizers import Evaluated, over_seeds, table_rows
from taming.training.cli import main as train
from tests.training.test_logged_times import write_start

SMALL = """
model:
  params: {n_embed: 8, embed_dim: 2, ddconfig: {ch_mult: [1, 1]}}
"""
FSQ = """
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
        quick = ["--limit_val_batches", "1", "data.params.batch_size=4"]
        monkeypatch.setattr(sys, "argv", ["main.py"])
        train([*words[1:], *quick])

    monkeypatch.setattr(program, "run_apart", run)
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
    assert "| rounded" in Path("out/quantizers.md").read_text()
    with Image.open("out/quantizers.png") as picture:
        assert picture.width > 3 * 256 and picture.height > 2 * 256
    main(words)
    assert len(trained) == 2 and "| plain" in capsys.readouterr().out


def test_means_and_spreads() -> None:
    def run(fid: float, **numbers: float) -> Evaluated:
        return Evaluated({"rfid": fid, **numbers}, 6.0, 96.0, {})

    results = {"worse": [run(3.0), run(5.0)], "better": [run(1.0, l1=0.5)]}
    assert over_seeds(results["worse"])["rfid"]["spread"] == pytest.approx(2**0.5)
    first, second = table_rows(results)
    assert (first["quantizer"], first["FID"], first["L1"]) == ("better", "1.00", "0.5000")
    assert (second["FID"], second["L1"], second["seeds"]) == ("4.00 ± 1.41", "-", "2")
    assert (second["bits a position"], second["bits an image"]) == ("6", "96")


def test_speed_is_that_of_the_log(tmp_path: Path) -> None:
    assert steps_a_second(tmp_path) is None
    folder = tmp_path / "tensorboard"
    write_start(folder, {20: 10.0, 40: 12.0, 120: 20.0}, begun=1000.0, name="train/aeloss")
    assert steps_a_second(tmp_path) == pytest.approx(10.0)


WRONG = {
    ("--seeds", "0"): "--seeds must be at least 1, not 0",
    ("--recipe", "custom_vqgan"): "no shipped quantizers for custom_vqgan; name some",
    (
        "--quantizers",
        "digits_fsk",
    ): "no config file digits_fsk; did you mean 'quantizers/digits_fsq'",
    ("--quantizers", "fsq", "digits_fsq"): "have the same name",
    ("--quantizers", "digits_vq", "digits_vq.yaml"): "have the same name",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_flags_are_a_sentence(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(list(words))
    assert WRONG[words] in capsys.readouterr().err


def test_all_shipped_quantizers_are_the_default() -> None:
    assert len(Options().configs()) == 12
    assert len(Options(recipe="quantizers/photographs").configs()) == 12
