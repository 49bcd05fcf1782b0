"""A run from elsewhere, modules that say so when they are imported, and the ways to load it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import taming
from scripts import sample_fast
from taming.errors import UserError
from taming.training.cli import main
from tests.kit.runs import tiny_run

train = main.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
sample = sample_fast.main.__wrapped__  # type: ignore[attr-defined]

OWN = """
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.vqgan import VQModel

class MyModel(VQModel): pass
class MyTransformer(Net2NetTransformer): pass
"""


def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a run, and modules that say so when they are imported; nothing is trusted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAMING_TRUST")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    data = {"target": "taming.data.digits.DigitsValidation", "params": {"size": 8}}
    tiny_run(tmp_path / "run", validation=data)
    (tmp_path / "ran_by.py").write_text("open('ran', 'w')\n")
    (tmp_path / "canary").mkdir()
    for name in ("__init__", "module"):
        (tmp_path / "canary" / f"{name}.py").write_text("open('ran', 'w')\n")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("canary", "own")]:
        del sys.modules[name]


def config_file() -> Path:
    (path,) = Path("run/configs").glob("*-project.yaml")
    return path


def change(place: str, value: Any) -> None:
    """Change the run's config, as only strangers do."""
    config = OmegaConf.load(config_file())
    OmegaConf.update(config, place, value, merge=False, force_add=True)
    OmegaConf.save(config, config_file())


def doors(train_too: bool = True) -> dict[str, Callable[[], Any]]:
    """Ways into a run."""
    ways: dict[str, Callable[[], Any]] = {
        "taming.load": lambda: taming.load("run"),
        "sample_fast.py": lambda: sample(["-r", "run", "-n", "1", "--device", "cpu"]),
        "main.py": lambda: train(["-r", "run"]),
    }
    return ways if train_too else dict(list(ways.items())[:2])


def refusals(ways: dict[str, Callable[[], Any]]) -> list[str]:
    """What each door says."""
    said = []
    for name, door in ways.items():
        with pytest.raises(UserError) as caught:
            door()
        said.append(str(caught.value))
        assert "\n" not in said[-1], name
        assert not Path("ran").exists(), name
    return said
