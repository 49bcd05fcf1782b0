"""What the user trusts, and configs of the user's own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import taming
from scripts import sample_fast
from taming.config import instantiate_from_config, load_config
from taming.errors import UserError
from taming.trust import in_program, remember, trusted
from tests.kit.models import FIRST_STAGE
from tests.kit.strangers import OWN, change, doors, downloaded, refusals, sample, train
from tests.kit.training import small_vqgan, write_config


@pytest.fixture(autouse=True)
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from downloaded(tmp_path, monkeypatch)


def test_trusted_packages_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own.py").write_text(OWN)
    change("model.target", "own.MyTransformer")
    for text in refusals(doors()):
        assert "own.MyTransformer is not trusted" in text
    assert "own" not in sys.modules
    assert type(taming.load("run", trust=["own"])).__name__ == "MyTransformer"
    with pytest.raises(UserError, match="is not trusted"):
        taming.load("run")
    sample(["-r", "run", "--trust", "other,own", "-n", "1", "--device", "cpu"])
    train(["-r", "run", "--trust", "own"])
    with pytest.raises(UserError, match="is not trusted"):
        sample(["-r", "run"])
    monkeypatch.setenv("TAMING_TRUST", "other, own.MyTransformer")
    taming.load("run")


def test_trust_in_a_package_is_no_trust_in_what_it_imports() -> None:
    code = (
        "from subprocess import Popen, run\nfrom os import system\ndef make(): open('ran', 'w')\n"
    )
    Path("own.py").write_text(code)
    for name in ("Popen", "run", "system", "make", "os.system", "missing"):
        params = {"args": ["touch", "ran"]} if name == "Popen" else {}
        change("model", {"target": f"own.{name}", "params": params})
        with pytest.raises(UserError, match=f"own.{name}|no 'missing'|no module 'own.os'"):
            taming.load("run", trust=["own"])
        assert not Path("ran").exists()
    change("model", {"target": "own.make"})
    with pytest.raises(AttributeError):  # it is called, as it is trusted by name, and no model
        taming.load("run", trust=["own.make"])
    assert Path("ran").exists()


def test_trust_ends_with_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(OWN)
    change("model.target", "own.MyTransformer")
    sample_fast.main(["-r", "run", "--trust", "own", "-n", "1", "--device", "cpu"])
    assert not in_program()
    with pytest.raises(UserError, match="is not trusted"):
        taming.load("run")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        sample_fast.main(["-r", "run", "-n", "1", "--device", "cpu"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_trust_takes() -> None:
    for name in ("../x", "a b", "a-b", "."):
        with pytest.raises(UserError, match="--trust takes the names of packages"):
            sample(["-r", "run", f"--trust={name}"])


def write_own(tmp_path: Path) -> str:
    Path("own.py").write_text(
        OWN + "from torch.utils.data import Dataset\nimport numpy as np\n\n"
        "class Data(Dataset):\n    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return {'image': np.zeros((16, 16, 3), np.float32)}\n"
    )
    config = small_vqgan()
    config.model.target = "own.MyModel"
    for split in ("train", "validation"):
        config.data.params[split] = {"target": "own.Data", "params": {}}
    config.data.params.num_workers = 0
    config.model.params.image_key = "${oc.env:KEY,image}"
    config.lightning.trainer.max_steps = 1
    return write_config(tmp_path, config)


def test_ones_own_classes_need_no_flag_on_ones_own_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(["--base", write_own(tmp_path), "-t", "-n", "mine"])
    (run,) = Path("logs").glob("*_mine")
    remembered = json.loads(Path("state/taming/trusted_runs.json").read_text())
    assert len(remembered) == 2 and not list(Path("state/taming").glob("*.partial"))
    for name in [name for name in sys.modules if name == "own"]:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    (tmp_path / "elsewhere/own").mkdir(parents=True)  # which is no module
    sys.path.insert(0, str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert type(taming.load(tmp_path / run)).__name__ == "MyModel"
    trusted.set(())
    assert "data" in load_config([], stored=sorted((tmp_path / run).glob("configs/*")))
    # The same run on another machine, and one whose config has been changed since.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    with pytest.raises(UserError, match="calls a function"):
        taming.load(tmp_path / run)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (project,) = (tmp_path / run).glob("configs/*-project.yaml")
    project.write_text(project.read_text().replace("${oc.env:KEY,image}", "image"))
    with pytest.raises(UserError, match="own.MyModel is not trusted"):
        taming.load(tmp_path / run)


def test_configs_of_ones_own_name_modules_here_and_no_others(tmp_path: Path) -> None:
    base = write_own(tmp_path)
    for target in ("os.system", "yaml.safe_load", "omegaconf.OmegaConf"):
        with pytest.raises(UserError, match=f"model.target in .*{target} is not trusted") as caught:
            train(["--base", base, f"model.target={target}"])
        assert f"add --trust {target.partition('.')[0]}" in str(caught.value)
    train(["--base", base, "model.target=own.MyModel"])


def test_a_module_here_does_not_vouch_for_an_installed_one(tmp_path: Path) -> None:
    Path("yaml.py").write_text("")
    with pytest.raises(UserError, match="yaml.safe_load is not trusted"):
        train(["--base", write_own(tmp_path), "model.target=yaml.safe_load"])


def test_calls_in_python_are_trusted() -> None:
    Path("own.py").write_text(OWN)
    model = instantiate_from_config({**FIRST_STAGE, "target": "own.MyModel"}, expects="module")
    assert type(model).__name__ == "MyModel"
    assert instantiate_from_config({"target": "fractions.Fraction"}) == 0


def test_many_runs_are_remembered() -> None:
    for name in "abc":
        Path(name).write_text(name)
        remember([Path(name)])
    assert len(json.loads(Path("state/taming/trusted_runs.json").read_text())) == 3


def test_a_state_folder_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("state/taming").mkdir(parents=True)
    Path("state/taming/trusted_runs.json").write_text("[{")
    taming.load("run")
    Path("blocked").write_text("")
    os.environ["XDG_STATE_HOME"] = str(tmp_path / "blocked")
    train(["--base", write_own(tmp_path), "-t", "-n", "mine"])
    assert "the run's configs are not remembered as trusted ones" in caplog.text


def test_the_users_own_configs_may_say_where_to_write(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    trusted.set(())
    for name in ("dirpath", "path", "save_dir"):
        callback = {"target": "pytorch_lightning.callbacks.Own", "params": {name: "elsewhere"}}
        path.write_text(json.dumps({"lightning": {"callbacks": {"x": callback}}}))
        assert load_config([path]).lightning.callbacks.x.params[name] == "elsewhere"
        with pytest.raises(UserError, match="may not say where files are written"):
            load_config([], stored=[path])
