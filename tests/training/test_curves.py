"""Curves of what runs have logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from scripts import plot_curves as script
from scripts.plot_curves import main
from taming.training import curves
from taming.training.logged_rows import read_values

FIRST = """epoch,step,train/disc_factor,train/loss,val/loss
0,4,0.0,3.0,
0,9,0.0,1.0,
0,9,,,2.5
"""
SECOND = "epoch,step,train/disc_factor,train/loss\n1,14,1.0,0.5\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two starts, whose discriminator begins to count in the second."""
    for name, table in (("first", FIRST), ("second", SECOND)):
        (tmp_path / "run/csv" / name).mkdir(parents=True)
        (tmp_path / "run/csv" / name / "metrics.csv").write_text(table)
    return tmp_path / "run"


def test_values_of_all_starts_are_read_by_name(run: Path) -> None:
    assert read_values(run / "csv") == {
        "train/disc_factor": [(4, 0.0), (9, 0.0), (14, 1.0)],
        "train/loss": [(4, 3.0), (9, 1.0), (14, 0.5)],
        "val/loss": [(9, 2.5)],
    }


def test_the_mean_does_not_lag() -> None:
    line = [float(number) for number in range(30)]
    assert curves._smooth(line) == line
    assert curves._smooth([0.0, 3.0, 0.0, 0.0]) == [0, 1, 1, 0]


def test_a_panel_shows_training_its_mean_validation_and_marks(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def keep(figure: Any, path: Path) -> Path:
        drawn.append(figure)
        return path

    monkeypatch.setattr(curves, "save_figure", keep)
    curves.plot_curves({"run": run}, run / "curves.png", level=4.0)
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert set(panels) == {"disc_factor", "loss"}
    lines = [(list(one.get_xdata()), list(one.get_ydata())) for one in panels["loss"].lines]
    assert lines == [
        ([4, 9, 14], [3.0, 1.0, 0.5]),
        ([4, 9, 14], [3.0, 1.0, 0.5]),  # the mean, which begins anew with the discriminator
        ([9], [2.5]),
        ([14, 14], [0, 1]),  # from bottom to top: the discriminator
        ([0, 1], [4.0, 4.0]),  # from left to right: the level
    ]


def test_the_script_draws_runs_into_the_first_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["-r", str(run), str(run / "checkpoints")])
    assert capsys.readouterr().out == f"{run}/curves.png\n"
    with Image.open(run / "curves.png") as picture:
        assert picture.width > picture.height


def test_runs_of_one_name_are_all_drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Path]] = []
    monkeypatch.setattr(script, "plot_curves", lambda runs, *_: given.append(runs))
    other, third = run.parent / "second" / "run", run.parent / "third"
    for folder in (other, third):
        folder.mkdir(parents=True)
    main(["-r", *map(str, (run, other, third, run / "checkpoints"))])
    assert given == [{str(run): run, str(other): other, "third": third}]


@pytest.mark.parametrize("logs", [False, True])
def test_a_run_without_a_logger_is_told_of(
    tmp_path: Path, logs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").mkdir()
    for name, logger in (("2020", not logs), ("2021", logs)):
        config = {"lightning": {"trainer": {"logger": logger}}}
        OmegaConf.save(config, tmp_path / "configs" / f"{name}-lightning.yaml")
    with pytest.raises(SystemExit):
        main(["-r", str(tmp_path)])
    said = capsys.readouterr().err
    assert ("trained with --logger false" in said) != logs and ("is it a run?" in said) == logs


def test_a_folder_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["-r", str(tmp_path)])
    assert refused.value.code == 2
