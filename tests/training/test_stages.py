"""Runs as the stages of a transformer: by path, without their configs being repeated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from scripts.sample_fast import main as sample_fast
from taming.checkpoint import load_run, read_checkpoint
from taming.config import plain
from taming.errors import UserError
from taming.training import run_folder
from taming.training.cli import main as main_command
from tests.kit.images import write_images
from tests.kit.models import GAN_LOSS, VQGAN, first_stage_config, unconditional_config
from tests.kit.training import small_vqgan, write_config, write_transformer
from tests.support import ROOT, write_run

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
TIME = "2021-04-03T19-39-50"
FIRST, SECOND = f"logs/{TIME}_first", f"logs/{TIME}_second"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, TIME)
    return tmp_path


def test_a_run_is_enough_to_train_over(tmp_path: Path) -> None:
    small = small_vqgan()
    small.model.params.ddconfig.resolution = 16
    main(["--base", write_config(tmp_path, small), "-t", "-n", "first", "--max_steps", "1"])
    base = write_transformer(tmp_path)
    stage = f"model.params.first_stage_config={FIRST}"
    main(["--base", base, "-t", "-n", "second", "--max_steps", "1", stage])
    [project] = Path(SECOND).glob("configs/*-project.yaml")
    written = OmegaConf.load(project).model.params.first_stage_config
    assert written.target == "taming.models.vqgan.VQModel" and written.params.n_embed == 16
    assert written.params.ckpt_path == f"{FIRST}/checkpoints/last.ckpt"
    first, second = (
        read_checkpoint(Path(run, "checkpoints", "last.ckpt"))["state_dict"]
        for run in (FIRST, SECOND)
    )
    for name, tensor in first.items():
        if not name.startswith("loss."):
            assert torch.equal(second[f"first_stage_model.{name}"], tensor), name

    other, key = write_run(Path("logs/other"), small.model), "model.params.first_stage_config"
    checkpoint = other / "checkpoints" / "last.ckpt"
    for change in (f"{key}={other}", f"model.params.ckpt_path={checkpoint}"):
        with pytest.raises(UserError, match=f"ckpt_path was .* and is now {checkpoint}: it cannot"):
            main(["-r", SECOND, "-t", "--max_steps", "2", change])
    shutil.move(FIRST, tmp_path / "elsewhere")
    sample_fast(["-r", SECOND, "-n", "1", "--classes", "3", "--device", "cpu"])
    assert len(list(Path(SECOND).glob("samples/*/1/3/000000.png"))) == 1
    main(["-r", SECOND, "-t", "--max_steps", "2", f"{key}={tmp_path}/elsewhere"])
    assert load_run(SECOND)[2] == 2


def test_a_stage_is_without_averages_and_loss_of_its_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in runs of versions that kept the averages in each of their checkpoints."""
    caplog.set_level("INFO")
    small = small_vqgan()
    small.model.params |= {"use_ema": True, "lossconfig": {**GAN_LOSS}}
    small.model.params.ddconfig.resolution = 16
    run = write_run(tmp_path / "logs" / "first", small.model)
    stage = f"model.params.first_stage_config={run}"
    main(["--base", write_transformer(tmp_path), "-t", "-n", "second", "--max_steps", "1", stage])
    assert "only its training needed" not in caplog.text and "anew" not in caplog.text
    last = Path(SECOND, "checkpoints", "last.ckpt")
    content = read_checkpoint(last)
    assert not [name for name in content["state_dict"] if "model_ema" in name]

    [project] = Path(SECOND).glob("configs/*-project.yaml")
    config = OmegaConf.load(project)
    assert "use_ema" not in config.model.params.first_stage_config.params
    config.model.params.first_stage_config.params.use_ema = True
    OmegaConf.save(config, project)
    average = {"first_stage_model.model_ema.encoderconv_inbias": torch.zeros(1)}
    torch.save({**content, "state_dict": {**content["state_dict"], **average}}, "former.ckpt")
    Path("former.ckpt").replace(last)  # which is mapped
    main(["-r", SECOND, "-t", "--max_steps", "2"])
    after = read_checkpoint(last)
    assert after["global_step"] == 2 and after["state_dict"].keys() == content["state_dict"].keys()


