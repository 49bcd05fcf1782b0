"""Configs of strangers build nothing but what they may name, and execute nothing at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import taming
from scripts import sample_fast
from taming.config import instantiate_from_config, load_config
from taming.errors import UserError
from taming.training.cli import main
from taming.trust import in_program, is_listed, own_trust, remember, stranger, trusted
from tests.kit.models import FIRST_STAGE, transformer_config
from tests.kit.runs import tiny_run
from tests.kit.training import small_vqgan, write_config

train = main.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
sample = sample_fast.main.__wrapped__  # type: ignore[attr-defined]

OWN = """
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.vqgan import VQModel

class MyModel(VQModel): pass
class MyTransformer(Net2NetTransformer): pass
"""
# What a stranger might have executed, with the text `touch ran` for an argument if there is one.
ATTACKS: dict[str, dict[str, Any]] = {
    "os.system": {"command": "touch ran"},
    "posix.system": {"command": "touch ran"},
    "subprocess.Popen": {"args": ["touch", "ran"]},
    "runpy.run_path": {"path_name": "ran_by.py"},
    "builtins.eval": {"source": "1"},
    "builtins.exec": {"source": "open('ran', 'w')"},
    "canary.Model": {},
    "canary.module.Model": {},
    "torch.save": {"obj": {}, "f": "ran"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "x", "source": "local"},
    "torch.utils.cpp_extension.load_inline": {"name": "ran", "cpp_sources": "int a;"},
    "torch.multiprocessing.Process": {},
    "torch.nn.functional.os.system": {"command": "touch ran"},
    "torch.package.PackageImporter": {"file_or_buffer": "x"},
    "torchvision.datasets.LSUN": {"root": "."},
    "pytorch_lightning.loggers.WandbLogger": {"save_dir": "ran"},
    "pytorch_lightning.Trainer": {"default_root_dir": "ran"},
    "taming.util.download": {"url": "http://127.0.0.1:9/", "local_path": "ran"},
    "taming.atomic_files.write_text": {"path": "ran", "text": ""},
    "taming.util.os.mkdir": {"path": "ran"},
    "taming.models.vqgan.VQModel.init_from_ckpt": {"self": 1, "path": "x"},
    "taming.models.vqgan.VQModel.__init__": {},
    "taming.errors.UserError": {},
    "taming.config.instantiate_from_config": {"config": {}},
    "main.get_obj_from_str": {"string": "os.system"},
    "scripts.sample_fast.main": {},
}
LAZY = {"model.params.scheduler_config", "data.params.test", "lightning.callbacks.mine"}
PLACES = (
    "model",
    "model.params.first_stage_config",
    "model.params.cond_stage_config",
    "model.params.transformer_config",
    "model.params.permuter_config",
    "data",
    "data.params.validation",
    "lightning.logger",
    *sorted(LAZY),
)


@pytest.fixture(autouse=True)
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
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


@pytest.mark.parametrize("target", ATTACKS)
@pytest.mark.parametrize("place", ["model", "model.params.first_stage_config"])
def test_nothing_is_executed_or_imported(target: str, place: str) -> None:
    change(place, {"target": target, "params": ATTACKS[target]})
    imported = set(sys.modules)
    for text in refusals(doors()):
        assert place in text and target.rpartition(".")[0] in text
        assert "--trust" in text or "there is no module" in text
    new = {name.partition(".")[0] for name in set(sys.modules) - imported}
    assert not new & {"canary", "runpy", "torch.package", "wandb"}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_checked(place: str) -> None:
    """Also those of which objects are made late, or never."""
    change(place, {"target": "canary.Model"})
    (text,) = refusals({"main.py": doors()["main.py"]})
    assert text.startswith(f"{place}.target in run/configs/")
    assert "add --trust canary, or set TAMING_TRUST=canary" in text
    if place.startswith("model"):
        refusals(doors())


def test_runs_without_a_checkpoint_are_checked_too() -> None:
    """They start over."""
    Path("run/checkpoints/last.ckpt").unlink()
    change("model", {"target": "canary.Model"})
    (text,) = refusals({"main.py": doors()["main.py"]})
    assert "canary.Model is not trusted" in text


def test_sections_that_are_not_used_do_not_matter() -> None:
    change("data.params.validation", {"target": "canary.Data"})
    change("lightning.logger", {"target": "canary.Logger"})
    taming.load("run")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("model", "taming.data.custom.CustomTrain"),
        ("model.params.transformer_config", "taming.data.options.ImageOptions"),
        ("model.params.permuter_config", "pytorch_lightning.callbacks.EarlyStopping"),
    ],
)
def test_classes_of_another_kind_are_refused(place: str, target: str) -> None:
    change(place, {"target": target, "params": {}})
    for text in refusals(doors()):
        assert f"{place}: {target} is no class of the kind that is expected here" in text


def test_data_and_callbacks_have_their_kinds_too(tmp_path: Path) -> None:
    for place, kind in (
        ("data", "data module"),
        ("data.params.train", "dataset"),
        ("lightning.logger", "logger"),
        ("lightning.callbacks.mine", "callback"),
        ("model.params.lossconfig", "module"),
        ("model.params.quantizer_config", "module"),
    ):
        config = small_vqgan()
        target = {"target": "taming.data.options.ImageOptions"}
        OmegaConf.update(config, "data.params.train.target", "taming.data.digits.DigitsTrain")
        OmegaConf.update(config, "data.params.validation.target", "taming.data.digits.DigitsTrain")
        for split in ("train", "validation"):
            OmegaConf.update(config, f"data.params.{split}.params", {"size": 16}, merge=False)
        OmegaConf.update(config, place, target, merge=False, force_add=True)
        with pytest.raises(UserError, match=f"{place}: .*expected here, a {kind};"):
            train(["--base", write_config(tmp_path, config)])


def test_augmentations_may_be_named_and_functions_beside_them_not() -> None:
    for judged in (own_trust(), stranger()):
        assert judged.allows("albumentations.HorizontalFlip")
    assert not stranger().allows("albumentations.load")
    assert not stranger().allows("albumentations.core.serialization.from_dict")


def test_what_ends_in_target_and_what_lies_in_lists_is_checked_too() -> None:
    before = config_file().read_text()
    change("data.params.validation.params.category_mapping_target", "canary.names")
    (text,) = refusals({"main.py": doors()["main.py"]})
    assert "params.category_mapping_target in run" in text and "canary.names is not trusted" in text
    config_file().write_text(before)
    timer = {"target": "pytorch_lightning.callbacks.Timer"}
    change("lightning.callbacks.mine", timer | {"params": {"x": [1, {"target": "canary.Model"}]}})
    (text,) = refusals({"main.py": doors()["main.py"]})
    assert text.startswith("lightning.callbacks.mine.params.x.1.target in run")


def test_functions_of_torchs_modules_are_no_classes() -> None:
    for name in ("torch.nn.Linear", "torch.nn.modules.linear.Linear"):
        assert stranger().allows(name)
    for name in ("torch.nn.functional.relu", "torch.nn.init.zeros_", "torch.nn.utils.x.Y"):
        assert not stranger().allows(name) and own_trust().allows(name)


def test_harmless_classes_of_other_packages_may_be_named() -> None:
    change("model.params.permuter_config", {"target": "torch.nn.Identity"})
    taming.load("run")


@pytest.mark.parametrize(
    "text",
    ["${oc.env:SECRET}", "x${oc.env:SECRET,}", "${oc.decode:a}", "${mine:1}", "${${a}:${b}}"],
)
def test_resolvers_are_off(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    calls: list[Any] = []
    OmegaConf.register_new_resolver("mine", lambda *args: calls.append(args), replace=True)
    change("model.params.cond_stage_key", text)
    for refusal in refusals(doors()):
        assert refusal.startswith("model.params.cond_stage_key in run/configs/")
        assert "calls a function" in refusal and "hunter2" not in refusal
    OmegaConf.clear_resolver("mine")
    assert not calls


def test_references_to_other_entries_are_not() -> None:
    change("data.params.key", "class_label")
    change("model.params.cond_stage_key", "${data.params.key}")
    assert taming.load("run").cond_stage_key == "class_label"


def test_references_bring_no_targets() -> None:
    change("data.params.name", "canary.Model")
    change("model.target", "${data.params.name}")
    for text in refusals(doors()):
        assert "model.target" in text and "canary.Model is not trusted" in text


def test_references_to_sections_that_are_not_used_bring_no_targets() -> None:
    change("data.params.node", {"target": "canary.Model"})
    change("model.params.cond_stage_config", "${data.params.node}")
    for text in refusals(doors()):
        assert "cond_stage_config.target" in text or "data.params.node.target" in text
        assert "canary.Model is not trusted" in text
    Path("own.yaml").write_text("model: {base_learning_rate: 1.0}\n")
    refusals({"taming.load": lambda: taming.load("run", base=["own.yaml"])})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("lightning.modelcheckpoint.params.dirpath", "elsewhere"),
        ("lightning.trainer.default_root_dir", "."),
        ("lightning.callbacks.image_logger.params.x", "../ran"),
        ("lightning.logger.params.name", "/ran"),
        ("lightning.logger.params.version", "\\ran"),
    ],
)
def test_strangers_do_not_say_where_files_are_written(place: str, value: str) -> None:
    change(place, value)
    (text,) = refusals({"main.py": doors()["main.py"]})
    assert text.startswith(f"{place} in run/configs/") and "may not say where" in text


def test_a_change_of_ones_own_takes_the_place_of_a_strangers() -> None:
    change("model.params.cond_stage_config", {"target": "canary.Model"})
    own = {"model": transformer_config()}
    Path("own.yaml").write_text(yaml.safe_dump(own))
    taming.load("run", base=["own.yaml"])
    assert not Path("ran").exists()


# ---------------------------------------------------------------------- what the user trusts


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


# ---------------------------------------------------------------------- files that grow


def test_yaml_that_grows() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    for text, words in (
        ("model:\n  " + "\n  ".join(lines), "aliases that stand for more than"),
        ("model: &a [*a]", "nested too deeply"),
        ("model: " + "[" * 5000 + "]" * 5000, "nested too deeply|maximum nesting"),
        ("model: {a: '${model}'}", "Interpolation to parent"),
        ("model: {a: '${.b}', b: '${.a}', target: '${.a}'}", "refers to itself|Recursive"),
        ("".join(f"data.a{i}: ${{data.b}}${{data.b}}\n" for i in range(30)), "put together"),
    ):
        config_file().write_text(text)
        with pytest.raises(UserError, match=words):
            taming.load("run")


def test_the_users_own_configs_may_say_where_to_write(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    trusted.set(())
    for name in ("dirpath", "path", "save_dir"):
        callback = {"target": "pytorch_lightning.callbacks.Own", "params": {name: "elsewhere"}}
        path.write_text(json.dumps({"lightning": {"callbacks": {"x": callback}}}))
        assert load_config([path]).lightning.callbacks.x.params[name] == "elsewhere"
        with pytest.raises(UserError, match="may not say where files are written"):
            load_config([], stored=[path])


def test_names_lie_in_packages_not_beside_them() -> None:
    assert is_listed("torch.nn.Linear", ["torch"]) and is_listed("own.Model", ["own.Model"])
    assert not is_listed("torch_of_others.Model", ["torch"])
    assert not is_listed("own.Models", ["own.Model"]) and not is_listed("own", ["own.Model"])
