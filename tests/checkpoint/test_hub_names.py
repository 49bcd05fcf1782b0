"""Models on the hub by name: what is fetched, and what is said where that cannot be."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest
import torch
from omegaconf import OmegaConf

import main as training
import taming
from scripts import sample_fast
from taming.checkpoint import HubName, find_run, load_run
from taming.errors import UserError
from taming.export.weights import save_weights
from tests.kit.datasets import images
from tests.kit.hub import Hub, serve_hub
from tests.kit.models import build, first_stage_config, unconditional_config
from tests.support import write_run

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with `me/stage`, and in its branch `next` with other weights."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "stage"
    folder.mkdir()
    config = first_stage_config(lossconfig=None)
    save_weights(build(config).state_dict(), folder / "model.safetensors")
    OmegaConf.save({"model": config}, folder / "config.yaml")
    for name in ("last.ckpt", "pytorch_model.bin", "evil.py", "README.md"):
        (folder / name).write_bytes(b"never to be fetched")
    with serve_hub(tmp_path / "cache") as server:
        repository = server.add("me/stage", folder)
        other = {name: tensor + 1 for name, tensor in build(config).state_dict().items()}
        save_weights(other, tmp_path / "other.safetensors")
        data = (tmp_path / "other.safetensors").read_bytes()
        repository.branches["next"] = repository.branches["main"]
        repository.commit({"model.safetensors": data}, "next")
        yield server


def weight(name: str) -> torch.Tensor:
    return taming.load(name).state_dict()["encoder.conv_in.weight"]


def test_names() -> None:
    name = HubName.parse("hf:me/a.b-c@refs/pr/1")
    assert name == HubName("me/a.b-c", "refs/pr/1") == HubName.parse(str(name))
    assert str(HubName.parse("me/a")) == "hf:me/a"
    assert name.folder == Path("logs/me--a.b-c@refs--pr--1")
    assert HubName.parse("hf:me/a@fix--typo..2") == HubName("me/a", "fix--typo..2")
    windows = PureWindowsPath("hf:me/a@refs/pr/1")  # as `Path` is there
    assert HubName.parse(windows) == HubName.parse(str(windows)) == HubName("me/a", "refs/pr/1")
    for text in ("hf:a--b/c", "hf:a/b..c@d"):
        with pytest.raises(UserError, match="is no name on the hub"):
            HubName.parse(text)
    for text in ("hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b c", "hf:a/b@c@d"):
        with pytest.raises(UserError, match="is no name on the hub; write hf:owner/name"):
            HubName.parse(text)


def test_weights_and_config_alone_are_fetched_once_and_are_there_without_a_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = taming.load("stage/model.safetensors").state_dict()["encoder.conv_in.weight"]
    with pytest.raises(UserError, match="is not in the cache, .*; load it with download=True"):
        taming.load("hf:me/stage", download=False)
    assert not hub.fetched and torch.equal(weight("hf:me/stage"), stored)
    assert sorted(hub.fetched) == ["config.yaml", "model.safetensors"]
    assert torch.equal(weight("hf:me/stage"), stored) and len(hub.fetched) == 2
    commit = hub.repositories["me/stage"].branches["next"]
    by_branch = weight("hf:me/stage@next")
    assert torch.equal(by_branch, weight(f"hf:me/stage@{commit}"))
    assert not torch.equal(by_branch, stored)
    # A pickle that another program has put beside them is not taken.
    file = find_run("hf:me/stage").checkpoint
    (file.parent / "last.ckpt").write_bytes(b"another program's")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    assert torch.equal(weight("hf:me/stage"), stored)
    model = taming.load("hf:me/stage", download=False)
    assert torch.equal(model.state_dict()["encoder.conv_in.weight"], stored)
    with pytest.raises(UserError, match="hf:me/other is not in the cache.*cannot be reached"):
        taming.load("hf:me/other")


def test_what_was_pushed_beside_a_model_of_diffusers_is_the_model(hub: Hub) -> None:
    """In its repository, and in a folder."""
    Path("both").mkdir()
    for name in ("model.safetensors", "config.yaml"):
        shutil.copy(Path("stage", name), "both")
    old = taming.load("stage/model.safetensors").state_dict()
    save_weights({n: -t for n, t in old.items()}, Path("both/diffusion_pytorch_model.safetensors"))
    Path("both/config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    hub.add("me/both", Path("both"))
    pushed = weight("stage/model.safetensors")
    assert torch.equal(weight("both"), pushed) and torch.equal(weight("hf:me/both"), pushed)


def test_stages_and_scripts(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    config = unconditional_config()
    config["params"]["first_stage_config"] = "hf:me/stage@next"
    state = build(unconditional_config()).state_dict()
    write_run(Path("logs/run"), config, state)
    assert find_run("hf:me/stage").folder == Path("logs/me--stage")
    model, _, _ = load_run("logs/run")
    assert model.encode_to_indices(images(1).permute(0, 3, 1, 2)).shape == (1, 8, 8)
    with pytest.raises(SystemExit) as caught:
        sample_fast.main(["-r", "hf:me/gone"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no hf:me/gone on the hub")
    with pytest.raises(SystemExit) as caught:
        training.main(["-t", "-r", "hf:me/stage"])
    assert caught.value.code == 2
    assert "start a run from them with model.params.ckpt_path=hf:me/stage" in (
        capsys.readouterr().err
    )


def test_configs_are_strangers(hub: Hub) -> None:
    config = b"model: {target: os.system, params: {command: 'touch pwned'}}\n"
    hub.repositories["me/stage"].commit({"config.yaml": config})
    with pytest.raises(UserError, match=r"os\.system is not trusted"):
        taming.load("hf:me/stage")
    assert not Path("pwned").exists()


def test_what_cannot_be_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub.repositories["me/stage"]
    Path("pickles").mkdir()
    Path("pickles/pytorch_model.bin").write_bytes(b"a pickle")
    hub.add("me/pickles", Path("pickles"))
    hub.add("me/hidden", Path("pickles"), private=True)
    hub.token = "secret"
    Path("two").mkdir()
    for file in ("b.safetensors", "a.safetensors"):
        Path("two", file).write_bytes(b"many")
    hub.add("me/two", Path("two"))
    for name, message in (
        ("hf:me/gone", "there is no hf:me/gone on the hub, or it is private; check the name, or"),
        ("hf:me/hidden", "there is no hf:me/hidden on the hub, or it is private"),
        ("hf:me/stage@v9", "there is no branch, tag or commit 'v9'"),
        ("hf:me/pickles", "hf:me/pickles has no weights as safetensors at its top"),
        ("hf:me/two", r"several files with weights \(a.safetensors, b.safetensors\); fetch one"),
    ):
        with pytest.raises(UserError, match=message):
            taming.load(name)
    assert not hub.fetched  # GBs for nothing
    repository.gated = True
    with pytest.raises(UserError, match="hf:me/stage is gated: accept its terms .* log in with"):
        taming.load("hf:me/stage")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[hub\]'"):
        taming.load("hf:me/stage")


def test_a_download_that_broke_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configs are in the cache, and its weights are not."""
    assert find_run("hf:me/stage").checkpoint.is_file()
    find_run("hf:me/stage").checkpoint.unlink()
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(UserError, match="not all of it, and the hub cannot be reached; connect"):
        taming.load("hf:me/stage")
    with pytest.raises(UserError, match="not all of it; load it with download=True"):
        taming.load("hf:me/stage", download=False)


