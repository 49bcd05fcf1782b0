"""The demo's four commands, at tiny size, on the real digits and through the real entry points."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from taming.evaluation.results import read_result
from taming.training import run_folder
from tests.support import ROOT

SMALL_STAGE = ["n_embed=16", "embed_dim=4", "ddconfig.ch_mult=[1,1]"]
QUICK = ["--limit_val_batches", "2", "--enable_progress_bar", "False"]


def run(script: str, *arguments: str) -> None:
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.slow
def test_digits_from_data_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    configs = ROOT / "configs"
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2021-01-01T00-00-00")
    stage = [f"model.params.{change}" for change in SMALL_STAGE]
    run("main.py", "-b", f"{configs}/digits_vqgan.yaml", "-t", "--max_steps", "3", *QUICK, *stage)
    [vqgan] = tmp_path.glob("logs/*_digits_vqgan")
    nested = [f"model.params.first_stage_config.params.{change}" for change in SMALL_STAGE]
    run(
        "main.py",
        "-b",
        f"{configs}/digits_transformer.yaml",
        "-t",
        "--max_steps",
        "3",
        *QUICK,
        f"model.params.first_stage_config.params.ckpt_path={vqgan}",
        *nested,
        "model.params.transformer_config.params.block_size=256",
        "model.params.transformer_config.params.vocab_size=16",
        "model.params.transformer_config.params.n_layer=1",
        "model.params.transformer_config.params.n_embd=16",
    )
    [transformer] = tmp_path.glob("logs/*_digits_transformer")
    run("scripts/sample_fast.py", "-r", str(transformer), "-n", "4", "--classes", "0,7")
    samples = sorted(transformer.glob("samples/top_k_250_temp_1.00_top_p_1.0/3/*/*.png"))
    names = [f"{path.parent.name}/{path.name}" for path in samples]
    assert names == [f"{label}/{number:06}.png" for label in (0, 7) for number in range(4)]
    run("scripts/report.py", "-r", str(transformer))
    report = json.loads((transformer / "report" / "report.json").read_text())
    assert report["first_stage"]["images"] == 297
    assert 0 < report["first_stage"]["codebook_usage"] <= 1
    assert (
        report["transformer"]["nats_per_token"]
        < 1.2 * report["transformer"]["uniform_nats_per_token"]
    )
    assert 0 <= report["samples"]["named_right_by_5_neighbours"] <= 1
    own = report["by_own_classifier"]
    assert "own training data" in own["by"]
    assert own["validation_images"]["top_1"] > 0.9  # it has learned the digits
    assert own["samples"]["fid"] > 3 * own["validation_images"]["fid"]  # of three steps' training
    assert {"kid", "precision", "recall", "top_1"} <= own["samples"].keys()
    result = read_result(transformer / "report" / "report.json")
    assert result["sets"]["reference"]["images"] == 1500
    assert result["protocol"]["by_own_classifier"]["extractor"]["weights_sha256"]
    with Image.open(transformer / "report" / "samples.png") as picture:
        # 4 samples, 10 real images of a class, at twice 32 pixels; places for 21, 2 pixels apart.
        assert picture.width == (4 + 10) * 2 * 32 + 22 * 2
    assert "samples named right" in capsys.readouterr().out


def test_report_needs_samples(tmp_path: Path) -> None:
    from taming.errors import UserError
    from taming.evaluation.checkpoints import OwnWeights
    from taming.evaluation.tasks.report import newest_samples
    from taming.weight_choice import WeightChoice

    with pytest.raises(UserError, match="make some with scripts/sample_fast.py"):
        newest_samples(tmp_path, "sample_fast", (32, 32), OwnWeights("", WeightChoice()))
