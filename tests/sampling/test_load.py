from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import taming
from taming.checkpoint import find_run
from taming.devices import choose_device, choose_dtype
from taming.errors import UserError
from taming.models.vqgan import VQModel
from taming.modules.packed_weight import PackedWeight, Quantized
from taming.sampling import load
from taming.sampling.load import (
    data_config,
    load_first_stage,
    load_transformer,
    open_dataset,
)
from taming.weight_choice import choosing_weights
from tests.kit.models import FIRST_STAGE, tiny_model, transformer_config
from tests.kit.runs import tiny_run
from tests.support import ROOT


def test_run_folder_or_checkpoint(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path / "run")
    expected = tiny_model().state_dict()
    for path in (folder, folder / "checkpoints" / "last.ckpt"):
        model, run, global_step = load_transformer(path, device="cpu")
        assert (run.folder, global_step) == (folder, 7)
        assert not model.training
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_changes_and_precision_reach_the_model(tmp_path: Path) -> None:
    folder, base = tiny_run(tmp_path / "run"), tmp_path / "base.yaml"
    base.write_text("model: {params: {sos_token: 3}}")
    changes = ["model.params.pkeep=0.5", "model.params.first_stage_config.params.image_key=photo"]
    model, _, _ = load_transformer(folder, [base], "cpu", changes, torch.bfloat16)
    assert (model.pkeep, model.sos_token) == (0.5, 3)
    assert {p.dtype for p in model.transformer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.first_stage_model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    stage, run, step = load_first_stage(folder, [base], "cpu", changes)
    assert isinstance(stage, VQModel) and not any(p.requires_grad for p in stage.parameters())
    assert (stage.image_key, run.folder, step) == ("photo", folder, 7)
    own = tiny_run(tmp_path / "own", FIRST_STAGE)
    own_stage, _, _ = load_first_stage(own, device="cpu", overrides=["model.params.image_key=x"])
    assert isinstance(own_stage, VQModel) and own_stage.image_key == "x"
    assert not any(parameter.requires_grad for parameter in own_stage.parameters())


def test_models_are_put_on_their_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_run(tmp_path / "run")
    monkeypatch.setattr(load, "choose_device", torch.device)
    model, _, _ = load_transformer(folder, device="meta")
    stage, _, _ = load_first_stage(folder, device="meta")
    assert {p.device.type for p in (*model.parameters(), *stage.parameters())} == {"meta"}


def test_int8_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_run(tmp_path / "run")
    with choosing_weights("int8", ()):
        model, _, _ = load_transformer(folder, device="cpu", dtype=torch.bfloat16)
    loaded = taming.load(folder, weights="int8")
    for one in (model, loaded):
        attn = one.transformer.blocks[0].attn
        assert isinstance(attn.key.weight, PackedWeight)
        assert attn.key.weight.whole is attn.query.weight.whole
        assert isinstance(attn.key.weight.whole, Quantized)
        assert type(one.transformer.head.weight) is torch.nn.Parameter
    assert attn.key.weight.dtype == torch.float32
    with choosing_weights("int8", ()):
        with pytest.raises(UserError, match="int8 is for sampling from a transformer on a CPU"):
            load_first_stage(folder, device="cpu")
        monkeypatch.setattr(load, "choose_device", lambda _: torch.device("cuda:0"))
        with pytest.raises(UserError, match="int8 is for CPUs, and this is cuda; add --device cpu"):
            load_transformer(folder, device="cuda")
    with pytest.raises(UserError, match="int8 is for transformers, and this model has none"):
        taming.load(tiny_run(tmp_path / "first", FIRST_STAGE), weights="int8")


def test_splits_of_data(tmp_path: Path) -> None:
    def scenes(length: int) -> dict[str, object]:
        return {"target": "tests.kit.datasets.Scenes", "params": {"length": length}}

    params: dict[str, object] = {"test": scenes(1), "train": scenes(2), "validation": scenes(3)}
    data = OmegaConf.create({"params": params})
    assert len(open_dataset(data)) == len(open_dataset(data, "validation")) == 3
    assert [len(open_dataset(data, split)) for split in ("train", "test")] == [2, 1]
    rest = OmegaConf.create({"params": {**params, "validation": None}})
    assert len(open_dataset(rest)) == 2
    with pytest.raises(UserError, match=r"no 'validation'; it has \['train', 'test'\]"):
        open_dataset(rest, "validation")
    run = find_run(tiny_run(tmp_path / "run", validation=scenes(3)))
    base = tmp_path / "base.yaml"
    base.write_text("data: {params: {batch_size: 9}}")
    changed = data_config(run, [base], ["data.params.validation.params.length=4"])
    assert changed.params.batch_size == 9 and len(open_dataset(changed)) == 4


def test_first_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a first stage; reconstruct with .*, or train"):
        load_transformer(tiny_run(tmp_path / "run", FIRST_STAGE))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here"):
        load_transformer(tmp_path / "nothing-here")


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(UserError, match="'gpu'"):
        choose_device("gpu")
    with pytest.raises(UserError, match="no device 'cuda:99'"):
        choose_device("cuda:99")


def test_precisions() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("fp32", cpu) == torch.float32
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="'fp16'"):
        choose_dtype("fp16", cpu)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data={target: main.DataModuleFromConfig, params: {validation: {target: %s}}}"],
        ["data.params={validation: {target: %s}}", "model.params.cond_drop=0.1"],
        ["data={params: {}}", "data.params.validation={target: %s}"],
        ["data.params.validation.target=%s"],
    ],
)
def test_data_of_overrides_alone(tmp_path: Path, overrides: list[str]) -> None:
    """Whatever sets anything below `data` counts, and nothing of the run's is mixed in."""
    target = "taming.data.coco.Examples"
    own = {"target": "tests.kit.datasets.Scenes", "params": {"length": 3}}
    run = find_run(tiny_run(tmp_path / "run", validation=own))
    data = data_config(run, (), [text.replace("%s", target) for text in overrides], True)
    assert data.params.validation == {"target": target}
    assert data_config(run).params.validation == own


@pytest.mark.parametrize("overrides", [[], ["model.params.cond_drop=0.1"], ["data=null"]])
def test_no_data_at_all(tmp_path: Path, overrides: list[str]) -> None:
    run = find_run(tiny_run(tmp_path / "run", validation={"target": "taming.data.coco.Examples"}))
    with pytest.raises(UserError, match="no 'data' section"):
        data_config(run, (), overrides, True)


@pytest.mark.parametrize("alone", [True, False])
def test_lists_that_another_config_leaves_open(tmp_path: Path, alone: bool) -> None:
    """They are the run's, as is a size that refers to the model."""
    params = {"test_images_list_file": "list.txt", "on_error": "skip"}
    dataset = {"target": "taming.data.custom.CustomTest", "params": params}
    run = find_run(tiny_run(tmp_path / "run", transformer_config(), validation=dataset))
    data = data_config(run, [ROOT / "configs" / "small" / "transformer.yaml"], (), alone)
    # Of a run that does not name `exif`, as it was before that was an option.
    assert data.params.validation.params == {"size": 8, **params, "exif": "ignore"}
