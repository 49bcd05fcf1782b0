"""What is refused, or switched off, when main.py starts, before anything is trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from taming.config import instantiate_from_config
from taming.config_keys import OWN_CALLBACKS
from taming.errors import UserError
from taming.models.vqgan import VQModel
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.training import cli
from taming.training.cli import main as main_command
from taming.training.run_folder import new_run
from taming.training.trainer import _callback_configs
from tests.kit.datasets import images
from tests.kit.models import (
    DEPTH,
    SEGMENTATION,
    VQGAN,
    build,
    cosine_config,
    ddconfig,
    first_stage_config,
    transformer_config,
)
from tests.kit.resuming import run_config
from tests.kit.training import fit, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
LOSS = "model.params.lossconfig.params"
CALLBACKS = "lightning.callbacks"
STOP = f"{CALLBACKS}.stop.target=pytorch_lightning.callbacks.EarlyStopping"
STOP_EARLY = (STOP, f"{CALLBACKS}.stop.params.monitor=val/rec_loss")


class Sizes(torch.utils.data.Dataset[dict[str, Any]]):
    """Images of two sizes."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": images(1, 3, 8 + 8 * (index == 2), 8)[0].numpy(), "name": str(index)}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, run_config("vqgan"), "vqgan.yaml")
    write_config(tmp_path, run_config("transformer"), "transformer.yaml")
    return tmp_path


NO_VALIDATION = "data.params.validation=null"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accumulate_grad_batches", "0"], "--accumulate_grad_batches is 0"),
        (["--precision", "64"], "--precision is 64; it is 32, bf16-mixed or 16-mixed"),
        (["--precision", "bf16-true"], "--precision is bf16-true"),
        (["--limit_val_batches", "-1"], "--limit_val_batches is -1; it must be from 0 on"),
        (["--max_steps", "-7"], "--max_steps is -7; it must be from -1 on"),
        (["lightning.trainer.max_steps=7", "--max_steps", "-7"], "--max_steps is -7"),
        (["--logger", "csv"], "--logger takes bool, not 'csv'"),
        (["lightning.trainer=0"], "lightning.trainer must have keys"),
        (["lightning.trainer.max_epochs=.nan"], "--max_epochs takes a whole number or null"),
        (["lightning.trainer.max_steps=2.5"], "--max_steps takes a whole number"),
        (["lightning.trainer.max_step=2"], "no such argument; did you mean 'max_steps'"),
        (["lightning.trainer.gpus=[a]"], "--gpus a: write '0,'"),
        ([f"{CALLBACKS}.own='???'"], r"add lightning.callbacks.own=\.\.\."),
        (["model.base_learning_rate=7"], "must be a number from 0 to 1; it is 7"),
        (["model.params=[1]"], r"model.params=\[1\] does not fit the configs"),
        (["model.params.n_embed="], "gives no value; write model.params.n_embed=null"),
        (["model.params.n_embed=${a.b}"], "model.params.n_embed: Interpolation key 'a.b'"),
        (["model.params.ckpt_path=a #b.ckpt"], "no run or checkpoint at a #b.ckpt"),
        (["-n", "a/b"], "-n/--name is a name, not a path: a/b"),
        (["--strategy", "ddp_spawn"], "--strategy is ddp_spawn; .* it is ddp or auto"),
        (["lightning.trainer.profiler.target=x"], "lightning.trainer.profiler is a mapping"),
        (["model.params.image_key=#x"], "the data has no '#x'"),
        (["model.params.monitor=val/rec_los"], "val/rec_los, which nothing logs; .*'val/rec_loss'"),
        (
            [STOP, f"{CALLBACKS}.stop.params.monitor=val/x", "data.params.validation=null"],
            "is validated",
        ),
        ([STOP, f"{CALLBACKS}.stop.params.monitor=val/los"], "monitor is val/los, which nothing"),
        (
            [*STOP_EARLY, f"{CALLBACKS}.stop.params.patience=x"],
            "stop.params.patience: a whole number",
        ),
        ([f"{CALLBACKS}.image_logger.params.max_images=0"], "image_logger.params.max_images is 0"),
        (["model.params.ddconfig.in_channels=1"], "in_channels of the model is 1, .*has 3 chan"),
        (["model.params.ddconfig.out_ch=1"], "ddconfig.out_ch is 1, but 'image' of the data has 3"),
        ([f"{LOSS}.disc_conditional=true"], "disc_conditional: .*VQModel gives its loss no cond"),
        (["-t", "data.params.train=null"], "data.params.train is missing: it names the dataset"),
        ([f"{CALLBACKS}.image_loger=null"], "did you mean 'lightning.callbacks.image_logger'"),
        ([f"{LOSS}.disc_in_channels=1"], "disc_in_channels is 1, but the images have 3"),
        ([f"{LOSS}.disc_num_layers=3"], "disc_num_layers: 3 needs images of at least 24 pixels"),
        (["data.params.train.params.size=9"], "9 x 9 pixels, which are no multiples of 2"),
        (["model.params.embed_dim=???"], r"leaves a value open: add model.params.embed_dim=\.\.\."),
        (["model.params.ddconfig={ch: '???'}"], r"add model.params.ddconfig.ch=\.\.\."),
        (["lightning.trainer.max_time=5"], "--max_time is 5; write '00:01:00:00'"),
        (["lightning.modelcheckpoint.params.dirpath=x"], "params.dirpath is x, .*: leave it out"),
        (["lightning.modelcheckpoint.params.dirpath=null"], "dirpath is None, but a run is one"),
        ([f"{CALLBACKS}.checkpoints.params.dirpath=x"], "callbacks.checkpoints.params.dirpath is"),
        *(
            ([f"{CALLBACKS}.setup_callback.params.{name}=x"], f"setup_callback.params.{name} is x")
            for name in ("logdir", "ckptdir", "cfgdir")
        ),
        (["--default_root_dir", "x"], "--default_root_dir is 'x': .* name it by -n, and .* by -p"),
        (["lightning.trainer.default_root_dir=x"], "--default_root_dir is 'x': a run's folder is"),
        (["--enable_checkpointing", "false"], "a run keeps last.ckpt, by which -r goes on"),
        (["--accelerator", "ddp"], "--accelerator is ddp; give --strategy ddp, and --gpus"),
        (["lightning.modelcheckpoint.params.filename=../x"], "filename leads out of logs/.*/chec"),
        (["lightning.modelcheckpoint.params.filename=/x/{step}"], "filename leads out of logs/"),
        (["--strategy", "dp"], "--strategy is dp; give --strategy ddp"),
        (["--barebones", "true"], "--barebones measures a Trainer"),
        (["lightning.trainer={max_steps: 1,2}"], "lightning.trainer.2: the Trainer has no such"),
        (["--gpus", "auto"], "--gpus auto: write '0,' .* or '-1' for all"),
        (
            ["lightning.trainer.weights_summary=top"],
            "weights_summary is no .* --enable_model_s",
        ),
    ],
)
def test_one_sentence_before_training(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["--base", "vqgan.yaml", *words])
    assert not Path("logs").exists()


