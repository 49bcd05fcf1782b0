"""Configs: merging, overrides, and one-sentence errors that name the key and the nearest name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from taming.config import (
    did_you_mean,
    get_obj_from_str,
    instantiate_from_config,
    load_config,
    plain,
    without_checkpoint_paths,
)
from taming.errors import UserError
from taming.trust import trusting


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_files_merge_left_to_right_then_overrides(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "model: {target: x, params: {a: 1, b: 2}}")
    second = write(tmp_path / "b.yaml", "model: {params: {b: 3}}\ndata: {target: y}")
    config = load_config([first, second], ["model.params.a=7", "lightning.trainer.max_steps=2"])
    assert OmegaConf.to_container(config) == {
        "model": {"target": "x", "params": {"a": 7, "b": 3}},
        "data": {"target": "y"},
        "lightning": {"trainer": {"max_steps": 2}},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle: {}", ["modle", "did you mean 'model'"]),
        ("model: [1, 2", ["not valid YAML", "line 1"]),
        ("- just\n- a list", ["must hold keys"]),
    ],
)
def test_bad_yaml_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config([path])
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_missing_file_and_bad_override(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config file .*gone.yaml"):
        load_config([tmp_path / "gone.yaml"])
    for text in ("max_steps", "=3", "-x=3"):
        with pytest.raises(UserError, match=f"'{text}' is not an override"):
            load_config([], [text])


def test_folders_are_no_configs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path} is a folder, not a config file"):
        load_config([tmp_path])


def test_configs_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "own.yaml", "model: {params: {a: 1}}")
    assert load_config(["~/own.yaml"]).model.params.a == 1


NUMBERS = {"0512": 330, "-010": -8, "0b11": 3, "1:30.5": 90.5, "2024_11_28": 20241128}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_what_they_say(text: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 0512 as 330."""
    assert load_config([], [f"model.params.a={text}"]).model.params.a == text
    for value in (text, f"[3, {text}]", f"{{b: {text} }}"):
        path = write(tmp_path / "a.yaml", f"model:\n  params:\n    a: {value}\n")
        takes = re.escape(f"YAML takes {text} for the number {NUMBERS[text]}; write that, or put")
        with pytest.raises(UserError, match=f"a.yaml: {takes}"):
            load_config([path])
        if value != text:
            with pytest.raises(UserError, match=f"^override 'model.params.a=.*': {takes}"):
                load_config([], [f"model.params.a={value}"])
    said = "[1_000, 0, -0, 0.05, 10_000_000, 1e4, 0x10, a_0512, '0512']"
    numbers = [1000, 0, 0, 0.05, 10_000_000, 1e4, 16, "a_0512", "0512"]
    path = write(tmp_path / "a.yaml", f"model: {{params: {{a: {said}}}}}")
    assert (
        load_config([path]).model.params.a
        == load_config([], [f"model.params.a={said}"]).model.params.a
        == numbers
    )


