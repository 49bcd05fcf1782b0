"""Runs that go on with an option that they began without, or without one that they began with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import taming
from taming.checkpoint import read_checkpoint
from taming.errors import UserError
from taming.training import run_folder
from taming.training.checkpoint_io import AtomicCheckpointIO
from taming.training.cli import main as main_command
from taming.training.new_options import adapted, check_unchanged
from tests.kit.models import GAN_LOSS, build, ddconfig, first_stage_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
RUN = Path("logs/2022-01-01T00-00-00_run")
CODES = {"n_e": 12, "e_dim": 4, "beta": 0.25}


@pytest.fixture(autouse=True)
def a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2022-01-01T00-00-00")


def quantizer(name: str, module: str, **params: Any) -> dict[str, Any]:
    return {"target": f"taming.modules.vqvae.{module}.{name}", "params": {**CODES, **params}}


def begin(folder: Path, steps: int = 2, **params: Any) -> None:
    data = {"target": "tests.kit.resuming.Crops", "params": {"length": 8}}
    model = first_stage_config(ddconfig=ddconfig(resolution=8), lossconfig=GAN_LOSS, **params)
    config = {
        "model": {"base_learning_rate": 1e-3, **model},
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {"batch_size": 2, "num_workers": 0, "train": data},
        },
        "lightning": {"trainer": {"enable_progress_bar": False, "enable_model_summary": False}},
    }
    base = write_config(folder, OmegaConf.create(config))
    main(["--base", base, "-t", "-n", "run", "--no-test", "--max_steps", str(steps)])


def go_on(*changes: str, steps: int = 4) -> Mapping[str, torch.Tensor]:
    """The weights of the run, with changes of its model's parameters, after `steps`."""
    overrides = [f"model.params.{change}" for change in changes]
    main(["-r", str(RUN), "-t", "--no-test", "--max_steps", str(steps), *overrides])
    state: Mapping[str, torch.Tensor] = read_checkpoint(RUN / "checkpoints/last.ckpt")["state_dict"]
    return state


def test_dead_codes_are_revived_from_now_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(tmp_path)
    state = go_on("revive_after=2")
    line = "last.ckpt has nothing of revive_after yet, which begins now"
    assert caplog.text.count(line) == 1
    assert state["quantize.idle.batches"].max() == 2  # of the two batches since
    caplog.clear()
    go_on(steps=6)
    assert "revive_after yet" not in caplog.text
    assert "quantize.idle.batches" not in go_on("revive_after=0", steps=8)
    assert caplog.text.count("what revive_after kept in logs/") == 1


def test_averages_begin_at_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path)
    before = read_checkpoint(RUN / "checkpoints/last.ckpt")["state_dict"]
    before = {name: tensor.clone() for name, tensor in before.items()}
    after = go_on("use_ema=true", steps=4)
    assert "last.ckpt has nothing of use_ema yet" in caplog.text
    assert after["model_ema.num_updates"] == 2
    name, average = "encoder.conv_in.weight", "model_ema.encoderconv_inweight"
    moved = (after[name] - before[name]).abs().max()
    assert 0 < (after[average] - before[name]).abs().max() <= moved
    assert not any(n.startswith("model_ema") for n in go_on("use_ema=false", steps=6))


def test_penalties_and_shares_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    begin(tmp_path)
    loss = "lossconfig.params."
    state = go_on(f"{loss}lecam_weight=0.1", f"{loss}disc_start=0.5")
    assert state["loss.penalties.lecam_means"].abs().sum() > 0
    assert state["loss.start.known"] == 2  # half of four steps
    assert "has nothing of disc_start and lecam_weight yet" in caplog.text
    counts = "the discriminator counts from step {} (epoch {}) on, {} of the run"
    assert counts.format(2, 0, "after 0.5") in caplog.text
    assert go_on(steps=8)["loss.start.known"] == 2  # a longer run keeps it
    assert counts.format(2, 0, "which was 0.5") + " when that was set" in caplog.text
    state = go_on(f"{loss}disc_start=0.9", steps=10)
    assert state["loss.start.known"] == 9 and counts.format(9, 2, "after 0.9") in caplog.text
    state = go_on(f"{loss}lecam_weight=0.0", f"{loss}disc_start=0", steps=11)
    assert not {"loss.penalties.lecam_means", "loss.start.known"} & state.keys()
    assert "what disc_start and lecam_weight kept in" in caplog.text


