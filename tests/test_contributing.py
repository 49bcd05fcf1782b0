"""The examples of CONTRIBUTING.md, written to files and run as it says."""

from __future__ import annotations

import csv
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import taming
from taming.evaluation.metrics.set_metrics import METRICS
from taming.evaluation.results import read_result
from taming.modules.vqvae.codebook import Codebook
from tests.documents import ROOT, Block, blocks_of, commands_in
from tests.workplace import Workplace

DOCUMENT = ROOT / "CONTRIBUTING.md"
BLOCKS = blocks_of(DOCUMENT)
FILE = re.compile(r"# (own/\w+\.(py|yaml))\n")
CHAPTERS = [block.heading for block in BLOCKS if block.heading.startswith("Add ")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The scratch folder, with the examples as files."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    (place.root / "own").mkdir()
    for block in BLOCKS:
        if match := FILE.match(block.text):
            (place.root / match[1]).write_text(block.text)
    return place


@pytest.fixture(autouse=True)
def in_the_folder(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(workplace.root)
    monkeypatch.syspath_prepend(str(workplace.root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace.root / "cache"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]


def test_names_are_in_the_files_that_are_named_beside_them() -> None:
    documents = [DOCUMENT, ROOT / "README.md", *ROOT.glob("docs/*.md")]
    beside = re.compile(r"`(\w+)`\s\(`(taming/[\w/]+\.py)`\)")
    named = {place for path in documents for place in beside.findall(path.read_text("utf-8"))}
    assert ("ImageFiles", "taming/data/base.py") in named and len(named) >= 4
    for name, file in named:
        text = (ROOT / file).read_text("utf-8")
        assert re.search(rf"^(class {name}\b|def {name}\b|{name}\b.* = )", text, re.MULTILINE)


def run(workplace: Workplace, heading: str) -> None:
    """The commands and the code, but for files, of a chapter."""
    for block in (block for block in BLOCKS if block.heading == heading):
        if block.language == "bash":
            for command in commands_in(block.text):
                workplace.run(command, "--log_every_n_steps", "1", "--val_check_interval", "2")
        elif not FILE.match(block.text):
            exec(block.text, {})


def newest(workplace: Workplace, name: str) -> Path:
    return workplace.root / workplace.run_of(name)


def logged(run: Path, column: str) -> list[float]:
    """What the CSV logger has of a value, in order."""
    (table,) = run.glob("csv/*/metrics.csv")
    rows = csv.DictReader(table.open())
    return [float(row[column]) for row in rows if row.get(column)]


def test_loss(workplace: Workplace) -> None:
    run(workplace, "Add a loss")
    trained = newest(workplace, "own_loss")
    assert logged(trained, "train/rec_loss") and logged(trained, "train/quant_loss")
    assert not any("discriminator" in n for n, _ in taming.load(trained).named_parameters())


def test_quantizer(workplace: Workplace) -> None:
    run(workplace, "Add a quantizer")
    model = taming.load(newest(workplace, "own_quantizer"))
    assert isinstance(model.quantize, Codebook) and type(model.quantize).__name__ != "Codebook"
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    indices = model.encode_to_indices(images)
    codes = model.quantize.get_codebook_entry(indices)
    torch.testing.assert_close(model.encode(images)[0].movedim(1, -1), codes)
    assert model.decode_indices(indices).shape == (2, 3, 32, 32)


def test_dataset(workplace: Workplace) -> None:
    run(workplace, "Add a dataset")
    data = importlib.import_module("own.dataset").Stripes(length=4, size=8)
    assert data[0]["image"].dtype == "float32" and abs(data[1]["image"]).max() <= 1


def test_condition(workplace: Workplace) -> None:
    run(workplace, "Add a condition")
    model = taming.load(newest(workplace, "own_condition"))
    assert model.condition_kind == "tokens" and model.cond_stage_key == "brightness"
    assert len(list((workplace.root / "samples").glob("*/samples/*.png"))) == 1


def test_metric(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = importlib.import_module("own.metric").MEAN_DISTANCE
    monkeypatch.setitem(METRICS, metric.name, metric)
    run(workplace, "Add a metric")
    (result,) = workplace.root.glob("**/fidelity*.json")
    assert read_result(result)["metrics"]["mean_distance"] > 0


def test_learning_rate_rule(workplace: Workplace) -> None:
    run(workplace, "Add a learning-rate rule")
    rates = logged(newest(workplace, "own_schedule"), "lr-Adam")
    assert len(rates) > 1 and rates[1] == pytest.approx(rates[0] / 2)


TESTED = {
    "Add a loss",
    "Add a quantizer",
    "Add a dataset",
    "Add a condition",
    "Add a metric",
    "Add a learning-rate rule",
}


def test_every_example_has_a_test() -> None:
    assert set(CHAPTERS) == TESTED


def test_every_block_is_run() -> None:
    def is_run(block: Block) -> bool:
        return block.heading in TESTED or block.language == "bash"

    assert all(is_run(block) for block in BLOCKS)


def test_the_table_has_every_part() -> None:
    table = set(re.findall(r"^\| `([\w./]+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    parts = {
        f"taming/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / "taming").iterdir()
        if path.name not in ("__init__.py", "__pycache__", "pretrained_configs")
        and path.suffix in ("", ".py")
    }
    assert {part for part in table if part.startswith("taming/")} == parts
    assert all((ROOT / part).exists() for part in table)
