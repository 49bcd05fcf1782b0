"""A run that is stopped anywhere and goes on ends bit for bit as one that was not."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from taming.checkpoint import read_checkpoint, save_atomic
from taming.errors import UserError
from taming.lr_scheduler import LambdaWarmUpCosineScheduler
from taming.training import run_folder
from taming.training.cli import main as main_command
from tests.kit.comparison import differences, logged_values
from tests.kit.launch import Launcher
from tests.kit.processes import TWO_DEVICES, two_train
from tests.kit.resuming import (
    MODELS,
    MOMENTS,
    RUN,
    SCHEDULE,
    TIME,
    VARIABLE,
    Moment,
    moments,
    run_config,
    seen,
)
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


@pytest.fixture(autouse=True)
def a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2022-01-01T00-00-00")


@pytest.fixture
def whole(request: Any, uninterrupted: Callable[[str], Path]) -> Path:
    """logs/ with the uninterrupted run of a case, `whole`, and copies of it at moments."""
    return uninterrupted(request.param)


def train(folder: Path, case: str, *arguments: str, **data: Any) -> Path:
    """Start a case; the run stands where that of `whole` stood."""
    config = run_config(case)
    config.data.params.update(data)
    base = write_config(folder, config)
    main(["--base", base, "-t", "-n", "run", "--no-test", *arguments])
    return Path(RUN)


def go_on(*arguments: str, run: str = RUN) -> Path:
    main(["-r", run, "-t", "True", "--no-test", "True", *arguments])
    return Path(run)


def cases() -> list[Any]:
    """Some moments for one model, and one for each of most others, are not slow."""
    quick: dict[str, tuple[str, ...]] = {"two_level": ()}
    quick["vqgan"] = ("after_a_signal", "in_validation", "before_the_save_of_an_epoch")
    pairs = [(model, name) for model in MODELS for _, _, name in MOMENTS]
    often = [(model, one) for model in MODELS for one in quick.get(model, ["in_the_second_epoch"])]
    marks = [() if pair in often else pytest.mark.slow for pair in pairs]
    return [pytest.param(*pair, marks=mark) for pair, mark in zip(pairs, marks, strict=True)]


@pytest.mark.parametrize(("whole", "copy"), cases(), indirect=["whole"])
def test_a_killed_run_ends_as_if_it_had_not_been(whole: Path, copy: str) -> None:
    run = whole.parent / RUN  # where it was killed
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole / copy, run)
    go_on(run=str(run))
    assert differences(whole / "whole", run) == []


# Training saves before it ends if what has happened so far is whole. What an exception has
# interrupted is done once more, in the second epoch of six batches.
EXCEPTIONS = {
    ("vqgan", "on_train_batch_start", 9): 8,
    ("vqgan", "on_before_optimizer_step", 9): 6,  # half a step cannot be gone on with
    ("vqgan", "on_train_batch_end", 9): 6,  # nor can images of a batch be made later
    ("vqgan", "on_validation_batch_start", 12): 12,
    ("vqgan", "on_validation_end", 12): 12,
    ("vqgan", "on_train_epoch_end", 12): 12,
    ("gumbel", "on_validation_end", 9): 9,
    ("transformer", "on_train_batch_start", 9): 2,  # gradients of two batches are lost
    ("transformer", "on_train_batch_start", 11): 3,
}
OFTEN = ("on_before_optimizer_step", "on_train_batch_end", "on_validation_end")


@pytest.mark.parametrize(
    ("whole", "moment", "steps"),
    [
        pytest.param(
            *(case, (hook, batch, "raise"), steps),
            marks=() if hook in OFTEN or batch == 11 else pytest.mark.slow,
        )
        for (case, hook, batch), steps in EXCEPTIONS.items()
    ],
    indirect=["whole"],
    ids=str,
)
def test_a_run_goes_on_after_an_exception(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: Moment, steps: int
) -> None:
    monkeypatch.setenv(*next(iter(moments(moment).items())))
    monkeypatch.setenv(run_folder._TIME_VARIABLE, TIME)
    case = whole.parent.name.rstrip("0123456789")
    with pytest.raises(RuntimeError, match="as the test wanted"):
        train(tmp_path, case)
    monkeypatch.delenv(VARIABLE)
    assert read_checkpoint(Path(RUN, "checkpoints", "last.ckpt"))["global_step"] == steps
    assert differences(whole / "whole", go_on()) == []


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
@pytest.mark.parametrize(
    ("option", "saved"),
    # By minutes there is a step without a save where the one before is not yet written.
    [("last_every_n_minutes=1e-9", range(1, 6)), ("last_every_n_steps=4", [4])],
)
def test_a_run_goes_on_from_checkpoints_by_minutes_and_steps(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, saved: Sequence[int]
) -> None:
    """It ends within its sixth step, of which nothing is saved."""
    moment = ("on_before_optimizer_step", 6, "raise")
    monkeypatch.setenv(*next(iter(moments(moment).items())))
    monkeypatch.setenv(run_folder._TIME_VARIABLE, TIME)
    with pytest.raises(RuntimeError, match="as the test wanted"):
        train(tmp_path, "vqgan", "True", f"lightning.modelcheckpoint.params.{option}")
    monkeypatch.delenv(VARIABLE)
    assert read_checkpoint(Path(RUN, "checkpoints", "last.ckpt"))["global_step"] in saved
    assert differences(whole / "whole", go_on()) == []


@pytest.mark.parametrize(
    "whole", ["vqgan", pytest.param("transformer", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize("limit", ["--max_epochs 2", "--max_steps 5", "--max_steps 6"])
@pytest.mark.parametrize(
    "further", ["--max_steps -1", pytest.param("--max_steps 18", marks=pytest.mark.slow)]
)
def test_a_finished_run_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, further: str
) -> None:
    """With its next epoch, or in the middle of one."""
    monkeypatch.setenv(run_folder._TIME_VARIABLE, TIME)
    case = whole.parent.name.rstrip("0123456789")
    train(tmp_path, case, *limit.split())
    run = go_on("--max_epochs", "3", *further.split())
    assert differences(whole / "whole", run) == []
    assert seen(run) == seen(whole / "whole")


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
def test_checkpoints_without_a_position_go_on(whole: Path, tmp_path: Path) -> None:
    """Of earlier versions: then Lightning's counters say where, and the steps which rows stay."""
    for copy in ("after_the_save_of_an_epoch", "after_another_signal"):
        run = tmp_path / copy
        shutil.copytree(whole / copy, run)
        checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
        del checkpoint["position"]
        save_atomic(checkpoint, run / "checkpoints" / "last.ckpt")
        go_on(run=str(run))
        last = Path("checkpoints", "last.ckpt")
        one, two = (read_checkpoint(folder / last) for folder in (whole / "whole", run))
        for name, value in one["state_dict"].items():
            assert torch.equal(value, two["state_dict"][name]), name
        assert logged_values(run) == logged_values(whole / "whole")


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
def test_rows_that_are_cut_are_kept_beside(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole / "after_another_signal", run)
    [table] = run.glob("csv/*/metrics.csv")
    before = list(csv.DictReader(table.open()))
    with table.open("a") as file:
        file.write("0.5,1")  # a kill has cut this line
    go_on(run=str(run))
    after = list(csv.DictReader(table.open()))
    [cut] = run.glob("csv/*/cut_*.csv")
    assert after + list(csv.DictReader(cut.open())) == before
    assert [int(row["step"]) for row in after][-1] == 7  # the learning rate of the eighth step
    assert len(list(run.glob("csv/*/metrics.csv"))) == 2


