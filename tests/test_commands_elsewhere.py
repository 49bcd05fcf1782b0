"""Commands of the documents that need a folder or a process of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.documents import PAGES, ROOT, blocks_of, inline_commands

README = ROOT / "README.md"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}


def shell(text: str, folder: Path, **variables: str) -> None:
    """Run shell text, which ends at its first failure."""
    own = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"  # as if activated
    environment = {**os.environ, "PATH": own, **variables}
    words = ["bash", "-euo", "pipefail", "-c", text]
    made = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_installation_of_the_readme(tmp_path: Path) -> None:
    """A clone, an environment and the package in it; what it depends on is that of the tests."""
    (block,) = (one for one in blocks_of(README) if one.heading == "Install")
    lines = {line for path in (README, *PAGES) for line in inline_commands(path)}
    others = sorted(line for line in lines if line.startswith("pip install -e"))
    assert "git clone" in block.text and len(others) >= 3
    text = block.text.replace("<this repository>", str(ROOT))
    packages = sysconfig.get_paths()["purelib"]  # setuptools, which builds, and torch
    shell(
        "\n".join([text, *others]),
        tmp_path,
        **OFFLINE,
        PYTHONPATH=packages,
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0="safe.directory",
        GIT_CONFIG_VALUE_0="*",
    )
    clone = tmp_path / "taming-transformers"
    (finder,) = clone.glob(".venv/lib/*/site-packages/__editable___taming_transformers_*_finder.py")
    assert f"'{clone / 'taming'}'" in finder.read_text()
    assert (clone / ".venv" / "bin" / "taming").is_file()


@pytest.mark.slow
def test_the_single_test_of_contributing() -> None:
    (text,) = (
        one.text for one in blocks_of(ROOT / "CONTRIBUTING.md") if "tests/modules/vqvae" in one.text
    )
    shell(text.replace("vqvae -x", "vqvae -x -p no:cacheprovider"), ROOT)


@pytest.mark.slow
def test_one_of_the_kills() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    command = "python tests/faults/run.py --only kills --seed 7"
    assert command in text
    shell(f"{command} --kills 1", ROOT, PYTHONPATH=str(ROOT))