def test_a_perceptual_loss_is_looked_for_before_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path)
    before = (RUN / "checkpoints/last.ckpt").read_bytes()
    prepared: list[Any] = []
    monkeypatch.setattr("taming.training.cli.prepare_loss", prepared.append)
    with pytest.raises(StopIteration):
        monkeypatch.setattr("taming.training.cli.fit", lambda *_: next(iter(())))
        go_on("lossconfig.params.perceptual_weight=1.0")
    assert len(prepared) == 1 and (RUN / "checkpoints/last.ckpt").read_bytes() == before
    with pytest.raises(StopIteration):
        go_on()
    assert len(prepared) == 1


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (quantizer("CosineQuantizer", "cosine"), {"revive_after": 3}, "idle.batches"),
        (quantizer("VectorQuantizer2", "nearest"), {"clustering": True}, "clusters.embed_prob"),
        (
            {
                "target": "taming.modules.vqvae.residual.ResidualQuantizer",
                "params": {"n_codes": 12, "e_dim": 4, "levels": 2},
            },
            {"revive_after": 3},
            "idle.batches",
        ),
        (
            {
                "target": "taming.modules.vqvae.multi_scale.MultiScaleQuantizer",
                "params": {"n_e": 12, "e_dim": 4, "scales": [1, 2]},
            },
            {"revive_after": 3},
            "revival.idle",
        ),
    ],
)
def test_what_each_quantizer_keeps_begins_as_it_was_built(
    before: dict[str, Any], after: dict[str, Any], kept: str
) -> None:
    old, new = build(before), build({**before, "params": {**before["params"], **after}})
    fitting = adapted(old.state_dict(), new)
    names = [name for name in new.state_dict() if name.endswith(kept)]
    assert names and all(torch.count_nonzero(fitting.state[name]) == 0 for name in names)
    assert fitting.new == tuple(after) and not fitting.gone
    new.load_state_dict(fitting.state)
    back = adapted(new.state_dict(), old)
    assert back.gone == tuple(after) and back.state.keys() == old.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("target=taming.modules.vqvae.cosine.CosineQuantizer", "target was .* and is now"),
        ("params={levels: [5, 3]}", r"levels was \[3, 5\] and is now \[5, 3\]: it cannot change"),
    ],
)
def test_another_quantizer_cannot_be_taken_for_the_same(
    tmp_path: Path, change: str, message: str
) -> None:
    config = {"target": "taming.modules.vqvae.fsq.FSQ", "params": {"levels": [3, 5]}}
    if change.startswith("target"):
        config = quantizer("VectorQuantizer2", "nearest")
    begin(tmp_path, n_embed=None, embed_dim=None, quantizer_config=config)
    with pytest.raises(UserError, match=message):
        go_on(f"quantizer_config.{change}")


