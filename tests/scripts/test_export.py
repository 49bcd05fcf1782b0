"""The commands that write models for other programs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import taming
from scripts import export, extract_submodel, push
from taming.checkpoint import load_run, read_checkpoint
from taming.errors import UserError
from taming.export.weights import save_weights
from tests.kit.models import DALLE, build, ddconfig, first_stage_config, unconditional_config
from tests.scripts.test_no_room import no_room
from tests.support import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = unconditional_config()
    return write_run(tmp_path / "run", config, build(config).state_dict())


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_submodel_becomes_a_checkpoint(
    run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = run / "checkpoints" / "last.ckpt", tmp_path / f"out{suffix}"
    extract_submodel.main([str(source), str(target), "transformer"])
    part = read_checkpoint(target)["state_dict"]
    whole = read_checkpoint(source)["state_dict"]
    assert capsys.readouterr().out == f"{len(part)} tensors of transformer are in {target}\n"
    plain = load_file(target) if suffix == ".safetensors" else torch.load(target)["state_dict"]
    assert plain.keys() == part.keys()
    assert {f"transformer.{n}" for n in part} == {n for n in whole if n.startswith("transformer.")}
    assert all(torch.equal(tensor, whole[f"transformer.{n}"]) for n, tensor in part.items())


def test_the_first_stage_is_taken_by_default_and_can_be_used(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "vqgan.ckpt"
    extract_submodel.main([str(run / "checkpoints" / "last.ckpt"), str(target)])
    model = build(first_stage_config(ckpt_path=str(target)))
    whole = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert torch.equal(
        model.encoder.conv_in.weight, whole["first_stage_model.encoder.conv_in.weight"]
    )


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.net._orig_mod."])
def test_submodels_of_wrapped_models(
    run: Path, tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    average = {f"{prefix}{n}": tensor + 1 for n, tensor in whole.items()}
    raw = {f"{prefix}{n}": tensor for n, tensor in whole.items()}
    torch.save({"model": raw, "model_ema": average}, tmp_path / "in.pt")
    for kind, shift in (("ema", 1), ("raw", 0)):
        target = str(tmp_path / f"{kind}.ckpt")
        extract_submodel.main([str(tmp_path / "in.pt"), target, "--weights", kind])
        state = read_checkpoint(target)["state_dict"]
        name = "encoder.conv_in.weight"
        assert torch.equal(state[name], whole[f"first_stage_model.{name}"] + shift)
    texts = [record.getMessage() for record in caplog.records]
    assert sum("in.pt: " in text and "'model" in text for text in texts) == 2
    again = str(tmp_path / "again.ckpt")
    torch.save({f"first_stage_model.{n}": t for n, t in state.items()}, tmp_path / "alone.pt")
    extract_submodel.main([str(tmp_path / "alone.pt"), again])
    assert read_checkpoint(again)["state_dict"].keys() == state.keys()


def test_which_weights_is_a_flag_of_all_scripts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    # Not mapped from the file, which is overwritten.
    raw = {n: tensor.clone() for n, tensor in read_checkpoint(checkpoint)["state_dict"].items()}
    average = {n: tensor + 1 if tensor.is_floating_point() else tensor for n, tensor in raw.items()}
    torch.save({"state_dict": raw, "ema": average}, checkpoint)
    for flags, shift in (([], 1), (["--weights", "ema"], 1), (["--weights", "raw"], 0)):
        export.main(["safetensors", str(run), str(tmp_path / "x.safetensors"), *flags])
        state = read_checkpoint(tmp_path / "x.safetensors")["state_dict"]
        assert torch.equal(state["transformer.head.weight"], raw["transformer.head.weight"] + shift)
    with pytest.raises(SystemExit):
        export.main(["safetensors", str(run), str(tmp_path / "y"), "--weights", "best"])
    assert "--weights takes raw or ema, not 'best'" in capsys.readouterr().err
    export.main(["safetensors", str(run), str(tmp_path / "y"), "--parts", "transformer"])
    assert not torch.equal(
        read_checkpoint(tmp_path / "y")["state_dict"]["first_stage_model.encoder.conv_in.weight"],
        average["first_stage_model.encoder.conv_in.weight"],
    )


def test_a_missing_submodel_names_what_there_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        extract_submodel.main([str(run / "checkpoints/last.ckpt"), str(tmp_path / "o.ckpt"), "gpt"])
    assert "no sub-model 'gpt'; it has first_stage_model, " in capsys.readouterr().err
    assert not (tmp_path / "o.ckpt").exists()


def test_safetensors_hold_the_whole_model(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    export.main(["safetensors", str(run), str(target)])
    loaded, _, _ = load_run(run)
    written = read_checkpoint(target)["state_dict"]
    assert written.keys() == loaded.state_dict().keys()


@pytest.mark.parametrize("kind", ["ema", "raw"])
@pytest.mark.parametrize("within", [False, True])
def test_averages_of_training_are_not_published(kind: str, within: bool, tmp_path: Path) -> None:
    """Readers would take them for the weights, which are those that were chosen."""
    stage = first_stage_config(use_ema=True, lossconfig=None)
    config = unconditional_config(first_stage_config=stage) if within else stage
    model = build(config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = model.first_stage_model if within else model
    if within:  # as transformers of earlier versions kept them
        averages = {n: t for n, t in build(stage).state_dict().items() if "model_ema." in n}
        state |= {f"first_stage_model.{n}": tensor + 1 for n, tensor in averages.items()}
    else:
        state["model_ema.encoderconv_inweight"] += 1
    run = write_run(tmp_path / "run", config, state)
    name = "encoder.conv_in.weight"
    average = kind == "ema" and not within  # a transformer is trained with the raw ones
    expected = trained.state_dict()[name] + average
    flags = ["--weights", "raw"] if kind == "raw" else []
    export.main(["safetensors", str(run), str(tmp_path / "x.safetensors"), *flags])
    push.main([str(run), "me/x", "--license", "mit", "--dry_run", str(tmp_path / "repo"), *flags])
    kept = taming.load(run, weights="raw" if flags else None)
    for model in (kept, *map(taming.load, (tmp_path / "x.safetensors", tmp_path / "repo"))):
        loaded = model.first_stage_model if within else model
        assert torch.equal(loaded.state_dict()[name], expected)
        averages = [module for n, module in loaded.named_modules() if n == "model_ema"]
        assert not (averages and within) and (averages or within or model is not kept)
        assert all(torch.equal(one.encoderconv_inweight, expected) for one in averages)
    for file in tmp_path.rglob("*.safetensors"):
        assert not any("model_ema" in name for name in load_file(file))


def test_safetensors_are_read_by_whom_other_files_are(tmp_path: Path) -> None:
    save_weights({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_no_room_for_weights(tmp_path: Path, name: str) -> None:
    with no_room(), pytest.raises(UserError, match=r"cannot write .*model\.\w+ \(File too large"):
        save_weights({"a": torch.ones(3)}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write .*{name}"):
        save_weights({"a": torch.ones(3)}, tmp_path / "file" / name)


def test_diffusers_take_the_first_stage_of_a_transformer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main(["diffusers", str(run), str(tmp_path / "theirs")])
    assert capsys.readouterr().out.splitlines() == [
        f"{run} is a transformer: its first stage alone is written",
        f"diffusers: {run} is in the folder {tmp_path}/theirs",
    ]
    export.main(["from_diffusers", str(tmp_path / "theirs"), str(tmp_path / "ours")])
    model, _, _ = load_run(tmp_path / "ours")
    assert model.decoder.resolution == ddconfig()["resolution"]


def test_diffusers_have_no_networks_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "dalle", DALLE, build(DALLE).state_dict())
    with pytest.raises(SystemExit):
        export.main(["diffusers", str(run), str(tmp_path / "theirs")])
    assert "this model, DalleVAE, has others; the format" in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()


def test_onnx_says_that_it_is_a_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = Path("ex.onnx/encoder.onnx"), Path("ex.onnx/decoder.onnx")
    monkeypatch.setattr(export, "to_onnx", lambda *_: files)
    export.main(["onnx", str(run), "ex.onnx"])
    first, last = capsys.readouterr().out.splitlines()
    assert "its first stage alone" in first
    assert last.endswith("is in the folder ex.onnx, as encoder.onnx and decoder.onnx")


def test_a_wrong_size_is_explained(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export.main(["onnx", str(run), str(tmp_path / "x"), "--size", "big"])
    assert "a size is height,width in pixels, such as 256,384, not 'big'" in capsys.readouterr().err


def test_a_submodel_has_no_parts_to_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        extract_submodel.main(["a.ckpt", str(tmp_path / "b.ckpt"), "--parts", "nope"])
    assert "unknown argument --parts" in capsys.readouterr().err
