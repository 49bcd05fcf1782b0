"""README.md and docs/: every command and block of code runs, at small size, in a scratch folder.

What cannot run here is in tests/unrunnable.py, with the reason and what is checked instead, or
marked in the document (`tests.documents.Block`). A command that is neither there nor a script or
subcommand, or code in another language, fails the test. The pages of the site beside those of
`DOCUMENTS` are tested with `-m slow`, as there are many of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from taming.config import get_obj_from_str
from taming.training.trainer_options import trainer_options
from tests.documents import (
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    commands_in,
    inline_commands,
    links_of,
    prose_of,
    spans_of,
)
from tests.unrunnable import CANNOT_RUN, run
from tests.workplace import Workplace, run_script

README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "docs" / "data.md", ROOT / "docs" / "fine-tuning.md"]
SLOW = [page for page in PAGES if page not in DOCUMENTS]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"  # tests/test_contributing.py runs its blocks


def every_block(*languages: str) -> list[Any]:
    """The blocks of all documents in these languages, as parameters of a test."""
    found = [(path, block) for path in [*DOCUMENTS, *SLOW] for block in blocks_of(path)]
    return [
        pytest.param(
            block,
            id=f"{path.stem}: {block.name}",
            marks=[pytest.mark.slow] if path in SLOW else [],
        )
        for path, block in found
        if block.language in languages and not block.marked
    ]


def every_command() -> list[str]:
    pages = [*DOCUMENTS, *SLOW]
    blocks = [block for path in pages for block in blocks_of(path) if not block.marked]
    in_blocks = [c for block in blocks if block.language == "bash" for c in commands_in(block.text)]
    return in_blocks + [c for path in pages for c in inline_commands(prose_of(path))]


def inline_parameters() -> list[Any]:
    """Commands in the text that no block has; those of slow pages are slow."""
    in_blocks = {c for block in every_block("bash") for c in commands_in(block.values[0].text)}
    fast = {c for path in DOCUMENTS for c in inline_commands(prose_of(path))} - in_blocks
    slow = {c for path in SLOW for c in inline_commands(prose_of(path))} - in_blocks - fast
    of_models = {c for c in fast if re.search(r" -r [a-z]\w+( |$)", c)}  # one per published model
    slow, fast = slow | of_models, fast - of_models
    return [*sorted(fast), *(pytest.param(c, marks=pytest.mark.slow) for c in sorted(slow))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(autouse=True)
def surroundings(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch folder, and no caches, weights or network of this machine."""
    root = workplace.root
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    for name in ("TAMING_VGG16", "TAMING_ALEXNET", "TAMING_EXTRACTOR_WEIGHTS"):
        monkeypatch.setenv(name, str(root / f"no-{name}.pth"))


@pytest.mark.parametrize("block", every_block("bash"))
def test_commands_of_a_block_run_one_after_the_other(workplace: Workplace, block: Block) -> None:
    for command in commands_in(block.text):
        run(workplace, command)


@pytest.mark.parametrize("command", inline_parameters())
def test_commands_in_the_text_run(workplace: Workplace, command: str) -> None:
    run(workplace, command)


@pytest.mark.parametrize("block", every_block("python"))
def test_python_runs(workplace: Workplace, block: Block) -> None:
    exec(workplace.filled_in(block.text), {})


def targets_in(part: Any) -> list[str]:
    """Every `target:` of a config, and of its parts."""
    if not isinstance(part, dict):
        return []
    own = [part["target"]] if "target" in part else []
    return own + [target for value in part.values() for target in targets_in(value)]


@pytest.mark.parametrize("block", every_block("yaml"))
def test_yaml_names_what_there_is(block: Block) -> None:
    config = OmegaConf.create(block.text)
    if "lightning" in config:
        assert all(set(part) <= {"target", "params"} for part in config.lightning.values())
    for target in targets_in(OmegaConf.to_container(config)):
        assert callable(get_obj_from_str(target))


def test_no_block_is_in_another_language() -> None:
    known = {"bash", "python", "yaml", "text"}  # text: what programs print
    for path in [*DOCUMENTS, *SLOW]:
        assert {block.language for block in blocks_of(path)} <= known, path


def test_everything_that_cannot_run_is_still_there() -> None:
    assert CANNOT_RUN.keys() <= set(every_command())


def flags_of(script: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        run_script(str(script), ["--help"])
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", capsys.readouterr().out))


def test_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = [ROOT / "main.py", *(ROOT / "scripts").glob("*.py")]
    known = {f"--{name}" for name in trainer_options()}
    for script in scripts:
        known |= flags_of(script, capsys)
    for path in DOCUMENTS:
        for span in (span for span in spans_of(path) if re.match(r"--?[A-Za-z]", span)):
            flags = set(re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", span))
            assert flags and flags <= known, f"{path.name}: {span}"


def test_every_page_is_named_by_another() -> None:
    """A menu alone does not lead who reads from page to page."""
    pages = [README, CONTRIBUTING, *PAGES]
    named = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in pages
        for link in links_of(page)
        if link.partition("#")[0]
    }
    lost = {page.resolve() for page in PAGES} - named
    assert not lost, lost


@pytest.mark.parametrize("path", [*DOCUMENTS, *SLOW, CONTRIBUTING], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """In a clone; in the site they do by docs/hooks/links.py."""
    for target in links_of(path):
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target