def test_what_is_the_same_in_other_words_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").touch()
    plain = {"target": "taming.models.vqgan.VQModel", "params": {"ddconfig": {"ch": 32}}}
    stage = {"target": "taming.models.vqgan.EMAVQ", "params": {"ckpt_path": "x.ckpt"}}
    multi = "taming.modules.vqvae.multi_scale.MultiScaleQuantizer"
    gpt = {"target": "taming.modules.transformer.mingpt.GPT", "params": {}}
    fsq = {"target": "taming.modules.vqvae.fsq.FSQ", "params": {"levels": [8, 8]}}
    grouped = {"groups": 2, "quantizer_config": fsq}
    target = "taming.modules.vqvae.grouped.GroupedQuantizer"
    stage["params"]["quantizer_config"] = {"target": target, "params": grouped}
    stage["params"]["ddconfig"] = {}
    inner = "params.first_stage_config.params.quantizer_config.params.quantizer_config"

    def check(*changes: str) -> None:
        before = OmegaConf.create({"model": plain})
        for name, value in (("first_stage_config", stage), ("transformer_config", gpt)):
            before.model.params[name] = value
        before.model.params.quantizer_config = {"target": multi, "params": {}}
        now = OmegaConf.merge(before, OmegaConf.from_dotlist([f"model.{c}" for c in changes]))
        assert isinstance(now, DictConfig)
        check_unchanged(before, now)
        if not any("ckpt_path" in change for change in changes):
            check_unchanged(now, before)

    quantizer = "params.quantizer_config.params"
    check("target=ldm.models.autoencoder.VQModel", f"{quantizer}.using_znorm=false")
    check("params.ddconfig.norm_groups=32", "params.transformer_config.params.n_unmasked=0")
    check(f"params.first_stage_config.params.ckpt_path={tmp_path}/x.ckpt")
    check(f"{inner}.params.symmetric=false", f"{quantizer}.revive_after=2")
    check("params.permuter_config.target=taming.modules.transformer.permuter.Identity")
    for change in (
        "target=taming.models.vqgan.GumbelVQ",
        "params.ddconfig.norm_groups=16",
        "params.transformer_config.params.n_unmasked=1",
        f"{quantizer}.using_znorm=true",
        "params.first_stage_config.target=taming.models.vqgan.VQModel",
        "params.cond_stage_config=__is_first_stage__",
        "params.permuter_config.target=taming.modules.transformer.permuter.ZCurve",
        "params.first_stage_config.params.ddconfig.norm_groups=16",
        "params.first_stage_config.params.quantizer_config.target=taming.modules.vqvae.fsq.FSQ",
        f"{inner}.target=taming.modules.vqvae.cosine.CosineQuantizer",
        f"{inner}.params.levels=[4,16]",
        f"{inner}.params.symmetric=true",
    ):
        with pytest.raises(UserError, match="it cannot change in a run$"):
            check(change)
    for change in ("first_stage_config.params.ckpt_path=y.ckpt", "ckpt_path=x.ckpt"):
        with pytest.raises(UserError, match="has its weights already; start a new one"):
            check(f"params.{change}")


def test_what_trains_cannot_be_new(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UserError, match="does not fit the config: .*disc_num_layers"):
        go_on("lossconfig.params.disc_num_layers=2")


def test_a_checkpoint_away_from_its_run_is_what_it_was(tmp_path: Path) -> None:
    config = {"target": "taming.modules.vqvae.fsq.FSQ", "params": {"levels": [3, 5]}}
    begin(tmp_path, n_embed=None, embed_dim=None, quantizer_config=config)
    (tmp_path / "alone").mkdir()
    shutil.copy(RUN / "checkpoints/last.ckpt", tmp_path / "alone/x.ckpt")
    assert taming.load(tmp_path / "alone/x.ckpt").quantize.levels == (3, 5)


def test_checkpoints_are_written_and_read_by_our_own(tmp_path: Path) -> None:
    model = build(first_stage_config(revive_after=2))
    files, path = AtomicCheckpointIO(model), tmp_path / "x.ckpt"
    state = {n: t for n, t in model.state_dict().items() if "idle" not in n}
    files.save_checkpoint({"state_dict": state, "a": 1}, path)
    content = files.load_checkpoint(path, weights_only=False)
    assert content["a"] == 1 and content["state_dict"].keys() == model.state_dict().keys()


def test_how_the_optimizers_step_may_change(tmp_path: Path) -> None:
    """The checkpoint says how they did, and the config how they do now."""
    begin(tmp_path)
    for change, steps, fused in (("true", 4, True), ("false", 6, None)):
        go_on(f"fused_optimizer={change}", steps=steps)
        for optimizer in read_checkpoint(RUN / "checkpoints/last.ckpt")["optimizer_states"]:
            assert [group["fused"] for group in optimizer["param_groups"]] == [fused]
            assert {float(one["step"]) for one in optimizer["state"].values()} == {steps}


def test_what_former_versions_did_not_keep_is_no_new_option() -> None:
    loss = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0.3}}
    model = build(first_stage_config(lossconfig=loss))
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("share_of_known")}
    fitting = adapted(state, model)
    assert not fitting.new and fitting.state.keys() == model.state_dict().keys()
