"""The commands of docs/evaluation.md: what they name is there, and means what the row says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from taming.evaluation.metrics.evaluators import EVALUATORS
from taming.evaluation.metrics.extractor_files import INCEPTION
from taming.evaluation.published_numbers import PRESETS, preset
from taming.published_models import published_models
from tests.support import ROOT

TEXT = (ROOT / "docs" / "evaluation.md").read_text()
ROWS = re.findall(r"^\| ([\d./ ]+) \| [^|]* \| `python (.*)` \|$", TEXT, re.MULTILINE)
COMMANDS = re.findall(r"python (scripts/(?:[^`\n\\]|\\\n)*)", TEXT)


def published(entry_name: str) -> list[float]:
    return [number for _, number in preset(entry_name).published]


def test_every_published_number_has_one_command() -> None:
    numbers = sorted(float(text) for row, _ in ROWS for text in row.split("/"))
    assert numbers == sorted(number for entry in PRESETS for _, number in entry.published)


@pytest.mark.parametrize(("numbers", "line"), ROWS)
def test_rows_name_their_model(numbers: str, line: str) -> None:
    script, *words = shlex.split(line)
    folders = {model.folder: name for name, model in published_models().items()}
    (model,) = (folders[word] for word in words if word in folders)
    found = [float(text) for text in numbers.split("/")]
    named = words[words.index("--preset") + 1] if "--preset" in words else None
    entries = [entry for entry in PRESETS if named in (None, entry.name) and entry.model == model]
    assert [entry.script for entry in entries] == [Path(script).stem]
    assert [published(entry.name) for entry in entries] == [found]


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_scripts_files_and_flags_are_there(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *words = shlex.split(line.replace("\\\n", " ").replace("<", "").replace(">", ""))
    assert (ROOT / script).is_file()
    for word in words:
        assert not word.startswith("configs/") or (ROOT / word).is_file()
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    text = capsys.readouterr().out
    for flag in (word for word in words if re.match(r"-\w$|--\w", word)):
        assert re.search(rf"(^|[\s,]){re.escape(flag)}\b", text, re.MULTILINE), flag


@pytest.mark.parametrize("name", EVALUATORS)
def test_rows_of_evaluators(name: str) -> None:
    """They say the resize, the metrics and the source that the table in the code has."""
    evaluator = EVALUATORS[name]
    cells = r" \| ".join(4 * [r"([^|]*)"])
    rows = re.findall(rf"^\| `{name}`(?: \(default\))? \| {cells} \|$", TEXT, re.MULTILINE)
    ((before, network, metrics, source),) = rows
    assert tuple(re.sub(r" \([^)]*\)", "", metrics).split(", ")) == evaluator.usual
    assert sorted(re.findall(r"[\w./-]+", source)) == sorted(
        re.findall(r"[\w./-]+", evaluator.source)
    )
    resize, kinds = evaluator.resize, ("Inception", "DINOv2 ViT-L/14", "CLIP ViT-L/14 at 336")
    names = (INCEPTION, "dinov2-vit-l-14", "clip-vit-l-14-336px")
    assert kinds[names.index(evaluator.extractor)] in network
    assert ("Pillow" in before) is (resize is not None)
    if resize:
        assert f"{resize.side} x {resize.side}" in before
        assert ("float32" in before, "middle" in before) == (resize.exact, resize.center)