def test_what_was_fetched_is_used_while_the_hub_says_no(hub: Hub) -> None:
    weight("hf:me/stage")
    hub.token, hub.repositories["me/stage"].private = "secret", True
    weight("hf:me/stage")
    with pytest.raises(
        UserError, match="there is no hf:me/stage@next on the hub, or it is private"
    ):
        taming.load("hf:me/stage@next")  # not fetched before


def test_only_the_weights_that_are_used_are_fetched(hub: Hub) -> None:
    other = {"other.safetensors": b"of something else", "below/model.safetensors": b""}
    hub.repositories["me/stage"].commit(other)
    weight("hf:me/stage")
    weight("hf:me/stage")
    assert sorted(hub.fetched) == ["config.yaml", "model.safetensors"]


def test_only_the_parts_of_an_index_are_fetched(hub: Hub) -> None:
    """Beside them, repositories have weights of other precisions, and of other models."""
    state = build(first_stage_config(lossconfig=None)).state_dict()
    names = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(state)}
    files = {"model.safetensors.index.json": json.dumps({"weight_map": names}).encode()}
    for file in set(names.values()):
        save_weights({key: state[key] for key in state if names[key] == file}, Path(file))
        files[file] = Path(file).read_bytes()
    repository = hub.repositories["me/stage"]
    del repository.snapshots[repository.branches["main"]]["model.safetensors"]
    repository.commit({**files, "model.fp16-0.safetensors": b"half", "other.safetensors": b"x"})
    assert torch.equal(weight("hf:me/stage"), state["encoder.conv_in.weight"])
    assert sorted(hub.fetched) == sorted(["config.yaml", *files])
    repository.commit({"model.safetensors.index.json": b"{"})
    with pytest.raises(UserError, match=r"index\.json"):
        taming.load("hf:me/stage")


def test_the_config_may_be_a_yml(hub: Hub) -> None:
    repository = hub.repositories["me/stage"]
    files = repository.snapshots[repository.branches["main"]]
    files["config.yml"] = files.pop("config.yaml")
    assert [path.name for path in find_run("hf:me/stage").configs] == ["config.yml"]


def test_paths_of_windows_are_names(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taming.model_loading.Path", PureWindowsPath)
    weight("hf:me/stage@next")
    assert "hf:me\\stage" in str(PureWindowsPath("hf:me/stage"))
    assert find_run(str(PureWindowsPath("hf:me/stage"))).folder == Path("logs/me--stage")