def test_the_condition_may_be_a_runs_as_well(tmp_path: Path) -> None:
    run = write_run(tmp_path / "logs" / "first", small_vqgan().model)
    stages = [f"model.params.{stage}_config={run}" for stage in ("first_stage", "cond_stage")]
    base = write_transformer(tmp_path, cond_stage_key="image")
    main(["--base", base, "-t", "-n", "second", "--max_steps", "1", *stages])
    state = read_checkpoint(Path(SECOND, "checkpoints", "last.ckpt"))["state_dict"]
    name = "quantize.embedding.weight"
    assert torch.equal(state[f"first_stage_model.{name}"], state[f"cond_stage_model.{name}"])
    assert torch.equal(
        state[f"first_stage_model.{name}"],
        read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"][name],
    )


@pytest.mark.parametrize("path", ["{run}", "{run}/checkpoints/last.ckpt"])
def test_a_checkpoint_without_a_target_is_a_runs(tmp_path: Path, path: str) -> None:
    """The published override, for a config that leaves the first stage open."""
    run = write_run(tmp_path / "logs" / "first", small_vqgan().model)
    base = write_transformer(tmp_path, first_stage_config="???")
    key = "model.params.first_stage_config.params"
    changes = [f"{key}.ckpt_path={path.format(run=run)}", f"{key}.image_key=picture"]
    main(["--base", base, "-t", "-n", "second", "--max_steps", "1", *changes])
    [project] = Path(SECOND).glob("configs/*-project.yaml")
    stage = OmegaConf.load(project).model.params.first_stage_config
    assert (stage.params.n_embed, stage.params.image_key) == (16, "picture")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "model.params.first_stage_config.params.ckpt_path is left to you: add "
         "model.params.first_stage_config=logs/<run>"),
        (["model.params.first_stage_config.params.ckpt_path=/path/to/coco_epoch117.ckpt"],
         "model.params.first_stage_config.params.ckpt_path: there is no run or checkpoint at "
         "/path/to/coco_epoch117.ckpt"),
        (["model.params.first_stage_config.params.ckpt_path=null", "model.params.ckpt_path=a.ckpt"],
         "model.params.ckpt_path: there is no run or checkpoint at a.ckpt"),
        (["model.params.first_stage_config.params.ckpt_path=null", "model.params.ckpt_path=???"],
         "override 'model.params.ckpt_path=???' leaves a value open: add model.params.ckpt_path="),
        (["model.params.first_stage_config=null", "data.params.timeout=???"],
         "override 'data.params.timeout=???' leaves a value open: add data.params.timeout=..."),
    ],
)  # fmt: skip
def test_what_is_left_open_is_asked_for_before_data_are_read(
    tmp_path: Path, changes: list[str], message: str
) -> None:
    base, unreadable = write_transformer(tmp_path), "data.params.train.params.length=-1"
    with pytest.raises(UserError) as caught:
        main(["--base", base, unreadable, *changes])
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["first_stage_config", "cond_stage_config"])
@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (f"logs/{TIME}_frist", f"there is no run or checkpoint at logs/{TIME}_frist; did you mean "
         f"'{FIRST}'?"),
        (SECOND, "is a transformer, which cannot be a stage of another; take its first stage out "),
        ("logs/empty", "logs/empty holds no checkpoints/last.ckpt"),
        ("logs/lone.ckpt", "and params that it was trained with, and params.ckpt_path in it"),
        ("transformer.yaml", "transformer.yaml is a config, not a run or checkpoint"),
    ],
)  # fmt: skip
def test_what_is_no_stage_is_refused(tmp_path: Path, key: str, stage: str, message: str) -> None:
    write_run(Path(FIRST), first_stage_config())
    write_run(Path(SECOND), unconditional_config())
    Path("logs/empty/checkpoints").mkdir(parents=True)
    write_run(Path("logs/ema"), first_stage_config(VQGAN + "EMAVQ"))
    shutil.copy(Path("logs/ema", "checkpoints", "last.ckpt"), "logs/lone.ckpt")
    base = write_transformer(tmp_path)
    with pytest.raises(UserError) as caught:
        main(["--base", base, "-t", "True", f"model.params.{key}={stage}"])
    assert str(caught.value).startswith(f"model.params.{key}: ") and message in str(caught.value)


