from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset, Subset

from scripts import evaluate_transformer
from scripts.evaluate_transformer import main
from taming.evaluation.cache import cache_folder
from taming.evaluation.metrics.likelihood import ModelLikelihood, measure_likelihood
from taming.evaluation.results import read_result
from taming.evaluation.runner import Runner
from taming.evaluation.sources.dataset import ItemSource
from tests.kit.models import tiny_model
from tests.kit.processes import in_two_processes
from tests.kit.runs import newest, tiny_run


class Pictures(Dataset[dict[str, Any]]):
    """Random images of 5 classes; `seed` makes others, and item `wide` is of another size."""

    def __init__(self, count: int = 7, seed: int = 0, wide: int | None = None) -> None:
        self.count, self.seed, self.wide = count, seed, wide

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        width = 12 if index == self.wide else 8
        image = torch.rand(8, width, 3, generator=generator) * 2 - 1
        return {"image": image.numpy(), "class_label": index % 3, "name": str(index)}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tiny_run(tmp_path / "run")
    dataset = {"target": f"{__name__}.Pictures", "params": {"count": 7}}
    data = {"target": "main.DataModuleFromConfig"}
    data["params"] = {"batch_size": 2, "validation": dataset, "train": dataset}
    OmegaConf.save(OmegaConf.create({"data": data}), run / "configs" / "0-project.yaml")
    return run


def evaluate(run: Path, *flags: str) -> dict[str, Any]:
    main(["-r", str(run), "--device", "cpu", "--workers", "0", *flags])
    return read_result(newest(run / "evaluation", "transformer-*.json"))


def whole(count: int = 7) -> Any:
    items = [Pictures()[index] for index in range(count)]
    images = torch.stack([torch.from_numpy(item["image"]) for item in items])
    labels = torch.tensor([item["class_label"] for item in items])
    batches = [{"image": images, "class_label": labels}]
    return measure_likelihood(tiny_model(), batches).compute()