MONITOR = "lightning.modelcheckpoint.params.monitor"
TABLE = "lightning.logger.target=pytorch_lightning.loggers.CSVLogger"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lightning.logger.params.save_dir=FILE/x"], "written to .*by lightning.logger.params"),
        (["lightning.logger.params.version=FILE/x"], "written to .*by lightning.logger.params"),
        ([TABLE, "lightning.logger.params.save_dir=FILE"], "written to .*by lightning.logger.par"),
        (["data.params.validation.params.length=0"], "data.params.validation has 0 items for 1 d"),
        (["data.params.test.params.length=0"], "data.params.test has 0 items for 1 devices"),
        (
            ["model.params.monitor=val/recloss", f"{MONITOR}=val/rec_loss"],
            "monitor is val/recloss, which nothing logs; did you mean 'val/rec_loss'",
        ),
        (
            ["model.params.monitor=val/x", f"{CALLBACKS}.checkpoints=null"],
            "monitor is val/x, which",
        ),
        (["model.params.monitor=val/x", "data.params.validation=null"], "monitor is val/x, which"),
    ],
)
def test_what_training_would_find_late_is_found_first(words: list[str], message: str) -> None:
    Path("file").touch()
    test = "data.params.test.target=tests.kit.resuming.Crops"
    words = [word.replace("FILE", str(Path("file").absolute())) for word in words]
    with pytest.raises(UserError, match=message):
        main(["--base", "vqgan.yaml", test, "data.params.test.params.length=2", "-t", *words])
    assert not list(Path().rglob("*.ckpt")) and not list(Path("logs").iterdir())


def test_a_test_set_that_is_not_used_may_be_empty() -> None:
    test = "data.params.test.target=tests.kit.resuming.Crops"
    words = ["--base", "vqgan.yaml", test, "data.params.test.params.length=0"]
    main([*words, "--no-test"])
    with pytest.raises(UserError, match="data.params.test has 0 items"):
        main(words)


