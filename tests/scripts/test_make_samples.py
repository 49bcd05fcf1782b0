from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

from scripts.make_samples import main
from taming.errors import DamagedImage
from taming.sampling import SampleSettings, items, sample_images
from taming.sampling.conditions import read_picture
from taming.sampling.folder import RECORD
from tests.kit.models import tiny_model, transformer_config
from tests.kit.runs import tiny_run

SEGMENTED = {
    "cond_stage_config": "__is_first_stage__",
    "cond_stage_key": "sketch",
    "transformer_config": {
        "target": "taming.modules.transformer.mingpt.GPT",
        "params": {"vocab_size": 23, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16},
    },
}


class Pictures(Dataset[dict[str, Any]]):
    """Random images with every kind of condition; the last is wider, and no whole tokens."""

    def __init__(self, count: int = 3, damaged: Sequence[int] = ()) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.damaged:
            raise DamagedImage(f"image {index} is damaged; replace it")
        generator = torch.Generator().manual_seed(index)
        width = 13 if index == 2 else 8
        pictures = torch.rand(2, 8, width, 3, generator=generator) * 2 - 1
        labels = torch.randint(4, (8, width), generator=generator)
        return {
            "image": pictures[0],
            "sketch": pictures[1],
            "segmentation": one_hot(labels, 4).float(),
            "coord": torch.linspace(0, 1, 8 * width).view(8, width),
            "class_label": index,
        }


def write_data(path: Path, count: int = 3) -> Path:
    dataset = {"target": f"{__name__}.Pictures", "params": {"count": count}}
    params = {"batch_size": 1, "validation": dataset}
    data = {"target": "main.DataModuleFromConfig", "params": params}
    OmegaConf.save(OmegaConf.create({"data": data}), path)
    return path


def make(run: Path, data: Path, out: Path, *flags: str) -> Path:
    main(["-r", str(run), "-b", str(data), "--outdir", str(out), "--device", "cpu", *flags])
    return out / "7_100_1.0"


