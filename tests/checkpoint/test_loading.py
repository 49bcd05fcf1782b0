"""Configs of runs, and runs as stages of models, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from taming.checkpoint import find_run
from taming.checkpoint.loading import (
    check_complete,
    expand_stages,
    load_run,
    run_as_stage,
    run_config,
)
from taming.config import load_config, plain
from taming.errors import UserError
from tests.kit.models import first_stage_config, unconditional_config
from tests.support import write_run

STAGE = "model.params.first_stage_config"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(Path("logs/first"), first_stage_config(ckpt_path="start.ckpt"), {})


def config(**params: Any) -> Any:
    return OmegaConf.create({"model": {"target": "taming.x.Y", "params": params}})


def test_a_run_as_a_stage_begins_at_its_own_checkpoint(run: Path) -> None:
    for path in (run, run / "checkpoints/last.ckpt"):
        stage = run_as_stage(path, STAGE)
        assert stage["target"] == first_stage_config()["target"]
        assert stage["params"]["ckpt_path"] == "logs/first/checkpoints/last.ckpt"
    other = write_run(Path("logs/second"), unconditional_config(), {})
    with pytest.raises(UserError, match=f"^{STAGE}: logs/second is a transformer"):
        run_as_stage(other, STAGE)


def test_a_stage_that_is_a_path_can_be_changed(run: Path) -> None:
    """By an override after it, and by one of a later YAML."""
    Path("base.yaml").write_text(OmegaConf.to_yaml(config(first_stage_config=first_stage_config())))
    Path("later.yaml").write_text(
        OmegaConf.to_yaml(config(first_stage_config={"params": {"embed_dim": 9}}))
    )
    place = "model.params.first_stage_config"
    Path("path.yaml").write_text(OmegaConf.to_yaml(config(first_stage_config=str(run))))
    for whole in (
        load_config(["base.yaml"], [f"{place}={run}", f"{place}.params.embed_dim=9"]),
        load_config(["base.yaml", "path.yaml", "later.yaml"]),
    ):
        assert set(whole.model.params.first_stage_config.params) == {"ckpt_path", "embed_dim"}
        expand_stages(whole)
        params = whole.model.params.first_stage_config.params
        assert params.embed_dim == 9 and params.ckpt_path.endswith("first/checkpoints/last.ckpt")
    named = ["cond_stage_config=__is_unconditional__", "cond_stage_config.params.x=1"]
    merged = load_config(["base.yaml"], [f"model.params.{one}" for one in named])
    assert merged.model.params.cond_stage_config == {"params": {"x": 1}}


def test_stages_are_written_out(run: Path) -> None:
    changes = {"params": {"ckpt_path": str(run), "embed_dim": 9}}
    whole = config(
        first_stage_config=changes, cond_stage_config="__is_unconditional__", other=str(run)
    )
    expand_stages(whole)
    params = whole.model.params
    assert params.first_stage_config.target == first_stage_config()["target"]
    assert params.first_stage_config.params.embed_dim == 9
    assert params.first_stage_config.params.n_embed == 12
    assert params.first_stage_config.params.ckpt_path.endswith("first/checkpoints/last.ckpt")
    assert (params.cond_stage_config, params.other) == ("__is_unconditional__", str(run))
    own = {"target": "own.Model", "params": {"ckpt_path": str(run)}}
    whole = config(first_stage_config=own)
    expand_stages(whole)
    assert whole == config(first_stage_config=own)


def test_what_weights_start_from_has_to_be_there(run: Path) -> None:
    def stage(target: str, path: str) -> dict[str, Any]:
        return {"target": target, "params": {"ckpt_path": path}}

    check_complete(config(ckpt_path=str(run), first_stage_config=stage("own.Model", "gone")))
    for wrong, place in (
        (config(ckpt_path="gone"), "model"),
        (config(first_stage_config=stage("taming.x.Y", "gone")), STAGE),
    ):
        with pytest.raises(UserError, match=rf"^{place}.params.ckpt_path: there is no run .* gone"):
            check_complete(wrong)
    with pytest.raises(
        UserError, match=f"^{STAGE}.params.ckpt_path is left to you: add {STAGE}=lo"
    ):
        check_complete(config(first_stage_config=stage("taming.x.Y", "???")))


def test_a_misspelt_name_beside_what_is_open_is_named() -> None:
    """It is why the other one is open."""
    open_config = config(first_stage_config="???", cond_stage_config="???", first_stage_confg="run")
    open_config.model.target = "taming.models.cond_transformer.Net2NetTransformer"
    found = r"^model.params.*no parameter 'first_stage_confg'; did you mean 'first_stage_config'"
    with pytest.raises(UserError, match=found):
        check_complete(open_config)
    stage = {"target": "taming.models.vqgan.VQModel", "params": {"n_embd": 3, "ckpt_path": "???"}}
    with pytest.raises(UserError, match=rf"^{STAGE}.params.*no parameter 'n_embd'; did you mean"):
        check_complete(config(first_stage_config=stage))


def test_all_that_is_left_open_is_asked_for_at_once() -> None:
    """The stages first, whose runs know more of it, then the data, in their order."""
    open_stage = {"target": "taming.x.Y", "params": {"ckpt_path": "???"}}
    both = config(cond_stage_config=open_stage, first_stage_config=open_stage)
    data = {"train": {"params": {"b": "???"}}, "validation": {"params": {"a": "???"}}}
    with_data = OmegaConf.merge(both, {"data": {"params": data}})
    with pytest.raises(UserError) as caught:
        check_complete(with_data)
    cond = STAGE.replace("first", "cond")
    assert str(caught.value) == (
        f"{STAGE}.params.ckpt_path, {cond}.params.ckpt_path, data.params.train.params.b and "
        f"data.params.validation.params.a are left to you: add {STAGE}=logs/<run> "
        f"{cond}=logs/<run>, the runs that they were trained in, and data.params.train.params.b=..."
        " data.params.validation.params.a=..., unless the data are those of that run"
    )
    with pytest.raises(UserError, match=r"^data.params.train.params.b is left to you: add data"):
        plain(with_data.data.params.train)


def test_the_step_of_a_run(tmp_path: Path) -> None:
    _, run, step = load_run(write_run(tmp_path / "run", first_stage_config(lossconfig=None)))
    assert step == 5 and run.model is not None and run.model["params"]["n_embed"] == 12


def test_defaults_of_before_are_those_of_runs_alone(run: Path) -> None:
    params = {"size": 8, "training_images_list_file": "x.txt"}
    train = {"target": "taming.data.custom.CustomTrain", "params": params}
    whole = {"model": first_stage_config(), "data": {"params": {"train": train}}}
    Path("configs").mkdir()
    OmegaConf.save(OmegaConf.create(whole), "configs/own.yaml")
    changed = run_config(find_run(run), ["configs/own.yaml"])
    assert changed.data.params.train.params.exif == "ignore"
    lone = Path("logs/lone.ckpt")
    (run / "checkpoints/last.ckpt").rename(lone)
    assert "exif" not in run_config(find_run(lone), ["configs/own.yaml"]).data.params.train.params


@pytest.mark.parametrize("params", ["x", "{a: 1}", [1, 2]])
def test_parameters_of_a_stage_that_are_no_mapping_are_left_to_its_schema(params: Any) -> None:
    stage = {"params": params}
    config = OmegaConf.create({"model": {"params": {"cond_stage_config": stage}}})
    expand_stages(config)
    assert config.model.params.cond_stage_config == stage