def test_times_are_no_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 1:30 as 90."""
    key = "lightning.trainer.max_time"
    assert load_config([], [f"{key}=1:30"]).lightning.trainer.max_time == "1:30"
    for value, text in (("'1:30'", "1:30"), ("00:01:30:00", "00:01:30:00"), ("90 # 1:30\n  ", 90)):
        path = write(tmp_path / "time.yaml", f"lightning: {{trainer: {{max_time: {value}}}}}")
        assert load_config([path]).lightning.trainer.max_time == text
    for value in ("1:30", "[1:30]", "{a: -1:30:00}"):
        path = write(tmp_path / "time.yaml", f"lightning:\n  trainer:\n    max_time: {value}\n")
        with pytest.raises(
            UserError, match=r"time.yaml: YAML takes -?1:30\S* for the number -?\d+"
        ):
            load_config([path])
        if value != "1:30":
            with pytest.raises(
                UserError, match=r"override 'a=.*': YAML takes -?1:30\S* for the num"
            ):
                load_config([], [f"a={value}"])


def test_number_signs_in_overrides_are_no_comments() -> None:
    texts = ["a # b", '"a # b"', "'a # b'"]
    config = load_config([], [f"model.params.p{n}={text}" for n, text in enumerate(texts)])
    assert list(config.model.params.values()) == ["a # b"] * 3


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("taming.models.vqgan.VQModle", "did you mean 'VQModel'"),
        ("taming.models.vqgn.VQModel", "did you mean 'taming.models.vqgan'"),
        ("main.DataModuleFromCfg", "did you mean 'DataModuleFromConfig'"),
        ("VQModel", "not a dotted path"),
        ("taming.modules.vqvae.lfq.BSQ", "it is in taming.modules.vqvae.bsq$"),
        ("taming.modules.vqvae.lfq.Other", "known are LFQ, bits_of$"),
    ],
)
def test_unknown_target_names_key_and_nearest(target: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        instantiate_from_config({"target": target}, key="model")
    assert str(caught.value).startswith("model: ")


def test_a_target_that_needs_a_missing_package_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "needs_absent.py", "import absent_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="needs the package 'absent_package'"):
        get_obj_from_str("needs_absent.Thing")


def test_parameters_are_checked_where_they_stand() -> None:
    node = {"target": "taming.modules.util.Labelator", "params": {"n_class": 3}}
    with pytest.raises(UserError) as caught:
        instantiate_from_config(node, key="model")
    assert "model.params: " in str(caught.value)
    assert "no parameter 'n_class'; did you mean 'n_classes'?" in str(caught.value)
    with pytest.raises(UserError, match="needs the parameter 'n_classes'"):
        instantiate_from_config({"target": "taming.modules.util.Labelator"})
    with pytest.raises(UserError, match="unknown key 'param'; did you mean 'params'"):
        instantiate_from_config({"target": "taming.modules.util.Labelator", "param": {}})


class Strict:
    def __init__(self, text: str) -> None:
        raise UserError(text)


@pytest.mark.parametrize("text", ["it is wrong", "model.params.text is wrong"])
def test_the_place_is_said_once(text: str) -> None:
    with pytest.raises(UserError) as caught:
        instantiate_from_config(
            {"target": "tests.test_config.Strict", "params": {"text": text}}, "model"
        )
    assert str(caught.value) == (text if "." in text else f"model.params: {text}")


def test_nested_errors_carry_the_whole_path() -> None:
    stage = {"target": "taming.models.vqgan.VQModel", "params": {"n_embd": 8}}
    gpt = {"target": "taming.modules.transformer.mingpt.GPT", "params": {}}
    config = OmegaConf.create(
        {
            "target": "taming.models.cond_transformer.Net2NetTransformer",
            "params": {
                "transformer_config": gpt,
                "first_stage_config": stage,
                "cond_stage_config": "__is_unconditional__",
            },
        }
    )
    with pytest.raises(UserError) as caught:
        instantiate_from_config(config, key="model")
    assert str(caught.value).startswith("model.params.first_stage_config.params: ")
    assert "did you mean 'n_embed'" in str(caught.value)


def test_parameters_of_base_classes_are_known() -> None:
    node = {
        "target": "taming.models.vqgan.VQSegmentationModel",
        "params": {"n_labels": 3, "image_kee": "x"},
    }
    with pytest.raises(UserError, match="did you mean 'image_key'"):
        instantiate_from_config(node)


def test_what_there_is_is_said_up_to_twenty_names() -> None:
    names = [f"name{n:02}" for n in range(21)]
    assert did_you_mean("zzz", names[:20]) == f"; known are {', '.join(names[:20])}"
    assert did_you_mean("zzz", names) == did_you_mean("zzz", []) == ""
    assert did_you_mean("name021", names) == "; did you mean 'name02'?"


def test_published_names_resolve_without_main() -> None:
    from taming.models.vqgan import VQModel
    from taming.training import DataModuleFromConfig

    assert get_obj_from_str("main.DataModuleFromConfig") is DataModuleFromConfig
    assert get_obj_from_str("ldm.models.autoencoder.VQModel") is VQModel


def test_checkpoint_paths_are_dropped_at_every_depth() -> None:
    config = {"params": {"ckpt_path": "a", "stage": {"params": {"ckpt_path": "b", "n": 1}}}}
    assert without_checkpoint_paths(OmegaConf.create(config)) == {
        "params": {"ckpt_path": None, "stage": {"params": {"ckpt_path": None, "n": 1}}}
    }


def test_values_left_open_are_asked_for() -> None:
    config = OmegaConf.create({"model": {"target": "x.Y", "params": {"stage": {"path": "???"}}}})
    with pytest.raises(UserError, match=r"path is left to you: add model.params.stage.path=\.\.\."):
        instantiate_from_config(config.model, key="model")
    config = OmegaConf.create({"data": {"target": "x.Y", "params": {"n": "${model.n}"}}})
    with pytest.raises(UserError, match="data.params.n: Interpolation key 'model.n' not found"):
        instantiate_from_config(config.data, key="data")


@pytest.mark.parametrize("place", ["model", "model.params", "model.params.ddconfig"])
def test_what_is_null_is_blamed_and_not_what_refers_to_it(place: str) -> None:
    config = OmegaConf.create({"data": {"size": "${model.params.ddconfig.resolution}"}})
    OmegaConf.update(config, place, None, force_add=True)
    with pytest.raises(UserError, match=f"^{place} is null, and data.size refers to it"):
        plain(config)


def write_stages(folder: Path, stage: dict[str, Any]) -> Path:
    """A YAML of a first stage, and one of a transformer over it; returns the latter."""
    first = {
        "target": "a.First",
        "params": {
            "n_labels": 3,
            "ddconfig": {"in_channels": "${..n_labels}"},
            "ckpt_path": "start.ckpt",
            "monitor": "val/rec_loss",
            "lossconfig": {"target": "a.Loss"},
        },
        "base_learning_rate": 1.0,
    }
    OmegaConf.save({"model": first}, folder / "first.yaml")
    second = {
        "target": "a.Second",
        "params": {"transformer_config": {}, "first_stage_config": stage},
    }
    OmegaConf.save({"model": second}, folder / "second.yaml")
    return folder / "second.yaml"


def test_a_stage_has_the_model_of_the_yaml_it_names(tmp_path: Path) -> None:
    path = write_stages(tmp_path, {"base": "first.yaml", "params": {"ckpt_path": "???"}})
    place = "model.params.first_stage_config.params"
    config = load_config([path], [f"{place}.n_labels=5", f"{place}.ckpt_path=logs/x"])
    assert plain(config.model.params.first_stage_config) == {
        "target": "a.First",
        "params": {
            "n_labels": 5,
            "ddconfig": {"in_channels": 5},
            "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
            "ckpt_path": "logs/x",
        },
    }
    override = f"model.params.first_stage_config.base={tmp_path / 'first.yaml'}"
    assert load_config([path], [override]).model.params.first_stage_config.target == "a.First"
    again = write_stages(tmp_path, {"base": "first.yaml", "params": {"n_labels": 4}})
    assert load_config([again]).model.params.first_stage_config.params.n_labels == 4
    path = write_stages(tmp_path, {"base": "first.yaml", "params": {"ckpt_path": "???"}})
    open_config = load_config([path])
    with pytest.raises(UserError, match=f"^{place}.ckpt_path is left to you: add model"):
        plain(open_config)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("frist.yaml", "there is no config file .*frist.yaml"),
        ("second.yaml", "second.yaml is a transformer's, not a first stage's"),
        ("data.yaml", "data.yaml has no model with a target"),
    ],
)
def test_a_base_that_is_no_first_stage(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "data.yaml").write_text("data: {}")
    path = write_stages(tmp_path, {"base": base})
    place = "second.yaml: model.params.first_stage_config.base: "
    with pytest.raises(UserError, match=f"{place}.*{message}"):
        load_config([path])


def test_arguments_of_a_call_come_before_the_config_s() -> None:
    config = {"target": "torch.nn.Linear", "params": {"in_features": 2, "out_features": 3}}
    made = instantiate_from_config(config, out_features=5, bias=False)
    assert (made.in_features, made.out_features, made.bias) == (2, 5, None)


class Plain:
    def __getitem__(self, index: int) -> int:
        return index


def make_plain() -> Plain:
    return Plain()


def test_classes_of_one_s_own_inherit_from_nothing_and_functions_are_trusted_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TAMING_TRUST")
    for name in ("Plain", "make_plain"):
        node = {"target": f"tests.test_config.{name}"}
        for expects in ("dataset", "module"):  # from Python
            assert isinstance(instantiate_from_config(node, expects=expects), Plain)
    with trusting([]), pytest.raises(UserError, match="make_plain is no class of the kind"):
        instantiate_from_config(node, expects="dataset")
    with trusting(["tests"]):  # of a program
        assert instantiate_from_config({"target": "tests.test_config.Plain"}, expects="module")
        with pytest.raises(UserError, match="make_plain is no class of the kind .* a dataset; a f"):
            instantiate_from_config(node, expects="dataset")
    with trusting(["tests.test_config.make_plain"]):
        assert instantiate_from_config(node, expects="dataset")[3] == 3


def test_modules_are_read_anew_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "read_anew.py", "NUMBER = 1\n")
    assert get_obj_from_str("read_anew.NUMBER") == 1
    write(tmp_path / "read_anew.py", "NUMBER = 22\n")
    assert get_obj_from_str("read_anew.NUMBER") == 1
    assert get_obj_from_str("read_anew.NUMBER", reload=True) == 22


def test_what_the_import_of_our_own_modules_raises_is_a_bug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ZeroDivisionError):
        get_obj_from_str("taming.models.vqgan.VQModel")
    with pytest.raises(UserError, match="the import of somebodys.own raises ZeroDivisionError"):
        get_obj_from_str("somebodys.own.Model")
