"""Strategies of several devices: a transformer in shards, and what is refused."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.consolidate import main as consolidate
from scripts.sample_fast import main as sample_fast
from taming.checkpoint import read_checkpoint
from taming.checkpoint.shards import has_shards
from taming.errors import UserError
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.modules.synced_batch_norm import SyncedBatchNorm2d
from taming.training import run_folder
from taming.training.cli import main as main_command
from taming.training.strategies import (
    ShardedStrategy,
    SyncedBatchNorm,
    check_strategy,
    trainer_arguments,
)
from taming.training.trainer_options import checked_options
from tests.kit.launch import Launcher
from tests.kit.models import TRANSFORMER, first_stage_config, transformer_config
from tests.kit.processes import TWO_DEVICES, two_train
from tests.kit.training import NOISE, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions

TIME = {run_folder._TIME_VARIABLE: "t"}
SHARDED = (*TWO_DEVICES, "--strategy", "fsdp2")
HOW = ("--accumulate_grad_batches", "2", "--gradient_clip_val", "0.1")
ALONE = ("--accelerator", "cpu", "--devices", "1", "--strategy", "auto")


def config_of(model: dict[str, Any]) -> dict[str, Any]:
    splits = {"train": 32, "validation": 4, "test": 4}
    data: dict[str, Any] = {"batch_size": 2, "num_workers": 0}
    for split, length in splits.items():
        data[split] = {"target": NOISE, "params": {"length": length, "size": 8}}
    return {
        "model": {"base_learning_rate": 1e-4, **model},
        "data": {"target": "main.DataModuleFromConfig", "params": data},
        "lightning": {"trainer": {"enable_progress_bar": False, "log_every_n_steps": 1}},
    }


def transformer(folder: Path) -> str:
    model = transformer_config(cond_stage_config="__is_unconditional__")
    return write_config(folder, OmegaConf.create(config_of(model)), "transformer.yaml")


def train(launcher: Launcher, folder: Path, *arguments: str) -> str:
    ended = two_train(launcher, folder, ["-t", *HOW, *arguments], **TIME)
    assert ended.code == 0, ended.output
    return ended.output


def last(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def assert_same_state(one: dict[str, Any], other: dict[str, Any], **tolerance: float) -> None:
    assert one["global_step"] == other["global_step"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, other["state_dict"][name], msg=name, **tolerance)
    [ours], [others] = one["optimizer_states"], other["optimizer_states"]
    assert ours["param_groups"] == others["param_groups"] and ours["state"].keys()
    for key, state in ours["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(value, others["state"][key][name], **tolerance)


EXACT = {"rtol": 0.0, "atol": 0.0}


@pytest.mark.slow
def test_a_transformer_in_shards_trains_resumes_and_is_joined(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["--base", transformer(tmp_path)]
    train(launcher, tmp_path, *base, *SHARDED, "--max_steps", "4", "-n", "whole")
    train(launcher, tmp_path, *base, *SHARDED, "--max_steps", "2", "-n", "parts")
    whole, parts = (tmp_path / f"logs/t_{name}" for name in ("whole", "parts"))
    files = sorted((parts / "checkpoints" / "shards").glob("*/*.distcp"))
    assert len(files) == 2 and files[0].parent == files[1].parent  # those of the last step alone
    shutil.copytree(parts, tmp_path / "logs/t_joined")
    train(launcher, tmp_path, "-r", str(parts), "--max_steps", "4")
    for run in (whole, parts, tmp_path / "logs/t_joined"):
        assert has_shards(last(run))
        with pytest.raises(SystemExit, match="2"):  # its weights are not in the file
            sample_fast(["-r", str(run)])
        consolidate([str(run)])
        assert not (run / "checkpoints" / "shards").exists() and not has_shards(last(run))
    assert_same_state(last(whole), last(parts), **EXACT)
    train(launcher, tmp_path, "-r", "logs/t_joined", "--max_steps", "4")  # from whole weights
    consolidate(["logs/t_joined", "joined.ckpt"])
    assert_same_state(last(whole), read_checkpoint("joined.ckpt"), **EXACT)
    main(["-t", *base, *HOW, *ALONE, "-n", "alone", "--max_steps", "4", "data.params.batch_size=4"])
    [alone] = tmp_path.glob("logs/*_alone")
    assert_same_state(last(whole), last(alone), rtol=1e-4, atol=1e-6)
    sample_fast(["-r", str(whole), "-o", "samples", "-n", "2", "--batch_size", "2"])
    assert len(list(Path("samples").rglob("*.png"))) == 2


@pytest.mark.slow
def test_bfloat16_and_checkpointed_blocks_are_close(launcher: Launcher, tmp_path: Path) -> None:
    base = ["--base", transformer(tmp_path), *SHARDED, "--max_steps", "4"]
    recompute = "model.params.transformer_config.params.gradient_checkpointing=true"
    train(launcher, tmp_path, *base, "-n", "full")
    train(launcher, tmp_path, *base, "-n", "again", recompute)
    train(launcher, tmp_path, *base, "-n", "half", "--precision", "bf16-mixed")
    states = []
    for name in ("full", "again", "half"):
        consolidate([str(tmp_path / f"logs/t_{name}")])
        states.append(last(tmp_path / f"logs/t_{name}"))
    full, again, half = states
    assert_same_state(full, again, **EXACT)
    heads = [state["state_dict"]["transformer.head.weight"] for state in (full, half)]
    assert heads[1].dtype == torch.float32 and not torch.equal(*heads)
    torch.testing.assert_close(*heads, rtol=0, atol=1e-2)


def test_what_cannot_be_divided_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = write_config(tmp_path, OmegaConf.create(config_of(first_stage_config())), "first.yaml")
    with pytest.raises(UserError, match="fsdp2 is for transformers, and taming.*VQModel is none"):
        main(["--base", first, "-t", *SHARDED])
    assert not (tmp_path / "logs").exists()


def test_float16_does_not_go_with_shards() -> None:
    options = {"strategy": "fsdp2", "precision": "16-mixed"}
    with pytest.raises(UserError, match="--precision 16-mixed does not go with --strategy fsdp2"):
        check_strategy(options, TRANSFORMER["target"], None)
    check_strategy({**options, "precision": "bf16-mixed"}, TRANSFORMER["target"], None)


@pytest.mark.parametrize(
    "strategy", ["fsdp", "fsdp_cpu_offload", "model_parallel", "deepspeed_stage_3"]
)
def test_other_ways_to_divide_are_refused(strategy: str) -> None:
    with pytest.raises(UserError, match=f"{strategy}; weights of a transformer are .* by fsdp2"):
        checked_options({"strategy": strategy})
    assert checked_options({"strategy": "fsdp2"}) == {"strategy": "fsdp2"}


def test_the_trainer_gets_what_the_words_stand_for() -> None:
    arguments = trainer_arguments({"strategy": "fsdp2", "sync_batchnorm": True, "max_steps": 3})
    assert isinstance(arguments.pop("strategy"), ShardedStrategy)
    assert [type(one) for one in arguments.pop("plugins")] == [SyncedBatchNorm]
    assert arguments == {"max_steps": 3, "inference_mode": False}  # of tests, too
    plain = {"strategy": "ddp", "sync_batchnorm": False}
    assert trainer_arguments(plain) == {"strategy": "ddp", "plugins": []}


def test_batch_normalization_keeps_its_parameters() -> None:
    network = NLayerDiscriminator(3, 8, 2)
    before = {**network.state_dict(keep_vars=True)}
    images = torch.randn(4, 3, 32, 32)
    expected = copy.deepcopy(network)(images)
    model = SyncedBatchNorm().apply(network)
    layers = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(layers) == 2 and all(type(one) is SyncedBatchNorm2d for one in layers)
    assert all(t is before[name] for name, t in model.state_dict(keep_vars=True).items())
    assert torch.equal(model(images), expected)  # of one process, it is torch's


@pytest.mark.parametrize(
    ("options", "kind"), [({}, nn.SyncBatchNorm), ({"r1_weight": 1.0}, SyncedBatchNorm2d)]
)
def test_batch_normalization_on_gpus_can_be_differentiated_as_often_as_the_loss_does(
    options: dict[str, float], kind: type
) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        loss = VQLPIPSWithDiscriminator(0, disc_ndf=8, perceptual_weight=0.0, **options)
        layers = [type(part) for part in SyncedBatchNorm().apply(loss).modules()]
    assert layers.count(kind) == 3


class Process(ShardedStrategy):
    """One of several processes, which hear what the first one has said."""

    def __init__(self, said: list[Any], first: bool) -> None:
        self.said, self.first = said, first

    @property
    def is_global_zero(self) -> bool:
        return self.first

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if self.first:
            self.said.append(obj)
            return obj
        return self.said.pop(0)


@pytest.mark.parametrize("failing", ["make_new_folder", "save_atomic", "remove_unused_shards", ""])
def test_what_the_first_process_cannot_write_ends_all(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None waits for a message that never comes."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr("taming.training.strategies.save_shards", lambda *_: None)
    if failing:
        monkeypatch.setattr(f"taming.training.strategies.{failing}", fail)
    said: list[Any] = []
    for first in (True, False):
        kind = OSError if first else UserError
        with pytest.raises(kind, match="^no room$") if failing else nullcontext():
            Process(said, first).save_as({"global_step": 3}, [tmp_path / "a.ckpt"])
    assert not said and (tmp_path / "a.ckpt").exists() == (failing in ("", "remove_unused_shards"))
