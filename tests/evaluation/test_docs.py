"""The commands of docs/evaluation.md: what they name is there, and means what the row says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys

import pytest

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
