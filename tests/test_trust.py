"""Configs of strangers build nothing but what they may name, and execute nothing at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import taming
from taming.errors import UserError
from taming.trust import is_listed, own_trust, stranger
from tests.kit.models import transformer_config
from tests.kit.strangers import change, config_file, doors, downloaded, refusals, train
from tests.kit.training import small_vqgan, write_config


@pytest.fixture(autouse=True)
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from downloaded(tmp_path, monkeypatch)


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


def test_names_lie_in_packages_not_beside_them() -> None:
    assert is_listed("torch.nn.Linear", ["torch"]) and is_listed("own.Model", ["own.Model"])
    assert not is_listed("torch_of_others.Model", ["torch"])
    assert not is_listed("own.Models", ["own.Model"]) and not is_listed("own", ["own.Model"])
