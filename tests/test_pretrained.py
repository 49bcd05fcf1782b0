"""Published models: the table, addresses, and run folders that are whole and checked."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import taming
from scripts.download_models import main
from taming.checkpoint import find_run, load_run, read_checkpoint
from taming.config import instantiate_from_config, load_config
from taming.downloads import Patience
from taming.errors import UserError
from taming.pretrained import (
    RECORD,
    RemoteFile,
    _in_run_layout,
    download_model,
    remote_files,
)
from taming.published_models import Published, how_to_fetch, published_models
from tests.kit.archives import zeros_in_zip
from tests.kit.models import build, unconditional_config
from tests.web import Site, serve

CONFIGS = sorted((Path(taming.__file__).parent / "pretrained_configs").glob("*.yaml"))
QUICK = Patience(tries=2, wait=0.0)


def checkpoint(value: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.full((3,), value)}}, buffer)
    return buffer.getvalue()


def entry(path: str, data: bytes | None = None) -> dict[str, Any]:
    kind = {"folder_path": path} if data is None else {"file_path": path, "size": len(data)}
    return {"is_dir": data is None, **kind}


def listed(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"dirent_list": entries}).encode()


def shared_folder(site: Site) -> None:
    """A run as a shared folder, behind a short address."""
    model, config = checkpoint(), b"model: {}\n"
    listing = "/api/v2.1/share-links/abc/dirents/?path=%2F"
    site.redirects["/short"] = "/d/abc/"
    site.files |= {
        "/d/abc/": b"<!DOCTYPE html>",
        listing: listed(entry("/run/")),
        listing + "run%2F": listed(entry("/run/ckpts/"), entry("/run/configs/")),
        listing + "run%2Fckpts%2F": listed(
            entry("/run/ckpts/last.ckpt", model), entry("/run/ckpts/notes.txt", b"not wanted")
        ),
        listing + "run%2Fconfigs%2F": listed(entry("/run/configs/model.yaml", config)),
        "/d/abc/files/?p=%2Frun%2Fckpts%2Flast.ckpt&dl=1": model,
        "/d/abc/files/?p=%2Frun%2Fconfigs%2Fmodel.yaml&dl=1": config,
    }


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as running:
        yield running


def test_missing_runs_of_published_models_can_be_fetched() -> None:
    for name, model in published_models().items():
        for path in (Path("logs", name), Path(model.folder), Path("x", name, "checkpoints/a.ckpt")):
            assert how_to_fetch(path).endswith(f"python scripts/download_models.py {name}")
    assert how_to_fetch(Path("logs/mine")) == ""
    with pytest.raises(UserError, match="at logs/vqgan_imagenet_f16_16384; fetch it with python"):
        find_run("logs/vqgan_imagenet_f16_16384")
    with pytest.raises(UserError, match="no checkpoint at a/vq_f8/last.ckpt; fetch it with python"):
        read_checkpoint("a/vq_f8/last.ckpt")


def test_the_start_of_several_names_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["llamagen"])
    assert "there are llamagen_vq16, llamagen_vq8, llamagen_vq16_t2i" in capsys.readouterr().err


def model_at(*addresses: str) -> Published:
    return Published("m", "a model", "-", "logs/m", addresses)


def test_the_table_has_every_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    models = published_models()
    assert len(models) == 43
    for model in models.values():
        assert model.folder.startswith("logs/") and not model.folder.endswith("checkpoints")
        assert all(address.startswith("https://") for address in model.addresses)
        assert not any(" " in address for address in model.addresses)
    main(["--list"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", shown, re.MULTILINE) for name in models)


def test_a_shared_folder_becomes_a_run(site: Site, tmp_path: Path) -> None:
    shared_folder(site)
    folder = download_model(model_at(f"{site.url}/short"), tmp_path, patience=QUICK)
    run = find_run(folder)
    assert torch.equal(read_checkpoint(run.checkpoint)["state_dict"]["weight"], torch.ones(3))
    assert [config.name for config in run.configs] == ["model.yaml"]
    record = json.loads((folder / RECORD).read_text())
    assert record["complete"] and set(record["files"]) == {
        "checkpoints/last.ckpt",
        "configs/model.yaml",
    }
    asked = len(site.requests)
    download_model(model_at(f"{site.url}/short"), tmp_path, patience=QUICK)
    assert len(site.requests) == asked  # all there


def test_an_interrupted_model_is_completed(site: Site, tmp_path: Path) -> None:
    shared_folder(site)
    config = "/d/abc/files/?p=%2Frun%2Fconfigs%2Fmodel.yaml&dl=1"
    kept = site.files.pop(config)
    with pytest.raises(UserError, match="answers 404"):
        download_model(model_at(f"{site.url}/short"), tmp_path, patience=QUICK)
    site.files[config] = kept
    folder = download_model(model_at(f"{site.url}/short"), tmp_path, patience=QUICK)
    assert (folder / "configs" / "model.yaml").read_bytes() == kept


def test_what_differs_from_the_first_download_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/last.ckpt"] = checkpoint(1)
    model = model_at(f"{site.url}/last.ckpt")
    folder = download_model(model, tmp_path, patience=QUICK)
    path = folder / "last.ckpt"
    damaged = path.read_bytes().replace(b"weight", b"wEight")
    path.write_bytes(damaged)
    download_model(model, tmp_path, patience=QUICK)  # of the right size, and not looked into
    with pytest.raises(UserError, match="last.ckpt is not the file that was downloaded; delete"):
        download_model(model, tmp_path, check=True, patience=QUICK)
    path.unlink()
    site.files["/last.ckpt"] = checkpoint(2)
    with pytest.raises(UserError, match="sends another file than at the first download"):
        download_model(model, tmp_path, patience=QUICK)
    assert not path.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><p>log in", "web page instead of last.ckpt"),
        (b"\n <HTML><p>log in", "web page instead of last.ckpt; fetch it with a browser"),
        (b"hello", "is a text file"),
        (b"", "is an empty file"),
        (checkpoint()[:-50], "is cut short"),
    ],
)
def test_what_is_no_checkpoint_takes_no_place(
    site: Site, tmp_path: Path, data: bytes, message: str
) -> None:
    site.files["/last.ckpt"] = data
    with pytest.raises(UserError, match=message):
        download_model(model_at(f"{site.url}/last.ckpt"), tmp_path, patience=QUICK)
    assert list((tmp_path / "logs" / "m").iterdir()) == []


def test_an_archive_is_unpacked(site: Site, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.ckpt", checkpoint())
        archive.writestr("config.yaml", "model: {}")
        for name in ("readme.txt", "data.pickle.pkl", "more.zip"):
            archive.writestr(name, "not wanted")
    site.files["/vq.zip"] = buffer.getvalue()
    model = model_at(f"{site.url}/vq.zip")
    folder = download_model(model, tmp_path, patience=QUICK)
    assert find_run(folder).checkpoint.name == "model.ckpt"
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", RECORD, "model.ckpt"]
    asked = len(site.requests)
    download_model(model, tmp_path, patience=QUICK)
    assert len(site.requests) == asked


@pytest.mark.parametrize("name", ["model.ckpt", "config.yaml"])
def test_an_archive_that_grows_is_not_unpacked(site: Site, tmp_path: Path, name: str) -> None:
    site.files["/vq.zip"] = zeros_in_zip(name, 2**28)
    with pytest.raises(UserError, match="MiB says that it holds 0.25 GiB, which no archive"):
        download_model(model_at(f"{site.url}/vq.zip"), tmp_path, patience=QUICK)
    assert list((tmp_path / "logs" / "m").iterdir()) == []


def test_archives_give_no_more_than_they_claim(site: Site, tmp_path: Path) -> None:
    raw = bytearray(zeros_in_zip("model.ckpt", 2**24))
    place = raw.index(b"PK\x01\x02")
    raw[place + 24 : place + 28] = (10).to_bytes(4, "little")
    site.files["/vq.zip"] = bytes(raw)
    with pytest.raises(UserError, match="is no archive that can be unpacked: Bad CRC-32"):
        download_model(model_at(f"{site.url}/vq.zip"), tmp_path, patience=QUICK)
    assert list((tmp_path / "logs" / "m").iterdir()) == []


@pytest.mark.parametrize("name", ["../x.ckpt", "/x.ckpt", "a/../../../x.ckpt"])
def test_archives_stay_in_their_folder(site: Site, tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, checkpoint())
    site.files["/vq.zip"] = buffer.getvalue()
    with pytest.raises(UserError, match="names a file outside the model's folder"):
        download_model(model_at(f"{site.url}/vq.zip"), tmp_path, patience=QUICK)
    assert not list(tmp_path.rglob("x.ckpt"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_that_come_with_us_build(path: Path) -> None:
    assert path.stem in published_models()
    with torch.device("meta"):
        instantiate_from_config(load_config([path]).model)


def test_a_bare_checkpoint_gets_its_config(site: Site, tmp_path: Path) -> None:
    site.files["/last.ckpt"] = checkpoint()
    model = Published("vq_f8", "a model", "-", "logs/vq_f8", (f"{site.url}/last.ckpt",))
    folder = download_model(model, tmp_path, patience=QUICK)
    assert load_config(find_run(folder).configs).model.params.n_embed == 16384
    for damaged in ("{", "[]", "{}"):
        (folder / RECORD).write_text(damaged)
        with pytest.raises(UserError, match="is damaged; delete it"):
            download_model(model, tmp_path, patience=QUICK)
    (folder / RECORD).unlink()
    (folder / "config.yaml").write_text("model: {}\n")  # of the user's
    download_model(model, tmp_path, patience=QUICK)
    assert (folder / "config.yaml").read_text() == "model: {}\n"


def test_a_file_of_another_size_than_announced_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/last.ckpt"] = checkpoint()
    for size in (None, len(checkpoint()) + 1):
        announced = [RemoteFile(f"{site.url}/last.ckpt", "last.ckpt", size)]
        fetching = {"patience": QUICK, "resolve": lambda _, files=announced: files}
        if size is None:
            assert download_model(model_at("x"), tmp_path / "a", **fetching).is_dir()
        else:
            with pytest.raises(UserError, match=f"instead of {size:,}"):
                download_model(model_at("x"), tmp_path / "b", **fetching)


def test_the_run_nearest_to_the_top_is_taken() -> None:
    paths = ["a/deeper/ckpts/last.ckpt", "z/ckpts/last.ckpt", "z/configs/a.yaml"]
    placed = _in_run_layout([RemoteFile(path, path) for path in paths])
    expected = ["a/deeper/checkpoints/last.ckpt", "checkpoints/last.ckpt", "configs/a.yaml"]
    assert [file.path for file in placed] == expected


def test_a_model_of_unknown_sizes_says_so(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one published checkpoint there is no config: none is made up."""
    name, model = "oi_scene_125m", build(unconditional_config())
    published = published_models()[name]
    assert "config unknown here" in published.what
    buffer = io.BytesIO()
    torch.save({"state_dict": model.state_dict()}, buffer)
    site.files["/last.ckpt"] = buffer.getvalue()
    local = replace(published, addresses=(f"{site.url}/last.ckpt",))
    monkeypatch.setattr("scripts.download_models.published_models", lambda: {name: local})
    main([name, "--root", str(tmp_path)])
    assert "it came without a config" in capsys.readouterr().out
    folder = tmp_path / published.folder
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "last.ckpt"]
    with pytest.raises(UserError, match="name its YAML with --base"):
        load_run(folder)
    OmegaConf.save({"model": unconditional_config(gpt={"n_layer": 2})}, tmp_path / "own.yaml")
    with pytest.raises(UserError, match="n_layer is 2, but 1 in the checkpoint"):
        load_run(folder, [tmp_path / "own.yaml"])
    loaded, _, _ = load_run(
        folder, [tmp_path / "own.yaml"], ["model.params.transformer_config.params.n_layer=1"]
    )
    assert torch.equal(loaded.transformer.pos_emb, model.transformer.pos_emb)


def test_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    def resolve(address: str) -> list[RemoteFile]:
        return [RemoteFile("http://127.0.0.1:1/x", "../../../evil.ckpt")]

    with pytest.raises(UserError, match="outside the model"):
        download_model(model_at("x"), tmp_path, resolve=resolve)


def test_addresses_of_single_files(site: Site) -> None:
    drive = "https://drive.google.com/file/d/1AbC-d_9/view"
    query = "id=1AbC-d_9&export=download&confirm=t"  # or a page asks whether one is sure
    [file] = remote_files(drive)
    assert file.url == f"https://drive.usercontent.google.com/download?{query}"
    site.files["/f/abc/"] = b"<html>"
    [file] = remote_files(f"{site.url}/f/abc/")
    assert (file.url, file.path) == (f"{site.url}/f/abc/?dl=1", "checkpoints/last.ckpt")
    with pytest.raises(UserError, match="cannot be reached"):
        remote_files(f"{site.url}/gone")


def test_a_wrong_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (([], "--list"), (["cin_transfomer"], "mean 'cin_transformer'")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