# ---------------------------------------------------------------------- what may change


def stopped(whole: Path, run: Path) -> Path:
    """A run of 8 batches of 2; two batches of its second epoch are behind."""
    shutil.copytree(whole / "after_another_signal", run)
    for path in run.glob("seen_*.txt"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    return run


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_another_batch_size_sees_every_item_once(
    whole: Path, tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(whole, tmp_path / "run")
    go_on(f"data.params.batch_size={size}", run=str(run))
    items = {f"crops/{number}.png" for number in range(12)}
    assert {epoch: sorted(names) for epoch, names in seen(run).items()} == {
        epoch: sorted(items) for epoch in range(3)
    }
    line = f"data.params.batch_size was 2 and is now {size}: 4 items of epoch 1 have been trained"
    assert caplog.text.count(line) == 1
    steps = 8 + -(-8 // size) + -(-12 // size)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
def test_a_changed_batch_size_is_resumed_exactly(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are counted on, not the batches of either size."""
    run = stopped(whole, tmp_path / "run")
    # Two batches of 2 of the epoch, and two of 1, count as 6 of its 12.
    monkeypatch.setenv(*next(iter(moments(("on_train_batch_start", 19, "raise")).items())))
    with pytest.raises(RuntimeError):
        go_on("data.params.batch_size=1", run=str(run))
    monkeypatch.delenv(VARIABLE)
    go_on("data.params.batch_size=4", run=str(run))
    assert len(seen(run)[1]) == 13 and len(set(seen(run)[1])) == 12  # one was fetched twice
    steps = 6 + 2 + 2 + 2 + 3
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps


@pytest.mark.parametrize("whole", ["vqgan", "ema"], indirect=True)
def test_the_learning_rate_of_now_applies(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a schedule, and without one; it is the one that is printed."""
    run = stopped(whole, tmp_path / "run")
    go_on("model.base_learning_rate=1e-3", run=str(run))
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")
    accumulate, factor = (4, 1.0) if "ema" in str(whole) else (1, 0.1)
    assert f"learning rate {2e-3 * accumulate:.2e} = {accumulate} (accumulate" in caplog.text
    for optimizer in state["optimizer_states"]:
        assert optimizer["param_groups"][0]["lr"] == pytest.approx(2e-3 * accumulate * factor)


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
def test_the_schedule_of_now_applies(whole: Path, tmp_path: Path) -> None:
    run = stopped(whole, tmp_path / "run")
    go_on("model.params.scheduler_config.params.lr_min=0.5", run=str(run))
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert state["optimizer_states"][1]["param_groups"][0]["lr"] == pytest.approx(5e-4)


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
def test_without_its_schedule_the_rate_is_the_printed_one(whole: Path, tmp_path: Path) -> None:
    run = stopped(whole, tmp_path / "run")
    go_on("model.params.scheduler_config=null", run=str(run))
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert [one["param_groups"][0]["lr"] for one in state["optimizer_states"]] == [1e-3, 1e-3]


@pytest.mark.parametrize("whole", ["transformer"], indirect=True)
def test_what_shapes_do_not_tell_cannot_change_either(whole: Path, tmp_path: Path) -> None:
    run = stopped(whole, tmp_path / "run")
    with pytest.raises(UserError, match="n_head was 2 and is now 4: it cannot change"):
        go_on("model.params.transformer_config.params.n_head=4", run=str(run))


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
def test_a_damaged_table_does_not_keep_a_run_from_going_on(whole: Path, tmp_path: Path) -> None:
    """A power cut may lose its end, or leave zeros there; checkpoints are whole."""
    damages = (b"", b"\0" * 300, b"\xff\xfe,\n\xff\n")
    for number, end in enumerate(damages):
        run = stopped(whole, tmp_path / str(number))
        (table,) = run.glob("csv/*/metrics.csv")
        content = table.read_bytes()
        table.write_bytes(content[: len(content) // 3] + end)
        left = differences(whole / "whole", go_on(run=str(run)))
        assert all(line.startswith("table:") for line in left)


def test_a_schedule_that_is_new_starts_at_the_step_of_the_run(tmp_path: Path) -> None:
    train(tmp_path, "ema", "--max_steps", "3")
    config = OmegaConf.create({"model": {"params": {"scheduler_config": SCHEDULE}}})
    go_on("--base", write_config(tmp_path, config, "more.yaml"), "--max_steps", "4", run=own_run())
    state = read_checkpoint(Path(own_run(), "checkpoints", "last.ckpt"))
    expected = LambdaWarmUpCosineScheduler(**SCHEDULE["params"])(4) * 4e-3
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(expected)


def own_run() -> str:
    return "logs/2022-01-01T00-00-00_run"


def test_flags_of_the_run_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, "vqgan", "--scale_lr", "false", "--seed", "5", "--max_steps", "1")
    caplog.clear()
    go_on("--max_steps", "2", run=own_run())
    assert "learning rate 5.00e-04 (base_learning_rate, not scaled)" in caplog.text
    assert "Seed set to 5" in caplog.text
    with pytest.raises(UserError, match="--seed 6: the seed of a run cannot change, .* has 5"):
        go_on("--max_steps", "3", "--seed", "6", run=own_run())


# ---------------------------------------------------------------------- two processes


def test_two_processes_go_on_as_one_run(launcher: Launcher, tmp_path: Path) -> None:
    """On two devices as if it had not been stopped; on one with what neither has seen."""
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
    base = write_config(tmp_path, run_config("vqgan"))
    flags = ["-t", "--no-test", *TWO_DEVICES]
    start = ["--base", base, "-n", "run", "--accumulate_grad_batches", "2", *flags]
    now = {run_folder._TIME_VARIABLE: "2022-01-01T00-00-00"}
    assert two_train(launcher, folders[0], start, **now).code == 0
    failing = moments(("on_train_batch_start", 5, "raise"))
    assert two_train(launcher, folders[1], start, **failing, **now).code == 2
    run = Path(own_run())
    shutil.copytree(folders[1], tmp_path / "one")
    assert two_train(launcher, folders[1], ["-r", str(run), *flags], **now).code == 0
    assert differences(folders[0] / run, folders[1] / run) == []
    one = tmp_path / "one" / run
    for path in one.glob("seen_*.txt"):  # the window of the fourth and fifth is not complete
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    go_on("--accelerator", "cpu", "--devices", "1", run=str(one))
    assert all(len(names) == len(set(names)) == 12 for names in seen(one).values())