def test_every_sample_has_its_k(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", transformer_config(**SEGMENTED))
    data = write_data(tmp_path / "data.yaml", 9)
    make(run, data, tmp_path / "out", "-k", "1,30", "--seed", "2")
    root = tmp_path / "out" / "7_1-30_1.0" / "samples"
    ks = {}
    for path in sorted(root.glob("*.png")):
        with Image.open(path) as image:
            record = json.loads(image.info[RECORD])
        assert record["top_k"] == [1, 30]
        ks[int(path.stem)] = record["own_top_k"]
    assert list(ks.values()) == SampleSettings(top_k=(1, 30)).own_top_k(2, range(9))
    for k in (1, 30):
        make(run, data, tmp_path / "alone", "-k", str(k), "--seed", "2")
        for number in (number for number in ks if ks[number] == k):
            alone = tmp_path / "alone" / f"7_{k}_1.0" / "samples" / f"{number:06}.png"
            with Image.open(alone) as one, Image.open(root / alone.name) as other:
                assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", ["class", "sketch", "none"])
def test_every_kind_of_condition(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "class": {},
        "sketch": SEGMENTED,
        "none": {"cond_stage_config": "__is_unconditional__"},
    }[kind]
    run = tiny_run(tmp_path / "run", transformer_config(**changes))
    root = make(run, write_data(tmp_path / "data.yaml"), tmp_path / "out")
    said = re.findall("(.*) pixels are (.*) tokens for each image: about", capsys.readouterr().out)
    assert said == [("12 x 8", "24")]  # of the one that is not of the training size
    folders = sorted(path.name for path in root.iterdir())
    shown = [] if kind == "none" else ["conditioning"]
    assert folders == [*shown, "originals", "reconstructions", "samples"]
    for folder in folders:
        names = [path.name for path in sorted((root / folder).iterdir())]
        assert names == ["000000.png", "000001.png", "000002.png"]
        assert Image.open(root / folder / "000002.png").size == (12, 8)
    x, sketch = (Pictures()[2][key][:, :12].permute(2, 0, 1) for key in ("image", "sketch"))
    stage = tiny_model(transformer_config(**changes)).first_stage_model
    expected = {"originals": x, "reconstructions": stage(x[None])[0][0].clamp(-1, 1)}
    if kind == "sketch":
        expected["conditioning"] = sketch
    for folder, picture in expected.items():
        written = read_picture(root / folder / "000002.png")[0]
        assert (written - picture).abs().max() < 0.005, folder


def test_it_goes_on_and_batches_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = tiny_run(tmp_path / "run"), write_data(tmp_path / "data.yaml")
    given = []

    def sample(model: Any, requests: Any, settings: Any, **options: Any) -> Any:
        requests = list(requests)
        assert [r.label for r in requests] == [r.number for r in requests]  # as the data has it
        given.append((settings.top_p, options["batch_size"], options["seed"]))
        return sample_images(model, requests, settings, **options)

    monkeypatch.setattr(items, "sample_images", sample)
    flags = ("--seed", "3", "-p", "0.95")
    first = make(run, data, tmp_path / "a", "--batch_size", "1", *flags)
    assert given == [(0.95, 1, 3)] * 2  # for each of the two sizes
    second = make(run, data, tmp_path / "b", "-n", "2", *flags)
    assert len(list((second / "samples").iterdir())) == 2
    make(run, data, tmp_path / "b", "-n", "9", *flags)
    for path in (first / "samples").iterdir():
        assert path.read_bytes() == (second / "samples" / path.name).read_bytes()


def test_data_that_have_changed_are_other_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tiny_run(tmp_path / "run"), write_data(tmp_path / "data.yaml")
    make(run, data, tmp_path / "out")
    make(run, data, tmp_path / "out")
    assert "(0 of them new)" in capsys.readouterr().out
    original = Pictures.__getitem__

    def other(self: Pictures, index: int) -> dict[str, Any]:
        return original(self, index) | ({"class_label": 4} if index == 1 else {})

    monkeypatch.setattr(Pictures, "__getitem__", other)
    with pytest.raises(SystemExit):
        make(run, data, tmp_path / "out")
    assert "000001.png was sampled with another condition" in capsys.readouterr().err


def test_damaged_images_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tiny_run(tmp_path / "run"), write_data(tmp_path / "data.yaml", 4)
    whole = make(run, data, tmp_path / "whole") / "samples"
    for damaged, new in (("[0,2]", 2), ("[0,3]", 1)):  # the latter has a sample of before
        with pytest.raises(SystemExit) as stop:
            make(run, data, tmp_path / "out", f"data.params.validation.params.damaged={damaged}")
        said = capsys.readouterr()
        assert stop.value.code == 1 and "left out: image 0 is damaged; replace it" in said.err
        assert "2 images could not be used; all others were" in said.err
        assert f"({new} of them new)" in said.out
    made = sorted((tmp_path / "out" / whole.parent.name / "samples").iterdir())
    assert [path.stem for path in made] == ["000001", "000002", "000003"]
    for path in made:
        assert path.read_bytes() == (whole / path.name).read_bytes()


def test_greedy_samples_are_the_models(tmp_path: Path) -> None:
    run, data = tiny_run(tmp_path / "run"), write_data(tmp_path / "data.yaml")
    main(["-r", str(run), "-b", str(data), "--outdir", str(tmp_path), "--temperature", "0"])
    model = tiny_model()
    c = torch.tensor([[0]])
    image = model.decode_to_img(model.sample(c[:, :0], c, 16), (1, 4, 4, 4))
    written = read_picture(tmp_path / "7_100_0.0" / "samples" / "000000.png")
    assert (written - image.clamp(-1, 1)).abs().max() < 0.005


def test_which_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["-r", str(run), "--outdir", str(tmp_path)])
    assert "no 'data' section" in capsys.readouterr().err
    data = write_data(tmp_path / "data.yaml", 1)
    flags = ["-r", str(run), "-c", str(data), "--ignore_base_data", "--outdir", str(tmp_path)]
    main([*flags, "data.params.validation.params.count=2"])
    assert len(list((tmp_path / "7_100_1.0" / "samples").iterdir())) == 2
    with pytest.raises(SystemExit):
        main([*flags, "--split", "test"])
    assert "no 'test'" in capsys.readouterr().err
