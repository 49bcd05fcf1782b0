"""A tokenizer's file of another project in the scripts, in training and under a transformer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import taming
from scripts.download_models import main as download
from scripts.evaluate_first_stage import main as evaluate
from scripts.export import main as export
from taming.checkpoint import load_run, read_checkpoint
from taming.checkpoint.loading import expand_stages
from taming.config import load_config
from taming.errors import UserError
from taming.published_models import published_models
from taming.training.cli import main as train_command
from tests.kit.images import write_images
from tests.kit.tokenizers import foreign_file, small_state
from tests.kit.training import NOISE, write_config, write_transformer
from tests.support import ROOT

train = train_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
SMALL = ["llamagen", "maskgit", "ibq", "open_magvit2", "simvq", "vqgan"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_are_compared(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4, 16, 16)
    files = [foreign_file(name, tmp_path) for name in SMALL]
    flags = ["--images", str(tmp_path / "images"), "--device", "cpu", "--rows", "2"]
    evaluate([part for file in files for part in ("-r", str(file))] + flags)
    (path,) = tmp_path.glob("theirs/evaluation/first_stages-*/first_stages.json")
    result = json.loads(path.read_text())
    assert list(result["metrics"]) == SMALL
    for metrics in result["metrics"].values():
        assert metrics["images"] == 4 and 0 < metrics["codebook_usage"] <= 1


def test_one_is_a_transformers_first_stage(tmp_path: Path) -> None:
    file = foreign_file("llamagen", tmp_path)
    base = write_transformer(tmp_path)
    stage = f"model.params.first_stage_config={file}"
    vocabulary = "model.params.transformer_config.params.vocab_size="
    vocabulary += "${model.params.first_stage_config.params.n_embed}"
    train(["--base", base, "-t", "-n", "over", "--max_steps", "1", stage, vocabulary])
    (run,) = (tmp_path / "logs").glob("*_over")
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    weights = small_state("llamagen")
    assert torch.equal(
        state["first_stage_model.decoder.up.1.block.0.conv1.weight"],
        weights["decoder.conv_blocks.0.res.0.conv1.weight"],
    )
    (project,) = run.glob("configs/*-project.yaml")
    written = OmegaConf.load(project).model.params.first_stage_config
    quantizer = written.params.quantizer_config
    assert quantizer.target.endswith("CosineQuantizer")
    assert written.params.n_embed == quantizer.params.n_e  # what the vocabulary is read from
    assert load_run(run)[2] == 1


def test_a_vocabulary_is_that_of_any_quantizer() -> None:
    fsq = {"target": "taming.modules.vqvae.fsq.FSQ", "params": {"levels": [3, 5]}}
    stage = {"target": "taming.models.vqgan.VQModel", "params": {"quantizer_config": fsq}}
    key = "model.params.first_stage_config.params"
    for own in ({}, {"n_embed": None}):
        whole = {**stage, "params": {**stage["params"], **own}}
        size = {"first_stage_config": whole, "vocab_size": f"${{{key}.n_embed}}"}
        config = OmegaConf.create({"model": {"params": size}})
        expand_stages(config)
        assert config.model.params.vocab_size == 15
    wrong = OmegaConf.create({"model": {"params": {"first_stage_config": stage}}})
    OmegaConf.update(wrong, f"{key}.quantizer_config.params.levels", "many")
    expand_stages(wrong)  # what is wrong in it is said where the stage is made
    assert "n_embed" not in wrong.model.params.first_stage_config.params


@pytest.mark.parametrize("name", ["llamagen", "open_magvit2"])
def test_one_is_fine_tuned(name: str, tmp_path: Path) -> None:
    file = foreign_file(name, tmp_path)
    config: Any = load_config([ROOT / "configs" / "finetune_foreign.yaml"])
    config.model.params.lossconfig.params.update(perceptual_weight=0.0, disc_ndf=8)
    config.data.params.batch_size = 4
    config.data.params.train = {"target": NOISE, "params": {"length": 12}}
    config.data.params.validation = {"target": NOISE, "params": {"length": 4}}
    start = f"model.params.ckpt_path={file}"
    flags = ["-t", "-n", "tuned", "--max_steps", "1", "--enable_progress_bar", "False"]
    train(["--base", write_config(tmp_path, config), *flags, start])
    (run,) = (tmp_path / "logs").glob("*_tuned")
    tuned, _, step = load_run(run)
    before = taming.load(file)
    assert step == 1 and type(tuned) is type(before)
    moved = [
        name
        for name, tensor in before.state_dict().items()
        if not torch.allclose(tuned.state_dict()[name], tensor, atol=1e-3)
    ]
    assert not moved  # a step of a small rate
    assert not torch.equal(tuned.decoder.conv_out.weight, before.decoder.conv_out.weight)
    train(["-r", str(run), "-t", "--max_steps", "2"])  # no longer needs the file
    assert load_run(run)[2] == 2
    export([name, str(run), str(tmp_path / "theirs" / "again.pt")])
    assert (
        taming.load(tmp_path / "theirs" / "again.pt").state_dict().keys()
        == before.state_dict().keys()
    )


def test_a_lone_file_is_nothing_to_resume(tmp_path: Path) -> None:
    file = foreign_file("vqgan", tmp_path)
    with pytest.raises(UserError, match="finetune_foreign.yaml model.params.ckpt_path="):
        train(["-r", str(file), "-t"])


def test_the_page_has_the_numbers_of_the_table() -> None:
    page = (ROOT / "docs" / "foreign-tokenizers.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    models = published_models()
    assert len(rows) == 22
    for name, what, rfid, licence in rows:
        model = models[name]
        told = (model.what, model.fid.removeprefix("rFID - / "), model.licence)
        assert told == (what, rfid, f"{licence} (code)"), name


def test_they_are_listed_with_their_licence(capsys: pytest.CaptureFixture[str]) -> None:
    download(["--list"])
    text = capsys.readouterr().out
    for name, licence in (
        ("llamagen_vq16", "MIT (code)"),
        ("var_vae", "MIT (code)"),
        ("maskgit_vq", "Apache-2.0 (code)"),
        ("ibq_262144", "Apache-2.0 (code)"),
        ("open_magvit2_256", "Apache-2.0 (code)"),
        ("simvq_262k", "MIT (code)"),
        ("vq_f4_noattn", "MIT (code)"),
        ("diffusers_vq_f4", "Apache-2.0 (code)"),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert line.endswith(f"licence {licence}")
        assert all(address.startswith("https://") for address in published_models()[name].addresses)
    assert "rFID - / 2.19" in text
