"""Uploading runs: the card, what is uploaded, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import taming
from scripts import push
from taming.downloads import file_hash
from tests.kit.hub import Hub, serve_hub
from tests.kit.models import first_stage_config, scene_config, tiny_model, transformer_config
from tests.support import write_run

RUN = Path("logs/2021-01-01T00-00-00_custom_vqgan")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and a run with results of its checkpoint and of another one."""
    monkeypatch.chdir(tmp_path)
    write_run(RUN, first_stage_config(lossconfig=None))
    (RUN / "evaluation").mkdir()
    for name, known in (("own", file_hash(RUN / "checkpoints" / "last.ckpt")), ("old", "0")):
        images = {"path": "/home/somebody/photographs", "split": "validation", "images": 9}
        result = {
            "metrics": {"fid": 4.5, "kid": {"mean": 0.25, "std": "inf"}, "images": 9},
            "protocol": {"checkpoint_hash": known},
            "sets": {"images": images},
            **{key: {} for key in ("versions", "hardware", "command")},
        }
        (RUN / "evaluation" / f"{name}.json").write_text(json.dumps(result))
    with serve_hub(tmp_path / "cache") as server:
        yield server


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        push.main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def read_weights(file: bytes) -> tuple[object, bytes]:
    """The header, of which safetensors writes the parts in any order, and the tensors."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def test_a_dry_run_is_what_is_uploaded_and_what_is_loaded(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    words = [str(RUN), "me/stage", "--license", "mit", "--tags", "photographs"]
    push.main([*words, "--dry_run", "dry"])
    out = capsys.readouterr().out
    assert "left out: " in out and "evaluation/old.json is of another checkpoint" in out
    assert not hub.repositories
    push.main([*words, "--private"])
    assert "is made; load it with taming.load('hf:me/stage')" in capsys.readouterr().out
    repository = hub.repositories["me/stage"]
    uploaded = dict(repository.snapshots[repository.branches["main"]])
    dry = {path.name: path.read_bytes() for path in Path("dry").iterdir()}
    assert read_weights(uploaded.pop("model.safetensors")) == read_weights(dry["model.safetensors"])
    assert uploaded == {name: dry[name] for name in dry.keys() - {"model.safetensors"}}
    assert dry.keys() == {"README.md", "config.yaml", "model.safetensors"}
    assert repository.private
    model, expected = taming.load("hf:me/stage"), taming.load(RUN)
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in model.state_dict().items())


def test_what_was_pushed_is_pushed_again(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """Of its weights nobody knows the step; what its card says is not carried on, which is said."""
    push.main([str(RUN), "me/stage", "--dry_run", "once"])
    assert re.search(r"; global step \d", Path("once/README.md").read_text())
    capsys.readouterr()
    push.main(["once", "me/again", "--dry_run", "twice"])
    assert f"left out: what {Path('once/README.md')} says" in capsys.readouterr().out
    assert "global" not in Path("twice/README.md").read_text()


def test_numbers_of_the_average_are_not_those_of_raw_weights(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    push.main([str(RUN), "me/stage", "--weights", "raw", "--dry_run", "dry"])
    assert "own.json is of another checkpoint, or of other --weights" in capsys.readouterr().out
    assert "model-index" not in Path("dry/README.md").read_text("utf-8")


def test_the_hub_reads_the_results_of_the_card(hub: Hub) -> None:
    push.main([str(RUN), "me/stage@v1", "--license", "mit", "--dry_run", "dry"])
    card = ModelCard.load(Path("dry/README.md"))
    data = card.data
    assert (data.license, data.library_name) == ("mit", "taming-transformers")
    assert "vqgan" in data.tags and data.base_config == "custom_vqgan"
    found = {
        (each.task_type, each.dataset_name, each.dataset_split, each.metric_type): each.metric_value
        for each in data.eval_results
    }
    where = ("image-to-image", "photographs", "validation")
    assert found == {(*where, "fid"): 4.5, (*where, "kid.mean"): 0.25}
    assert "\ntaming reconstruct FOLDER -r hf:me/stage@v1\n" in card.text
    assert 'taming.load("hf:me/stage@v1")' in card.text and "/home" not in card.content
    config = card.text.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(config) == yaml.safe_load(Path("dry/config.yaml").read_text("utf-8"))


def test_the_card_names_the_command_that_samples_such_a_model() -> None:
    maps = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "sketch"}
    scenes = tiny_model(transformer_config(**scene_config(block_size=64)))
    assert push.subcommand_for(tiny_model()) == "sample"
    assert push.subcommand_for(tiny_model(transformer_config(**maps))) == "sample-data"
    assert push.subcommand_for(scenes) == "scenes"


def test_a_repository_that_is_there_is_updated(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    push.main([str(RUN), "me/stage"])
    push.main([str(RUN), "me/stage", "--revision", "v2", "--private"])
    out = capsys.readouterr().out
    assert "is updated, as it was there already; load it with taming.load('hf:me/stage@v2')" in out
    assert "--private holds for new repositories" in out
    assert hub.repositories["me/stage"].branches.keys() == {"main", "v2"}


def test_what_is_not_uploaded(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong is said before gigabytes are written, or read where it can be known."""
    Path("empty").mkdir()
    assert "there is no run or checkpoint at gone" in refused(capsys, "gone", "me/x")
    assert "empty" in refused(capsys, "empty", "me/x")
    assert "'x' is no name on the hub" in refused(capsys, str(RUN), "x")
    both = refused(capsys, str(RUN), "me/x@a", "--revision", "b")
    assert "give the revision once" in both
    full = refused(capsys, str(RUN), "me/x", "--dry_run", "logs")
    assert "logs is there and not empty" in full
    monkeypatch.setattr(push, "write_repository", lambda *_: pytest.fail("written"))
    hub.token = "secret"
    assert "(401) without rights to it; log in with" in refused(capsys, str(RUN), "me/x")
    assert "does not take the model card" in refused(capsys, str(RUN), "me/x", "--license", "mine")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refused(capsys, str(RUN), "me/x")
    assert not hub.repositories
    monkeypatch.setattr(push, "load_run", lambda *_: pytest.fail("loaded"))
    monkeypatch.delenv("HF_ENDPOINT")
    assert "alone who are logged in; log in with `hf auth login`" in refused(
        capsys, str(RUN), "me/x"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[hub]'" in refused(capsys, str(RUN), "me/x")


def test_a_card_that_the_hub_does_not_take(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is made then; licenses are known by small letters."""
    error = refused(capsys, str(RUN), "me/x", "--license", "mine")
    assert (
        'hf:me/x: the hub does not take the model card ("license" must be one of [apache-' in error
    )
    assert error.endswith("; give --license and --tags as it calls them\n") and len(error) < 400
    assert not hub.repositories
    push.main([str(RUN), "me/x", "--license", "MIT"])
    (files,) = list(hub.repositories["me/x"].snapshots.values())[1:]
    assert b"license: mit\n" in files["README.md"]


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (403, "Private repository storage limit reached", "(403: Private repository storage limit"),
        (403, "", "(403) without rights to it; log in with"),
        (402, "Payment required.", "the hub refuses that (402: Payment required); mend that"),
        (422, "", "the hub refuses that (422); mend that first"),
        (400, "Too many tags", "the hub refuses that (400: Too many tags); mend that first"),
        (429, "Slow down", "the hub answers 429: Slow down; try again later"),
        (500, "", "the hub answers 500; try again later"),
    ],
)
def test_what_the_hub_refuses_is_said_with_its_reason(
    hub: Hub, capsys: pytest.CaptureFixture[str], status: int, reason: str, message: str
) -> None:
    hub.refusal = (status, reason)
    assert message in refused(capsys, str(RUN), "me/x")