def trained_on(tmp_path: Path) -> str:
    """A first stage's run with lists of its own, of images of 16 pixels."""
    files = write_images(tmp_path / "photographs", 6, 16, 16)
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(files))
    config = small_vqgan()
    train = {"training_images_list_file": "train.txt", "size": 16, "on_error": "skip"}
    test = {"test_images_list_file": "test.txt", "size": 16, "exif": "ignore"}
    config.data.params.train = {"target": "taming.data.custom.CustomTrain", "params": train}
    config.data.params.validation = {"target": "taming.data.custom.CustomTest", "params": test}
    config.model.params.ddconfig.resolution = 16
    main(["--base", write_config(tmp_path, config), "-t", "-n", "first", "--max_steps", "1"])
    return f"model.params.first_stage_config={FIRST}"


@pytest.mark.parametrize("config", ["small/transformer", "custom_transformer"])
def test_a_run_is_enough_for_the_data_too(
    tmp_path: Path, config: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = trained_on(tmp_path)
    small = [f"model.params.transformer_config.params.{key}" for key in ("n_layer=1", "n_embd=24")]
    flags = ["-t", "-n", "second", "--max_steps", "1", "data.params.batch_size=4", *small]
    if config == "custom_transformer":  # which says the size itself
        flags += [f"data.params.{split}.params.size=16" for split in ("train", "validation")]
    main(["--base", str(ROOT / "configs" / f"{config}.yaml"), *flags, stage])
    [project] = Path(SECOND).glob("configs/*-project.yaml")
    data = plain(OmegaConf.load(project))["data"]["params"]
    taken = {"training_images_list_file": "train.txt", "on_error": "skip", "exif": "apply"}
    assert taken.items() <= data["train"]["params"].items()
    assert data["validation"]["params"] == {
        "test_images_list_file": "test.txt",
        "size": 16,
        "exif": "ignore",
    }
    model, _, _ = load_run(SECOND)
    assert model.transformer.config.vocab_size == model.n_codes == 16
    [line] = [record.message for record in caplog.records if "as in" in record.message]
    assert line.startswith(f"as in {FIRST}: ") and "training_images_list_file=train.txt" in line


def test_a_config_without_data_takes_the_runs(tmp_path: Path) -> None:
    stage = trained_on(tmp_path)
    base = write_transformer(tmp_path, cond_stage_config="__is_unconditional__")
    main(["--base", base, "-t", "-n", "second", "--max_steps", "1", stage, "data=null"])
    [project] = Path(SECOND).glob("configs/*-project.yaml")
    [first] = Path(FIRST).glob("configs/*-project.yaml")
    assert OmegaConf.load(project).data == OmegaConf.load(first).data


def test_lists_that_somebody_chose_are_not_replaced(tmp_path: Path) -> None:
    stage = trained_on(tmp_path)
    base = ["--base", str(ROOT / "configs" / "small" / "transformer.yaml"), stage]
    with pytest.raises(UserError, match="nowhere.txt"):
        main([*base, "data.params.train.params.training_images_list_file=nowhere.txt"])
    other = "data.params.train.target=taming.data.custom.CustomTest"
    with pytest.raises(UserError, match=r"train.params.training_images_list_file is left to you"):
        main([*base, other])
