"""Runs are found by folder, file and age, or refused in a sentence that names the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taming.checkpoint import Run, distinct_name, find_run, save_atomic
from taming.errors import UserError
from taming.published_models import RECORD


def make_run(folder: Path, checkpoint: str = "last.ckpt") -> Path:
    save_atomic({"state_dict": {"weight": torch.ones(2)}}, folder / "checkpoints" / checkpoint)
    (folder / "configs").mkdir()
    for time in ("2021-01-01", "2022-01-01"):
        for kind in ("lightning", "project"):
            (folder / "configs" / f"{time}-{kind}.yaml").write_text("{}")
    return folder


def test_a_run_is_found_by_folder_or_checkpoint(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    last = folder / "checkpoints" / "last.ckpt"
    save_atomic({"state_dict": {"weight": torch.zeros(2)}}, folder / "last.ckpt")  # a copy
    for path in (folder, last):
        run = find_run(path)
        assert (run.folder, run.checkpoint) == (folder, last)
        assert [config.name for config in run.configs[2:]] == [
            "2021-01-01-project.yaml",
            "2022-01-01-project.yaml",
        ]


def test_a_run_that_a_mac_has_copied(tmp_path: Path) -> None:
    """It adds a file to each one, on disks that do not know its attributes."""
    folder = make_run(tmp_path / "run", "epoch=1.ckpt")
    (folder / "x.pt").touch()
    found = find_run(folder)
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    assert find_run(folder) == found
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pth")
    (tmp_path / "._model.pth").write_bytes(b"\0\5\x16\7")
    assert find_run(tmp_path).checkpoint == tmp_path / "model.pth"


def test_runs_are_found_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    monkeypatch.chdir(folder / "checkpoints")
    for path in (".", "..", "last.ckpt"):
        assert find_run(path).folder.resolve() == folder
        assert find_run(path).folder.name == "run"


def test_a_damaged_beginning_does_not_hide_that_it_is_ours(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    save_atomic({"state_dict": {}, "global_step": 8}, folder / "checkpoints" / "epoch=1.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(b"\x80" + last.read_bytes()[1:])  # as files of torch before 1.6 begin
    assert find_run(folder).checkpoint.name == "epoch=1.ckpt"


def test_the_name_of_a_published_model_is_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, folder = "cin_transformer", Path("logs/2021-04-03T19-39-50_cin_transformer")
    missing = f"no run or checkpoint at {name}; fetch it with .*download_models.py {name}"
    with pytest.raises(UserError, match=missing):
        find_run(name)
    with pytest.raises(UserError, match="at cin_transformerr; did you mean 'cin_transformer'"):
        find_run("cin_transformerr")
    make_run(folder)
    assert find_run(name) == find_run(Path(name)) == find_run(folder)
    (folder / RECORD).write_text('{"complete": false, "files": {}}')  # a download that broke off
    with pytest.raises(UserError, match=missing):
        find_run(name)
    entry = '{"complete": true, "files": {"x": %s}}'
    for damaged in ("{}", "[]", "3", "{", '{"complete": 1, "files": {}}', entry % 3, entry % "{}"):
        (folder / RECORD).write_text(damaged)
        with pytest.raises(UserError, match=f"{RECORD} is damaged; delete it to have"):
            find_run(name)
    (folder / RECORD).write_text('{"complete": true, "files": {}}')
    assert find_run(name).folder == folder
    assert find_run(make_run(tmp_path / name)).folder == tmp_path / name  # the user's comes first
    assert find_run(name).folder == Path(name)


def test_configs_may_have_either_ending(tmp_path: Path) -> None:
    save_atomic({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "model.ckpt")
    (tmp_path / "config.yml").write_text("{}")
    assert [path.name for path in find_run(tmp_path).configs] == ["config.yml"]


def test_downloads_of_published_models_are_runs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    save_atomic({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "model.ckpt")
    run = find_run(tmp_path)
    assert (run.checkpoint.name, [path.name for path in run.configs]) == (
        "model.ckpt",
        ["config.yaml"],
    )


def test_runs_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run or checkpoint at .*gone"):
        find_run(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="stopped before its first save"):
        find_run(tmp_path / "empty")
    for name in ("a.pt", "b.pt"):
        torch.save({"weight": torch.ones(2)}, tmp_path / "empty" / name)
    with pytest.raises(UserError, match="holds no checkpoints/last.ckpt"):
        find_run(tmp_path / "empty")
    (tmp_path / "empty/b.pt").unlink()
    assert find_run(tmp_path / "empty").checkpoint.name == "a.pt"
    with pytest.raises(UserError, match="own.yaml is a config, not a run or checkpoint"):
        (tmp_path / "own.yaml").write_text("model: {}")
        find_run(tmp_path / "own.yaml")


def test_without_a_last_checkpoint_the_newest_whole_one_is_used(tmp_path: Path) -> None:
    """As a run that is killed in its first save leaves it, between two names of one file."""
    folder = make_run(tmp_path / "run")
    for step, name in ((8, "epoch=000001.ckpt"), (4, "epoch=000000.ckpt"), (12, "torn.ckpt")):
        save_atomic({"state_dict": {}, "global_step": step}, folder / "checkpoints" / name)
    torn = folder / "checkpoints" / "torn.ckpt"
    torn.write_bytes(torn.read_bytes()[:-100])
    assert find_run(folder).checkpoint.name == "epoch=000001.ckpt"


def test_a_missing_run_names_the_nearest(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "2021-01-01T00-00-00_birds")
    for name in ("birbs", "2021-01-01T00-00-00_birbs", "bird/checkpoints/last.ckpt"):
        with pytest.raises(UserError, match=f"at {tmp_path / name}; did you mean '{folder}'"):
            find_run(tmp_path / name)
    with pytest.raises(UserError, match="xyz$"):
        find_run(tmp_path / "xyz")
    owls = make_run(tmp_path / "2021-01-01T00:00:00_owls")
    with pytest.raises(UserError, match=f"did you mean '{owls}'"):
        find_run(tmp_path / "owlz")


def configs_of(path: Path) -> list[str]:
    return [config.relative_to(path.parent).as_posix() for config in find_run(path).configs]


def test_a_lone_checkpoint_takes_no_config_of_another(tmp_path: Path) -> None:
    model = "model: {target: taming.models.vqgan.VQModel}"
    for name in ("a.ckpt", "b.ckpt"):
        save_atomic({"state_dict": {"weight": torch.ones(2)}}, tmp_path / name)
    environment = "name: taming\ndependencies: [python=3.11]\nmodel: ???"
    (tmp_path / "environment.yaml").write_text(environment)
    (tmp_path / "site.yml").write_text("theme: !!python/name:x.y")
    assert configs_of(tmp_path / "a.ckpt") == []
    (tmp_path / "config.json").write_text("{}")  # of a hub's repository
    assert configs_of(tmp_path / "a.ckpt") == ["config.json"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "x.yaml").write_text(model)
    assert configs_of(tmp_path / "a.ckpt") == ["x.yaml"]  # the only one of a model
    (tmp_path / "configs").mkdir()
    for name in ("cin_transformer", "custom_vqgan"):  # as in a clone
        (tmp_path / "configs" / f"{name}.yaml").write_text(model)
    assert configs_of(tmp_path / "a.ckpt") == ["x.yaml"]
    (tmp_path / "b.yaml").write_text(model)
    assert configs_of(tmp_path / "a.ckpt") == []
    (tmp_path / "a.yml").write_text("model: {}")
    assert configs_of(tmp_path / "a.ckpt") == ["a.yml"]
    assert configs_of(tmp_path / "b.ckpt") == ["b.yaml"]
    for name in ("a.yml", "b.yaml"):
        (tmp_path / name).unlink()
    (tmp_path / "configs/model.yaml").write_text(model)  # as in downloads
    assert configs_of(tmp_path / "a.ckpt") == ["configs/model.yaml"]


def test_configs_of_the_clone_are_nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_atomic({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "a.ckpt")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/own.yaml").write_text("model: {target: a.B}")
    assert configs_of(tmp_path / "a.ckpt") == ["configs/own.yaml"]
    monkeypatch.setattr("taming.checkpoint.own_configs.shipped", tmp_path.joinpath)
    assert configs_of(tmp_path / "a.ckpt") == []


def test_names_tell_runs_apart() -> None:
    configs, taken = (Path("config.yaml"),), list[str]()
    for folder, file, own in (
        ("a", "last.ckpt", configs),
        ("b/a", "epoch=1.ckpt", configs),
        ("c/a", "epoch=1.ckpt", configs),
        ("d/a", "epoch=1.ckpt", configs),
        ("a", "lone.pt", ()),
    ):
        taken.append(distinct_name(Run(Path(folder), Path(folder, file), own), taken))
    assert taken == ["a", "a epoch=1", "a epoch=1 (2)", "a epoch=1 (3)", "lone"]
