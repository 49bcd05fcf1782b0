"""The paper's figures from the command line, on tiny runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.figures import main
from taming.command_line import Parser
from taming.completion_script import words_of
from taming.downloads import file_hash
from taming.evaluation.figures.samples import order_picture
from taming.evaluation.figures.sampling_cost import StandIn
from taming.evaluation.sources.folder import FolderSource
from taming.modules.transformer.permuter import SpiralOut
from taming.pictures import HEAD, enlarged, to_pillow
from taming.sampling import SampleSettings, requests_for_labels, sample_images
from taming.sampling.arguments import RunArguments
from tests.documents import ROOT, blocks_of, commands_in
from tests.kit.images import image_folder
from tests.kit.models import SPIRAL, tiny_model, transformer_config, unconditional_config
from tests.kit.runs import tiny_run
from tests.modules.losses.backbones import backbone_file
from tests.workplace import run_script

TINY = ("--extractor", "tests.kit.extractor:TinyExtractor")
CPU = ("--device", "cpu")


pytestmark = pytest.mark.usefixtures("cache")


def log_losses(run: Path, losses: dict[int, float]) -> None:
    table = run / "csv" / "first" / "metrics.csv"
    table.parent.mkdir(parents=True)
    lines = [f"0,{step},{loss}" for step, loss in losses.items()]
    table.write_text("\n".join(["epoch,step,val/loss", *lines]) + "\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run in the order of rows and one in a spiral, with classes and losses."""
    root = tmp_path_factory.mktemp("logs")
    rows = tiny_run(root / "rows", validation=labeled())
    spiral = tiny_run(
        root / "spiral", transformer_config(permuter_config=SPIRAL), validation=labeled()
    )
    log_losses(rows, {10: 3.0, 20: 2.5, 30: 2.25})
    log_losses(spiral, {10: 3.1, 20: 2.75})
    return str(rows), str(spiral)


def labeled() -> dict[str, Any]:
    return {"target": f"{__name__}.Labeled", "params": {}}


class Labeled(torch.utils.data.Dataset[dict[str, Any]]):
    """Noise of 8 x 8 pixels and classes below 5."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.random.RandomState(self.seed + index).rand(8, 8, 3).astype(np.float32) * 2 - 1
        return {"image": image, "class_label": index}


def result(folder: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert loaded["command"][:2] == ["scripts/figures.py", name]
    return loaded


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_neighbors_by_lpips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples that are in the training set have themselves as neighbors, at distance 0."""
    samples = image_folder(tmp_path / "samples", 2, 16, 16)
    reference = image_folder(tmp_path / "reference", 4, 16, 16, seed=300)
    for n in range(2):
        (reference / f"z{n}.png").write_bytes((samples / f"{n:03}.png").read_bytes())
    vgg = backbone_file("vgg", tmp_path, monkeypatch)
    sets = ["neighbors", str(samples), str(reference), "--vgg_path", str(vgg), *CPU]
    main([*sets, "--neighbors", "3", "-o", str(tmp_path / "out")])
    found = result(tmp_path / "out", "neighbors")
    nearest = [list(row.items()) for row in found["metrics"]["nearest"].values()]
    assert [(row[0][0], len(row)) for row in nearest] == [("4", 3), ("5", 3)]
    assert [row[0][1] for row in nearest] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert found["protocol"]["network"] == "vgg" and found["protocol"]["candidates"] is None
    assert found["sets"]["samples"]["shown"]["fingerprint"] == FolderSource(samples).fingerprint()
    assert found["sets"]["reference"]["fingerprint"] == FolderSource(reference).fingerprint()
    picture = pixels(tmp_path / "out" / "neighbors.png")[HEAD + 8 + HEAD - 4 :]
    np.testing.assert_array_equal(picture[:128, 8:136], picture[:128, 152:280])
    assert "| 000.png |" in capsys.readouterr().out
    main([*sets, "--neighbors", "1", "--candidates", "2", *TINY, "-o", str(tmp_path / "two")])
    two = result(tmp_path / "two", "neighbors")
    assert [list(row) for row in two["metrics"]["nearest"].values()] == [["4"], ["5"]]
    assert two["protocol"]["features"]["layers"] == ["16"]
    assert two["sets"]["reference"] == found["sets"]["reference"]


