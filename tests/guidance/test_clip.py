"""CLIP by open_clip: a tiny model with random weights, from a folder, a file and caches."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from taming.errors import UserError
from taming.guidance import GuideSettings, Objective, guide, load_clip, text_targets
from taming.guidance.clip import OpenClip
from taming.guidance.clip_files import _cached, known_hash
from taming.guidance.cutouts import CutSettings
from tests.kit.extractor import _tree
from tests.kit.guidance import CLIP_CONFIG, write_clip
from tests.kit.hub import serve_hub
from tests.kit.models import build, first_stage_config
from tests.support import ROOT, Malicious

open_clip: Any = pytest.importorskip("open_clip", reason="needs the extra 'guide'")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TABLE: Any = sys.modules["open_clip.pretrained"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))[0]


@pytest.fixture
def named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """The table of published weights of a model "tiny", and a home without caches."""
    (tmp_path / "tiny.json").write_text(json.dumps(CLIP_CONFIG["model_cfg"]))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {})
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", [])
    open_clip.add_model_config(tmp_path / "tiny.json")
    rows: dict[str, dict[str, Any]] = {}
    monkeypatch.setitem(TABLE._PRETRAINED, "tiny", rows)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return rows


def expected(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What open_clip itself computes: of images and of a text."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    assert set(load_file(folder / "open_clip_model.safetensors")) == set(model.state_dict())
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    config = CLIP_CONFIG["preprocess_cfg"]
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        images = model.encode_image((IMAGES - mean) / std)
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(["a fox"]))
    return images, text


def test_a_folder(folder: Path) -> None:
    clip = load_clip(str(folder))
    assert isinstance(clip, OpenClip) and clip.size == 32
    assert not any(p.requires_grad for p in clip.model.parameters())
    images, text = expected(folder)
    torch.testing.assert_close(clip.encode_images(IMAGES), images)
    torch.testing.assert_close(clip.encode_texts(["a fox"]), text)


def test_a_text_guides(folder: Path) -> None:
    clip = load_clip(str(folder))
    stage = build(first_stage_config()).eval().requires_grad_(False)
    cuts = CutSettings(cutouts=2, cut_min=0.9, cut_degrees=0, cut_jitter=0, cut_noise=0, cut_flip=0)
    objective = Objective(clip, text_targets(clip, ["a fox:1.0", "snow:-0.2"]), cuts)
    losses = guide(stage, objective, GuideSettings(steps=15, unquantized=True, lr=0.3)).losses
    assert sum(losses[-3:]) < sum(losses[:3])


def test_weights_that_are_named(
    folder: Path, named: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    images, _ = expected(folder)
    own = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    named["own"] = {**own, "url": "https://example.com/own.pt"}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "own.pt")
    (tmp_path / "program").mkdir()
    torch.jit.script(_tree(state)).save(str(tmp_path / "program" / "own.pt"))
    for place in (tmp_path, tmp_path / "program"):
        clip = load_clip("tiny", place / "own.pt")
        torch.testing.assert_close(clip.encode_images(IMAGES), images)
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    clip = load_clip("tiny", tmp_path / "half.safetensors")
    assert next(clip.model.parameters()).dtype == torch.float32
    assert clip.mean == own["mean"]  # all published weights have the same
    named.clear()
    clip = load_clip("tiny", tmp_path / "half.safetensors")
    assert clip.mean == pytest.approx((0.4814547, 0.4578275, 0.4082107))  # of CLIP itself


def test_the_activation_of_weights_that_the_user_names(
    folder: Path, named: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """It is in no tensor: the file's name, place or hash says which one it is, or the user."""
    content = (folder / "open_clip_model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    url = f"https://x.org/{digest}/Quick.pt"
    named["quick"] = {"url": url, "hf_hub": "owner/quick/", "quick_gelu": True}
    named["usual"] = {"hf_hub": "owner/usual/"}
    other = tmp_path / "other.safetensors"
    state = load_file(folder / "open_clip_model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in state.items()}, other)

    def placed(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
        return path

    def is_quick(name: str, path: Path) -> bool:
        modules = {type(module).__name__ for module in load_clip(name, path).model.modules()}
        assert ("QuickGELU" in modules) != ("GELU" in modules)
        return "QuickGELU" in modules

    mine = placed("mine.safetensors")
    assert is_quick("tiny", placed("Quick.pt"))  # by its name
    assert is_quick("tiny", mine)  # by its hash
    cached = "hub/models--owner--usual/snapshots/0/open_clip_model.safetensors"
    assert not is_quick("tiny", placed(cached))
    assert is_quick("tiny:quick", other) and not is_quick("tiny:usual", other)
    assert not is_quick("tiny:usual", mine)
    with pytest.raises(
        UserError, match=r"which weights of tiny are in .*add the published ones"
    ) as e:
        load_clip("tiny", other)
    assert str(e.value).endswith("as --clip tiny:TAG: quick, usual")
    with pytest.raises(UserError, match=r"Quick.pt is of tiny:quick by its name, not of 'usual'"):
        load_clip("tiny:usual", placed("Quick.pt"))
    images = load_clip("tiny:quick", other).encode_images(IMAGES)
    assert not torch.allclose(images, load_clip("tiny:usual", other).encode_images(IMAGES))


def test_nothing_in_a_file_is_run(named: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    torch.save({"visual.conv1.weight": Malicious(Path.touch, mark)}, path)
    with pytest.raises(UserError):
        load_clip("tiny", path)
    assert not mark.exists()


def test_cached_files_and_their_hashes(
    folder: Path, named: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    content = (folder / "open_clip_model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    facts = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "hf_hub": "owner/tiny/"}
    named["hub"] = dict(facts)
    missing = "no weights of CLIP's tiny on this machine: fetch them with `hf download owner/tiny "
    with pytest.raises(UserError, match=f"{missing}open_clip_model.safetensors`, or .* tiny:hub$"):
        load_clip("tiny")
    repository = tmp_path / "hub" / "models--owner--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    for part in (snapshot, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "blobs" / digest).write_bytes(content)
    (snapshot / "open_clip_model.safetensors").symlink_to(repository / "blobs" / digest)
    images, _ = expected(folder)
    torch.testing.assert_close(load_clip("tiny:hub").encode_images(IMAGES), images)
    (repository / "blobs" / digest).write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged, or another file than its name says"):
        load_clip("tiny")
    # A release of open_clip, with a part of the hash in its name.
    named.clear()
    named["release"] = {**facts, "hf_hub": "", "url": f"https://x.org/tiny-{digest[:8]}.pt"}
    cache = tmp_path / ".cache" / "clip"
    cache.mkdir(parents=True)
    (cache / f"tiny-{digest[:8]}.pt").write_bytes(content)
    torch.testing.assert_close(load_clip("tiny").encode_images(IMAGES), images)
    (cache / f"tiny-{digest[:8]}.pt").write_bytes(content + b" ")
    with pytest.raises(UserError, match=f"does not start with {digest[:8]}"):
        load_clip("tiny")


def test_the_hash_of_the_original_is_in_its_address(tmp_path: Path) -> None:
    facts = {"url": f"https://x.org/models/{'ab' * 32}/ViT-B-32.pt"}
    assert known_hash(tmp_path / "ViT-B-32.pt", facts) == "ab" * 32
    assert known_hash(tmp_path / "mine.pt", facts) == ""


def test_what_cannot_be_loaded(
    folder: Path,
    named: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named["a"] = {"url": "https://x.org/weights.pt"}
    with pytest.raises(UserError, match=r"has no model 'tiney'; did you mean 'tiny'\?$"):
        load_clip("tiney")
    with pytest.raises(UserError, match="tiny has no weights 'b'; open_clip knows a"):
        load_clip("tiny:b")
    with pytest.raises(UserError, match="--clip_weights: there is no file nothing.pt"):
        load_clip("tiny", "nothing.pt")
    with pytest.raises(UserError, match=r": put https://x.org/weights.pt into ~/.cache/clip, or"):
        load_clip("tiny")
    (tmp_path / "bare").mkdir()
    for name, message in (
        (str(tmp_path / "bare"), f"{tmp_path / 'bare'} has no open_clip_config.json, which says"),
        ("C:\\clip", r"--clip: there is no folder C:\clip"),
        ("local-dir:gone", "--clip: there is no folder gone"),
        ("hf-hub:owner/tiny", "hf:owner/tiny is not on this machine, and nothing is downloaded"),
        ("hf-hub:owner", "'owner' is no name on the hub"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            load_clip(name)
    state = load_file(folder / "open_clip_model.safetensors")
    for name, change, problem in (
        ("visual.conv1.weight", None, "is missing"),
        ("visual.conv1.weight", torch.zeros(3), "has another shape"),
    ):
        other = {**state, name: change}
        kept = {key: value for key, value in other.items() if value is not None}
        save_file(kept, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=f"do not fit tiny: '{name}' {problem}"):
            load_clip("tiny", tmp_path / "x.safetensors")
    empty, _ = write_clip(tmp_path / "empty", weights=False)
    with pytest.raises(UserError, match="has none of open_clip_model.safetensors"):
        load_clip(str(empty))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="open_clip, which is not installed: pip install"):
        load_clip("tiny")


def test_the_folder_of_the_hubs_cache(
    folder: Path, named: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub/models--owner--tiny/snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (tmp_path / "hub/models--owner--tiny/refs").mkdir()
    (tmp_path / "hub/models--owner--tiny/refs/main").write_text("0" * 40)
    images, _ = expected(folder)
    for name in ("hf-hub:owner/tiny", f"local-dir:{folder}"):
        torch.testing.assert_close(load_clip(name).encode_images(IMAGES), images)


def test_tokenizers_that_are_not_here(folder: Path, tmp_path: Path) -> None:
    """They need a package, or files of the hub, which are not fetched in secret."""
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "owner/tokenizer"
    (other / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the tokenizer of 'local-dir:.*' is not on this machine"):
        load_clip(str(other))


def test_a_text_of_which_the_end_is_not_read(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny model reads 16 tokens: 14 words and the two around them."""
    clip, words = load_clip(str(folder)), "a fox in the snow at night with a red coat and two eyes"
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        read = clip.encode_texts([words])
        assert not caplog.messages
        more = clip.encode_texts(["a fox", f"{words} of gold"])
    assert caplog.messages == [
        "the end of the prompt 'a fox in the snow at night with a red c... is not read: this CLIP "
        "reads 16 tokens, of which a word has one or a few; shorten it, or make two prompts of it"
    ]
    torch.testing.assert_close(more[1:], read)


def test_the_documented_command_puts_the_weights_where_they_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is also the one that the error names; here a stand-in for the hub answers it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/open_clip_model.safetensors").write_bytes(b"weights")
    tags = {tag: open_clip.get_pretrained_cfg("ViT-B-32", tag) for tag in ("openai", "laion2b_e16")}
    with serve_hub(tmp_path / "cache") as hub:
        with pytest.raises(UserError) as caught:
            load_clip()
        (command,) = re.findall("`(hf download .*?)`", str(caught.value))
        assert f"\n{command}\n" in (ROOT / "docs/guidance.md").read_text()
        hub.add(command.split()[2], tmp_path / "files")
        program = Path(sys.executable).with_name("hf")
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache")}
        subprocess.run([program, *command.split()[1:]], env=environment, check=True)
        path, tag = _cached("ViT-B-32", tags)
    assert (path.read_bytes(), tag) == (b"weights", "openai")