def test_numbers_tables_and_plots(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(run, "--batch_size", "3")
    expected = whole()
    for name in ("nats_per_token", "bits_per_dimension", "top_1"):
        assert result["metrics"][name] == pytest.approx(getattr(expected, name), rel=1e-6)
    assert {label: row["images"] for label, row in result["by_class"].items()} == {
        "0": 3,
        "1": 2,
        "2": 2,
    }
    positions = torch.tensor(result["by_position"])
    assert positions.shape == (4, 4)
    assert float(positions.mean()) == pytest.approx(expected.nats_per_token, rel=1e-6)
    assert result["sets"]["images"]["images"] == 7
    assert result["protocol"]["global_step"] == 7 and result["protocol"]["weights"] is None
    (path,) = (run / "evaluation").glob("transformer-*.md")
    text = path.read_text()
    assert "| nats_per_token" in text and "| class |" in text
    assert f"]({path.stem}-positions.png)" in text
    for name in ("positions", "classes"):
        with Image.open(run / "evaluation" / f"{path.stem}-{name}.png") as picture:
            assert picture.width > 300
    assert "nats per token" in capsys.readouterr().out


def test_batches_workers_and_processes_change_nothing(run: Path) -> None:
    one = evaluate(run, "--batch_size", "1")
    flags = ["--device", "cpu", "--workers", "1", "--batch_size", "4"]
    in_two_processes(main, ["-r", str(run), *flags])
    two = read_result(newest(run / "evaluation", "transformer-*.json"))
    assert two["hardware"]["processes"] == 2
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert two["sets"]["images"]["fingerprint"] == one["sets"]["images"]["fingerprint"]
    assert [row["images"] for row in two["by_class"].values()] == [3, 2, 2]


def test_an_interrupted_evaluation_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--batch_size", "2", "--save_every", "0")
    whole = evaluate(run, *flags)
    seen: list[int] = []
    update = ModelLikelihood.update

    def counted(self: Any, images: Any) -> None:
        if len(seen) >= 4 and stop:
            raise KeyboardInterrupt
        update(self, images)
        seen.extend(image.index for image in images)

    monkeypatch.setattr(ModelLikelihood, "update", counted)
    for changed, again in ((False, [4, 5, 6]), (True, list(range(7)))):
        stop = True
        seen.clear()
        with pytest.raises(SystemExit):
            evaluate(run, *flags)
        assert "what is counted is kept every 0 s, and the same com" in capsys.readouterr().err
        assert len(list(cache_folder().glob("*.partial.*"))) == 1
        stop = False
        seen.clear()
        # Of other images, what was seen of the first ones does not count.
        override = ["data.params.validation.params.seed=1"] if changed else []
        result = evaluate(run, *flags, *override)
        assert seen == again
        assert (result["metrics"] == whole["metrics"]) != changed
        assert len(list(cache_folder().glob("*.partial.*"))) == changed


def test_what_decides_items_and_numbers_is_in_the_key(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    seeds: list[int] = []
    maps: list[Any] = []

    def stop(self: Any, source: Any, make: Any, key: str, label: str) -> None:
        keys.append(key)
        assert isinstance(source, ItemSource) and isinstance(source.dataset, Subset)
        seeds.append(source.dataset.dataset.seed)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "run", stop)
        for seed, precision in enumerate(("fp32", "bf16", "fp32")):
            with pytest.raises(SystemExit):
                evaluate(run, "--seed", str(seed), "--precision", precision)
            if seed == 1:
                checkpoint = torch.load(run / "checkpoints" / "last.ckpt")
                torch.save(checkpoint | {"global_step": 8}, run / "checkpoints" / "last.ckpt")
        for weights in (("--weights", "raw"), ()):
            with pytest.raises(SystemExit):
                evaluate(run, "--seed", "2", *weights)
    assert seeds == [0, 1, 2, 2, 2]
    assert len(set(keys)) == 4 and keys[2] == keys[4]

    def draw(values: Any, path: Path, label: str) -> Path:
        maps.append(values)
        return path

    monkeypatch.setattr(evaluate_transformer, "plot_map", draw)
    result = evaluate(run)
    assert maps[0].tolist() == result["by_position"]


@pytest.mark.parametrize("item", [None, [1, 2]])
def test_items_that_are_no_dicts(
    run: Path, item: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Pictures, "__getitem__", lambda *_: item)
    with pytest.raises(SystemExit):
        evaluate(run)
    told = f"error: item 0 of the data is a {type(item).__name__}; items must be dicts such as"
    assert capsys.readouterr().err.splitlines()[-1].startswith(told)


def test_the_first_images_of_a_split(run: Path) -> None:
    config = run / "configs" / "0-project.yaml"
    data = OmegaConf.load(config)
    data.data.params.train.params.count = 5
    OmegaConf.save(data, config)
    evaluate(run, "-n", "3")
    result = evaluate(run, "-n", "4", "--split", "train")
    assert len(list((run / "evaluation").glob("*.json"))) == 2  # neither takes the other's place
    assert result["sets"]["images"]["dataset"]["params"]["count"] == 5
    assert result["metrics"]["images"] == 4
    assert result["sets"]["images"]["split"] == "train"
    expected = whole(4).nats_per_token
    assert result["metrics"]["nats_per_token"] == pytest.approx(expected, rel=1e-6)


def test_without_matplotlib(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert evaluate(run)["metrics"]
    assert caplog.text.count("plots need matplotlib") == 2
    assert not list((run / "evaluation").glob("*.png"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--split", "test"], "no 'test'"),
        (["data.params.validation.params.wide=3"], "likelihoods are of images of one size"),
        (["data.params.validation.params.count=0"], "there are no images to evaluate"),
        (["model.params.cond_stage_key=depth"], "the data has no 'depth'"),
    ],
)
def test_one_sentence_for_what_cannot_be(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate(run, *flags)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
