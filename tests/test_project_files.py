"""What surrounds the code: the wheel, the Makefile, workflows, hooks and forms."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.documents import PROJECT, ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_a_wheel_has_everything_that_the_package_reads(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "taming", tmp_path / "taming", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    files = [path.relative_to(ROOT) for path in (ROOT / "taming").rglob("*") if path.is_file()]
    assert {str(path) for path in files if "__pycache__" not in path.parts} <= set(names)
    assert "taming/py.typed" in names
    assert "License-Expression: MIT" in lines


def test_authors_are_those_of_the_citation() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert [author["name"] for author in PROJECT["authors"]] == [
        author["name"] for author in citation["authors"]
    ]
    assert PROJECT["license"] == citation["license"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_is_there(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    for job in workflow["jobs"].values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        for target in re.findall(r"make ([\w-]+)", "\n".join(commands)):
            assert target in TARGETS
        for extras in re.findall(r"\.\[([\w,]+)\]", "\n".join(commands)):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_workflows_test_the_oldest_and_the_newest_python() -> None:
    (tests,) = (read(path)["jobs"]["tests"] for path in WORKFLOWS if path.stem == "tests")
    rows = tests["strategy"]["matrix"]["include"]
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={listed[0]}"
    assert [row["python"] for row in rows] == [listed[0], listed[-1]]
    (weekly,) = (read(path)["jobs"]["tests"] for path in WORKFLOWS if path.stem == "weekly")
    assert weekly["strategy"]["matrix"]["python"] == listed[1:-1]
    assert [row["resolution"] for row in rows] == ["lowest-direct", "highest"]


def recipe_of(target: str) -> str:
    """The lines of a target, after those of the targets before it that are stamps."""
    needs, lines = re.findall(rf"^{re.escape(target)}:(.*)\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)[
        0
    ]
    stamps = [word for word in needs.split() if word.startswith("$(VENV)/")]
    return "".join(map(recipe_of, stamps)) + lines


def test_slow_tests_run_in_a_workflow_with_what_they_would_be_skipped_without() -> None:
    """Documents count what these tests execute as executed."""
    jobs = [job for path in WORKFLOWS for job in read(path)["jobs"].values()]
    texts = ["\n".join(step.get("run", "") for step in job["steps"]) for job in jobs]
    (slow,) = (text for text in texts if "make test-slow" in text)
    assert {"zsh", "fish"} <= set(slow.split())
    assert "-m slow" in recipe_of("test-slow") and "'.[docs]'" in recipe_of("test-slow")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_targets_install_once_and_then_need_no_network(target: str) -> None:
    own = re.findall(rf"^{target}:.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)[0]
    assert "pip install" not in own


def test_hooks_are_those_of_make_lint() -> None:
    repositories = read(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: hook for repository in repositories for hook in repository["hooks"]}
    assert {"ruff-check", "ruff-format", "mypy"} == hooks.keys()
    assert hooks["mypy"]["entry"].removeprefix(".venv/bin/") in MAKEFILE
    for repository in repositories:
        assert repository["repo"] == "local" or re.fullmatch(r"v\d+\.\d+\.\d+", repository["rev"])


def test_forms_ask_for_what_a_reader_needs() -> None:
    forms = ROOT / ".github" / "ISSUE_TEMPLATE"
    assert {path.stem for path in forms.glob("*.yml")} == {"bug", "config", "feature", "question"}
    fields = {entry["id"] for entry in read(forms / "bug.yml")["body"]}
    assert {"command", "config", "versions"} <= fields


def test_what_the_documents_commands_write_is_ignored() -> None:
    text = "".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    folders = set(re.findall(r"^python scripts/.* (?:-o|--outdir) (\w[\w/]*)", text, re.MULTILINE))
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"half", "wider", "samples", "example_data"} <= folders
    assert not {name for name in folders if f"/{name}/" not in ignored and name[:5] != "data/"}