@pytest.mark.parametrize(
    "package", ["loggers.WandbLogger", "loggers.CometLogger", "callbacks.RichProgressBar"]
)
def test_a_missing_package_is_named(package: str) -> None:
    if package.startswith("callbacks"):
        words = [f"{CALLBACKS}.x.target=pytorch_lightning.{package}"]
    else:
        words = [f"lightning.logger.target=pytorch_lightning.{package}"]
    with pytest.raises(UserError, match=f"{package} needs a package that is not installed"):
        main(["--base", "vqgan.yaml", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.params.transformer_config.params.block_size=10"], "block_size is 10, too small"),
        (["model.params.transformer_config.params.vocab_size=3"], "vocab_size is 3, too small"),
        (["model.params.cond_stage_config.params.n_classes=3"], None),
    ],
)
def test_sequences_are_measured_first(words: list[str], message: str | None) -> None:
    if message is None:
        main(["--base", "transformer.yaml", *words])
        return
    with pytest.raises(UserError, match=message):
        main(["--base", "transformer.yaml", *words])


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    config = run_config("vqgan")
    config.data.params.train = {"target": "tests.training.test_start.Sizes"}
    base = write_config(tmp_path, config)
    with pytest.raises(UserError, match=r"'image' of a batch have several shapes, \(8, 8, 3\)"):
        main(["--base", base])
    main(["--base", base, "data.params.batch_size=1"])


@pytest.mark.parametrize(
    "words",
    [
        ["--logger", "false"],
        ["--logger", "true"],
        ["--max_steps", "1e1"],
        [f"{CALLBACKS}.image_logger=null"],
        [f"{CALLBACKS}.image_logger.params.batch_frequency=0"],
        [f"{CALLBACKS}.learning_rate_logger=null"],
        [f"{CALLBACKS}.checkpoints=null"],
        ["model.params.monitor=val/codebook_usage"],
        ["lightning.trainer.default_root_dir=null"],
        ["--enable_checkpointing", "true"],
    ],
)
def test_what_means_something_is_taken(words: list[str]) -> None:
    main(["--base", "vqgan.yaml", *words])


def test_what_is_off_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    off = [f"{CALLBACKS}.{name}=null" for name in ("image_logger", "learning_rate_logger")]
    words = ["-t", "--no-test", "--max_steps", "1", "--logger", "false", "-n", "off"]
    main(["--base", "vqgan.yaml", *off, *words])
    (run,) = Path("logs").iterdir()
    assert not {"csv", "images", "tensorboard"} & {path.name for path in run.iterdir()}
    main(["-r", str(run), "-t", "--no-test", "--max_steps", "2", "data.params.num_workers=1"])
    lines = [record.message for record in caplog.records if "goes on" in record.message]
    assert lines == [f"{run} goes on with data.params.num_workers=1"]
    frequency = f"{CALLBACKS}.image_logger.params.batch_frequency=0"
    words = ["-t", "--no-test", "--max_epochs", "1", "--limit_train_batches", "2", "-n", "no"]
    main(["--base", "vqgan.yaml", frequency, *words])
    (run,) = Path("logs").glob("*_no")
    assert not (run / "images").exists() and list(run.glob("csv/*/metrics.csv"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_steps", "0"], "nothing was trained, as max_steps is 0; "),
        (["--limit_train_batches", "0"], "nothing was trained, as limit_train_batches is 0; "),
        (["--fast_dev_run", "True"], "fast_dev_run: tried 1 batch, and saved no checkpoint"),
    ],
)
def test_the_last_line_says_what_was_done(
    words: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    main(["--base", "vqgan.yaml", "-t", "--no-test", *words])
    assert caplog.records[-1].message.startswith(said)


def test_weights_of_the_loss_are_there_before_a_run_has_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(_: Any) -> None:
        raise UserError("no VGG16")

    monkeypatch.setattr(cli, "prepare_loss", prepare)
    main(["--base", "vqgan.yaml"])
    with pytest.raises(UserError, match="no VGG16"):
        main(["--base", "vqgan.yaml", "-t"])
    assert not Path("logs").exists()


def test_defaults_can_be_off() -> None:
    run = new_run("x", [])
    assert set(_callback_configs(OmegaConf.create({}), run)) == set(OWN_CALLBACKS)
    config = OmegaConf.create({"callbacks": {"image_logger": None, "own": {"target": "a.b"}}})
    assert isinstance(config, DictConfig)
    assert set(_callback_configs(config, run)) == {
        "checkpoints",
        "learning_rate_logger",
        "own",
        "setup_callback",
    }
    assert set(_callback_configs(config, run, logs=False)) == {
        "checkpoints",
        "own",
        "setup_callback",
    }


def test_all_configs_count_wherever_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    OmegaConf.save({"model": {"params": {"n_embed": 0}}}, folder / "c=d.yaml")
    with pytest.raises(UserError, match="n_embed is 0"):
        main(["-b", "vqgan.yaml", "-b", "a=b/c=d.yaml"])
    with pytest.raises(UserError, match="n_embed is -1"):
        main(["-b", "vqgan.yaml", "model.params.n_embed=-1", "-b", "vqgan.yaml"])
    with pytest.raises(UserError, match="there is no config file gone=.yaml"):
        main(["-b", "./gone=.yaml"])


def test_a_run_goes_on_from_within_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["--base", "vqgan.yaml", "-t", "--no-test", "--max_steps", "1", "-n", "r=1"])
    (run,) = (tmp_path / "logs").iterdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, name in ((run, "."), (run, "checkpoints/last.ckpt"), (run / "checkpoints", ".")):
        monkeypatch.chdir(folder)
        main(["-r", name])
    main(["-r", f"~/logs/{run.name}"])
    main([f"--resume=~/logs/{run.name}"])
    assert not (run / "logs").exists()


