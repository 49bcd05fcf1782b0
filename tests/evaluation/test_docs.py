"""The commands of docs/evaluation.md: what they name is there, and means what the row says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys

import pytest

from taming.evaluation.metrics.evaluators import EVALUATORS
from taming.evaluation.metrics.extractor_files import INCEPTION
from taming.evaluation.presets.listing import listing
from tests.support import ROOT

TEXT = (ROOT / "docs" / "evaluation.md").read_text()
LATE = {"configs/lsun_transformer.yaml", "configs/cin512_transformer.yaml"}
COMMANDS = re.findall(r"python (scripts/(?:[^`\n\\]|\\\n)*)", TEXT)


def test_the_published_table_is_that_of_the_presets() -> None:
    _, _, table = TEXT.partition("scripts/reproduce.py --list. -->\n\n")
    assert table == listing() + "\n"  # python scripts/reproduce.py --list
    for words in ("as we remember", "not known to us", "is not known"):
        assert words not in TEXT


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_scripts_files_and_flags_are_there(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *words = shlex.split(line.replace("\\\n", " ").replace("<", "").replace(">", ""))
    words = words[: words.index("--")] if "--" in words else words  # the rest is another script's
    assert (ROOT / script).is_file()
    for word in words:
        named = word.startswith("configs/") and word not in LATE
        assert not named or (ROOT / word).is_file()
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
