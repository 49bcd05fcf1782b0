"""Commands and overrides that are printed to be pasted are quoted, where names have blanks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import encode_dataset, make_example_data
from taming.checkpoint.file_kinds import what_folder
from taming.errors import UserError
from taming.training import apart, run_folder


def test_overrides_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest: Any = SimpleNamespace(splits={})
    assert encode_dataset.summary("a b", manifest).endswith("add 'data.params.codes=a b'")
    monkeypatch.setattr(make_example_data, "write_all", lambda *_: 1)
    make_example_data.main(["-o", "a b"])
    monkeypatch.setattr(apart.subprocess, "Popen", lambda *_, **__: None)
    monkeypatch.setattr(apart, "wait_for", lambda process: 0)
    apart.run_apart(["train", "-n", "a b"])
    said = capsys.readouterr().out
    assert "cd 'a b' && " in said and "taming train -n 'a b'" in said
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/.metadata").touch()
    assert f"dcp_to_torch '{tmp_path}/a b' model.pt" in what_folder(tmp_path, [])
    monkeypatch.setattr(run_folder, "is_hub_name", lambda _: True)
    with pytest.raises(UserError, match="'model.params.ckpt_path=a b'"):
        run_folder.resumed_run("a b", [])
