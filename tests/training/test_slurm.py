"""A job that SLURM queues again goes on with the run that it has begun."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl

from taming.checkpoint import read_checkpoint
from taming.training import slurm
from taming.training.cli import main as main_command
from tests.kit.training import small_vqgan, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
JOB = {
    **{f"SLURM_{name}": "0" for name in ("PROCID", "LOCALID", "NODEID")},
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "localhost",
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of job 77, in `tmp_path`; `scontrol` writes what it was asked into a file."""
    for name, value in {**JOB, "SLURM_JOB_ID": "77"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    program, asked = tmp_path / "bin" / "scontrol", tmp_path / "asked"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nls logs/*/checkpoints >> {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return asked


class Signal(pl.Callback):
    """SLURM's signal after the second step, after which the job is ended."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 4:  # of two optimizers
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if Path("asked").exists():
            raise KeyboardInterrupt


def test_the_same_words_go_on_with_the_run(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_vqgan(length=48)
    ends = {"callbacks": {"ends": {"target": f"{__name__}.Signal"}}}
    config["lightning"] = {**config.get("lightning", {}), **ends}
    words = ["--base", write_config(Path.cwd(), config), "-t", "--max_steps", "10"]
    words += ["--trust", "tests"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(words)
    [run] = Path("logs").glob("*_small")
    said = job.read_text().split()
    assert said[:2] == ["requeue", "77"] and "last.ckpt" in said  # it was there before
    first = read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    assert 0 < first < 10
    monkeypatch.setattr(Signal, "on_train_batch_start", lambda *_: None)
    job.unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    starts: list[int] = []
    monkeypatch.setattr(Signal, "on_train_start", lambda _, t, m: starts.append(t.global_step))
    main(words)
    assert list(Path("logs").glob("*_small")) == [run] and starts == [first]
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 10


def test_another_jobs_runs_and_names_are_left_alone(job: Path, tmp_path: Path) -> None:
    new = Path("logs/2026-02-02T00-00-00_a[b]_x")
    older, latest = (Path(f"logs/2026-01-0{day}T00-00-00_a[b]_x") for day in (1, 2))
    others = [Path("logs/2026-01-03T00-00-00_y"), Path("logs/2026-01-03T00-00-00_b_x")]
    for folder in (older, latest, *others):
        folder.mkdir(parents=True)
        slurm.note_job(folder)
    assert slurm.begun_before(new) is None  # the job's first start
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_RESTART_COUNT", "2")
        assert slurm.begun_before(new) == latest
        patch.setenv("SLURM_JOB_ID", "78")
        assert slurm.begun_before(new) is None
        patch.setenv("SLURM_ARRAY_JOB_ID", "70")
        patch.setenv("SLURM_ARRAY_TASK_ID", "3")
        assert slurm.job() == "70_3"
        patch.delenv("SLURM_ARRAY_JOB_ID")
        patch.delenv("SLURM_JOB_ID")
        slurm.note_job(tmp_path)
    assert not (tmp_path / "slurm_job.txt").exists()


def test_a_queue_that_does_not_answer_is_said(
    job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (job.parent / "bin" / "scontrol").write_text("#!/bin/sh\nexit 3\n")
    slurm.queue_again()
    monkeypatch.setenv("PATH", "")
    slurm.queue_again()
    assert [r.message.partition(":")[0] for r in caplog.records] == [
        "job 77 is not queued again"
    ] * 2