def test_neighbors_without_lpips_draw_no_samples(
    runs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("TAMING_VGG16", raising=False)
    reference = image_folder(tmp_path / "reference", 2, 8, 8)
    monkeypatch.setattr("taming.evaluation.figures.neighbor_command.chosen_samples", None)
    with pytest.raises(SystemExit):
        main(["neighbors", runs[0], str(reference), *TINY, *CPU])
    message = capsys.readouterr().err
    assert "VGG16" in message and message.endswith("or use --by features\n")
    assert "left out" not in message


def test_neighbors_of_a_runs_samples_by_features(runs: tuple[str, str], tmp_path: Path) -> None:
    reference = image_folder(tmp_path / "reference", 4, 8, 8)
    flags = ["--by", "features", "-n", "3", "--classes", "1", "--rows", "2", *TINY, *CPU]
    main(["neighbors", runs[0], str(reference), *flags])
    found = result(Path(runs[0]) / "figures", "neighbors")
    assert list(found["metrics"]["nearest"]) == ["0", "2"]
    assert found["sets"]["samples"]["kind"] == "run"


def test_likelihoods_of_runs_and_their_curves(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["likelihood", "-r", runs[0], "-r", runs[1], *CPU, "-n", "2", "-o", str(tmp_path)])
    found = result(tmp_path, "likelihood")
    scores = found["metrics"]
    assert scores["rows"]["images"] == 2
    assert scores["rows"]["nats_per_token"] != scores["spiral"]["nats_per_token"]
    assert found["protocol"]["spiral"]["order"] == "SpiralOut"
    equal = {name: logged["at_equal_steps"] for name, logged in scores["logged"].items()}
    assert equal == {"rows": 2.5, "spiral": 2.75}
    printed = capsys.readouterr().out
    assert "| data " not in printed  # the same for both
    assert "at step 20" in printed and f"| {scores['rows']['nats_per_token']:.4f} " in printed
    assert pixels(tmp_path / "likelihood.png").shape[0] > 300
    main(["likelihood", "-r", runs[0], "-r", runs[1], "--logs_only", "-o", str(tmp_path / "logs")])
    assert list(result(tmp_path / "logs", "likelihood")["metrics"]) == ["logged"]


def test_likelihood_of_a_run_without_logs(
    runs: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = tiny_run(tmp_path / "silent", validation=labeled())
    main(["likelihood", "-r", runs[0], "-r", str(silent), *CPU, "-o", str(tmp_path / "out")])
    assert list(result(tmp_path / "out", "likelihood")["metrics"]) == ["rows", "silent"]
    assert "has logged no val/loss" in caplog.text
    assert not (tmp_path / "out" / "likelihood.png").exists()


def test_likelihoods_of_different_data_say_so(
    runs: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = {"target": f"{__name__}.Labeled", "params": {"seed": 10}}
    run = tiny_run(tmp_path / "other", validation=other)
    main(["likelihood", "-r", runs[0], "-r", str(run), *CPU, "-o", str(tmp_path / "out")])
    found = result(tmp_path / "out", "likelihood")
    hashes = [found["sets"][name]["fingerprint"][:8] for name in ("rows", "other")]
    table = capsys.readouterr().out
    assert "| data " in table and all(text in table for text in hashes)
    assert "evaluated on different items" in caplog.text


def test_orders_beside_samples_of_the_same_seeds(runs: tuple[str, str], tmp_path: Path) -> None:
    flags = ["--samples", "2", "--seed", "3", "--label", "4", "--top_k", "20", *CPU]
    main(["orders", "-r", runs[0], "-r", runs[1], *flags, "-o", str(tmp_path)])
    found = result(tmp_path, "orders")
    assert list(found["metrics"]) == ["Identity: rows", "SpiralOut: spiral"]
    hashes = {
        name: file_hash(Path(run, "checkpoints", "last.ckpt"))
        for name, run in zip(("rows", "spiral"), runs, strict=True)
    }
    assert {name: about["checkpoint_hash"] for name, about in found["sets"].items()} == hashes
    assert pixels(tmp_path / "orders.png").shape[0] > 300
    page = pixels(tmp_path / "orders-samples.png")
    # The order: every one of the 4 x 4 codes as a square of 32 pixels, lighter the later.
    left, top, caption = 8, HEAD + 8, HEAD - 4
    second = top + caption + 128 + 8
    order = page[second + caption : second + caption + 128 : 32, left : left + 128 : 32, 0]
    spiral = SpiralOut(4, 4)(torch.arange(16)[None])[0]
    assert order.flatten().argsort(kind="stable").tolist() == spiral.tolist()
    model = tiny_model()
    requests = requests_for_labels(model, [4], 2)
    samples = list(sample_images(model, requests, SampleSettings(top_k=20), seed=3))
    expected = np.asarray(enlarged(to_pillow(samples[1].image), 128))
    right = page.shape[1] - 8
    np.testing.assert_array_equal(page[top : top + 128, right - 128 : right], expected)


def test_models_without_one_order_are_named_and_drawn_as_they_are() -> None:
    told = {"target_positions": True}
    random = tiny_model(transformer_config(told, order="random"))
    assert random.order_name == "random"
    order = order_picture(random, seed=3)
    assert order is not None and not np.array_equal(order, order_picture(random, seed=4))
    by_rows = order_picture(tiny_model())
    assert by_rows is not None and not np.array_equal(order, by_rows)
    assert np.array_equal(np.sort(order, axis=None), np.sort(by_rows, axis=None))  # each rank once
    annealed = tiny_model(transformer_config(told, order="annealed"))
    assert annealed.order_name == "annealed"
    assert np.array_equal(order_picture(annealed), by_rows)  # type: ignore[arg-type]
    shared = tiny_model(transformer_config(told, order="annealed", raster_share=0.3))
    assert np.array_equal(order_picture(shared, seed=3), order)  # type: ignore[arg-type]
    masked = tiny_model(transformer_config({"attention": "full", "block_size": 17}))
    assert masked.order_name == "masked" and order_picture(masked) is None


def test_cost_of_stand_ins_and_of_a_run(runs: tuple[str, str], tmp_path: Path) -> None:
    small = ["--window", "4", "--layers", "1", "--heads", "2", "--width", "16", "--whole"]
    flags = ["--size", "16", "--batch_size", "2", *CPU, "-o", str(tmp_path)]
    main(["cost", "--factors", "2,4", *small, *flags])
    found = result(tmp_path, "cost")
    tokens = {name: cost["tokens"] for name, cost in found["metrics"].items()}
    assert tokens == {"stand-in f2": 64, "stand-in f4": 16}
    assert found["protocol"]["stand_in"]["window"] == 4 and found["protocol"]["size"] == [16, 16]
    assert pixels(tmp_path / "cost.png").shape[0] > 300
    main(["cost", "-r", runs[0], *flags])
    found = result(tmp_path, "cost")
    assert found["sets"]["rows"]["global_step"] == 7 and found["sets"]["rows"]["checkpoint_hash"]
    (cost,) = found["metrics"].values()
    assert (cost["f"], cost["tokens"], cost["measured"]) == (2, 64, "trial")


def test_sizes_of_one_sample(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--seed", "5", "--label", "2", *CPU, "-o", str(tmp_path)]
    main(["sizes", "-r", runs[0], *flags])
    assert len(result(tmp_path, "sizes")["sets"]["run"]["checkpoint_hash"]) == 64
    found = result(tmp_path, "sizes")["metrics"]
    assert {name: one["tokens"] for name, one in found.items()} == {
        "8 x 8": 16,
        "16 x 16": 64,
        "32 x 32": 256,
    }
    page = pixels(tmp_path / "sizes.png")
    assert page.shape == (8 + 32 + HEAD - 4 + 8, 8 + 8 + 8 + 16 + 8 + 32 + 8, 3)
    model = tiny_model()
    request = requests_for_labels(model, [2], 1)
    (sample,) = sample_images(model, request, SampleSettings(top_k=250), seed=5)
    expected = np.asarray(to_pillow(sample.image))
    np.testing.assert_array_equal(page[8 + HEAD - 4 : 16 + HEAD - 4, 8:16], expected)
    main(["sizes", "-r", runs[0], *flags, "--sizes", "8,16x24"])
    assert list(result(tmp_path, "sizes")["metrics"]) == ["8 x 8", "16 x 24"]
    assert "| 16 x 24        |" in capsys.readouterr().out


def test_sizes_under_a_condition_of_data(tmp_path: Path) -> None:
    """The condition of one item, resized: an image, as another first stage knows it."""
    stage = unconditional_config()["params"]["first_stage_config"]
    config = unconditional_config(cond_stage_config=stage, cond_stage_key="image")
    pictures = {"target": "tests.scripts.test_make_samples.Pictures"}
    run = tiny_run(tmp_path / "run", config, validation=pictures)
    flags = ["--item", "2", "--sizes", "8x12,16x24", *CPU]  # which is wider than high
    main(["sizes", "-r", str(run), *flags])
    found = result(run / "figures", "sizes")
    assert {name: one["tokens"] for name, one in found["metrics"].items()} == {
        "8 x 12": 24,
        "16 x 24": 96,
    }
    assert found["protocol"]["item"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["neighbours"], "there is no figure 'neighbours'; did you mean"),
        (["neighbors", "RUN"], "give SAMPLES and a TRAINING_SET"),
        (["neighbors", "RUN", "RUN", "--by", "pixels"], "--by is lpips or features"),
        (["neighbors", "RUN", "RUN", "--net", "vit"], "--net is vgg or alex"),
        (["neighbors", "RUN", "RUN", "--by", "features", "--candidates", "3"], "leave one of"),
        (["likelihood"], "--resume names the runs"),
        (["likelihood", "-r", "RUN", "--logs_only", "--value", "val/x"], "has logged no val/x"),
        (["orders", "-r", "SILENT"], "has logged no val/loss"),
        (["orders", "-r", "RUN", "--label", "9"], "class 9 is out of range"),
        # Before anything is measured.
        (["cost", "--factors", "2,3"], "f is a power of two such as 8, not 3"),
        (["cost", "--factors", "2,4", "--size", "258"], "--size 258,258 is of no whole codes at f"),
        (["cost", "--factors", "0"], "--factors: a list takes numbers above 0"),
        (["cost", "-r", "RUN", "--size", "7"], "must be a multiple of 2 pixels"),
        (["cost", "-r", "RUN", "--size", "8,7"], "the width must be a multiple of 2 pixels"),
        (["cost", "-r", "RUN", "--size", "7,8"], "the height must be a multiple of 2 pixels"),
        (["sizes", "-r", "RUN", "--sizes", "8x7"], "the width must be a multiple of 2 pixels"),
        (["sizes"], "--resume names the run"),
        (["sizes", "-r", "RUN", "--sizes", "8,x"], "--sizes: a size is height,width"),
        (["sizes", "-r", "RUN", "--item", "9"], "--item is from 0 to 2, not 9"),
        (["sizes", "-r", "SPIRAL", "--sizes", "16"], "this model samples in the order SpiralOut"),
        (["sizes", "-r", "nowhere"], "there is no run or checkpoint at nowhere"),
    ],
)
def test_one_sentence_for_what_cannot_be(
    runs: tuple[str, str],
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StandIn, "build", lambda *_: pytest.fail("something was measured"))
    places = {"RUN": runs[0], "SPIRAL": runs[1]}
    if "SILENT" in words:
        places["SILENT"] = str(tiny_run(tmp_path / "silent"))
    with pytest.raises(SystemExit) as stop:
        main([places.get(word, word) for word in words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("words", [["cost"], ["orders", "-r", "RUN"], ["likelihood", "-r", "RUN"]])
def test_matplotlib_is_asked_for_before_anything_is_measured(
    runs: tuple[str, str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for measured in (StandIn, "build"), (RunArguments, "load"):
        monkeypatch.setattr(*measured, lambda *_: pytest.fail("something was measured"))
    with pytest.raises(SystemExit):
        main([runs[0] if word == "RUN" else word for word in words])
    assert "plots need matplotlib" in capsys.readouterr().err


FIGURES_OF_PAPER = [
    block
    for block in blocks_of(ROOT / "docs" / "evaluation.md")
    if block.heading == "The paper's figures"
]
COMMANDS = commands_in(FIGURES_OF_PAPER[0].text)
SMALLER = {
    "--sizes 256,512,1024": "--sizes 8,16 --device cpu",
    "--factors 2,4,8,16 --size 256": (
        "--factors 2,4 --size 16 --window 4 --layers 1 --width 16 --device cpu"
    ),
    "FOLDER_OF_TRAINING_IMAGES": "IMAGES -n 2 --classes 1 --extractor "
    "tests.kit.extractor:TinyExtractor --device cpu",
    "neighbors RUN": "neighbors RUN --by features",
    "fid,isc": "fid,isc --isc_splits 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_documentation(
    command: str, runs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand there, at small sizes, with the first value of each setting of the sweep."""
    monkeypatch.setattr("sys.path", [str(ROOT), *sys.path])
    text = command.replace("logs/<run>", "RUN").replace("logs/<another>", runs[1])
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    text = re.sub(r"(=[\d.]+)[\d.,]*(?=[;\"])", r"\1", text)
    images = image_folder(tmp_path / "images", 3, 8, 8)
    text = text.replace("RUN", runs[0]).replace("IMAGES", str(images))
    _, script, *words = shlex.split(text)
    run_script(str(ROOT / script), [*words, "-o", str(tmp_path / "out")])
    assert list((tmp_path / "out").glob("*.json")) and list((tmp_path / "out").glob("*.png"))


def test_help_has_the_flags_of_all_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parser, "program", None)  # which `taming` sets in its process
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert text.count("usage: figures.py ") == 5 and "--factors" in text and "--item" in text
    with pytest.raises(SystemExit):
        main(["cost", "--help"])
    assert "usage: figures.py cost" in capsys.readouterr().out
    assert {"neighbors", "sizes", "--factors", "--item", "-r"} <= set(words_of(main))