# ---------------------------------------------------------------------- what models log


TEMPERATURE = {"temperature_scheduler_config": cosine_config()}


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        (first_stage_config(), {"image": images(4)}),
        (first_stage_config(VQGAN + "GumbelVQ", **TEMPERATURE), {"image": images(4)}),
        (DEPTH, {"depth": images(4, channels=1)[..., 0]}),
        (SEGMENTATION, {"segmentation": (images(4, channels=5) > 0).float()}),
        (
            transformer_config(),
            {"image": images(4, 3, 8, 8), "class_label": torch.arange(4)},
        ),
    ],
    ids=["VQModel", "GumbelVQ", "depth", "segmentation", "transformer"],
)
def test_models_know_what_they_log(tmp_path: Path, config: Any, columns: dict[str, Tensor]) -> None:
    model = build(config)
    trainer = fit(model, columns, tmp_path, steps=2)
    logged = {name.removesuffix("_step").removesuffix("_epoch") for name in trainer.logged_metrics}
    assert set(model.logged_names()) >= logged and "val/loss" in logged | {"val/loss"}
    assert set(model.logged_names()) == set(trainer.callback_metrics)


class OwnLoss(VQLPIPSWithDiscriminator):
    """A loss of somebody else's, which may log more."""


class OwnModel(VQModel):
    """A model of somebody else's, which logs something else."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.log("train/own", 1.0)
        super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log("val/own", 2.0)


def test_what_others_log_is_known_after_the_first_batch() -> None:
    loss = {**first_stage_config()["params"]["lossconfig"], "target": f"{__name__}.OwnLoss"}
    assert build(first_stage_config(lossconfig=loss)).logged_names() is None
    words = ["--base", "vqgan.yaml", f"model.target={__name__}.OwnModel", "-t", "--no-test"]
    words += ["--max_steps", "2"]
    main([*words, "model.params.monitor=val/own"])
    main([*words, "model.params.monitor=train/own"])
    with pytest.raises(UserError, match="monitor is val/others, which nothing logs"):
        main([*words, "model.params.monitor=val/others", "-n", "refused"])
    (run,) = Path("logs").glob("*_refused")
    assert not list(run.glob("checkpoints/epoch*"))


# ---------------------------------------------------------------------- sizes


def test_attention_that_is_nowhere_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        instantiate_from_config(first_stage_config(ddconfig=ddconfig() | {"attn_resolutions": [7]}))
    (record,) = caplog.records
    assert record.getMessage() == (
        "attn_resolutions: no level has a resolution of 7; the levels have 16, 8"
    )
    caplog.clear()
    instantiate_from_config(first_stage_config(ddconfig=ddconfig() | {"attn_resolutions": [8]}))
    assert not caplog.records


def test_lpips_takes_one_or_three_channels() -> None:
    config = first_stage_config(channels=4)
    loss: nn.Module = build(config).loss
    assert isinstance(loss, VQLPIPSWithDiscriminator)
    loss.check_shape((1, 4, 16, 16))
    loss.perceptual_loss = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(UserError, match="LPIPS takes images of 1 or 3 channels, not 4"):
        loss.check_shape((1, 4, 16, 16))
