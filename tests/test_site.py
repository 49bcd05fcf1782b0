"""The documentation site: it builds without a warning, and reads without another host.

That the commands and blocks of its pages run is tested in tests/test_readme.py; how many do, here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from taming import program, shipped
from taming.command_line import Extend, Parser, is_override, parser_of
from taming.demo.arguments import read_page_arguments
from taming.training.trainer_options import trainer_options
from tests.documents import PAGES, ROOT, Block, blocks_of, commands_in, inline_commands, prose_of
from tests.unrunnable import CANNOT_RUN, EXECUTED
from tests.workplace import as_script

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
EXAMPLES = "Add a "  # headings of CONTRIBUTING.md whose blocks tests/test_contributing.py runs
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


# ---------------------------------------------------------------- what is executed


def commands_of(block: Block) -> list[str]:
    return commands_in(block.text) if block.language == "bash" else [block.name]


def everything() -> Iterator[tuple[Path, str, bool]]:
    """Every command and block of Python, and whether a test executes it."""
    for path in DOCUMENTS:
        for block in blocks_of(path):
            if block.language not in ("bash", "python"):
                continue
            for command in commands_of(block):
                known = command in CANNOT_RUN and command not in EXECUTED
                yield path, command, bool(block.run_by) or not (block.not_run or known)
        for command in inline_commands(prose_of(path)):
            yield path, command, command not in CANNOT_RUN or command in EXECUTED


def test_nineteen_of_twenty_commands_and_blocks_are_executed() -> None:
    units = {(command, done) for _, command, done in everything()}
    left = sorted({command for command, done in units if not done})
    share = 1 - len(left) / len(units)
    print(f"{share:.1%} of {len(units)} commands and blocks are executed; not:", *left, sep="\n  ")
    assert share >= 0.95


def test_marks_name_tests_that_are_there() -> None:
    marked = [block.run_by for path in DOCUMENTS for block in blocks_of(path) if block.run_by]
    assert marked and all((ROOT / path).is_file() for path in [*marked, *EXECUTED.values()])
    assert EXECUTED.keys() <= CANNOT_RUN.keys()


# ---------------------------------------------------------------- commands and their parsers


def parser_for(name: str, words: list[str]) -> Parser | None:
    if name in program.OWN:
        return parser_of(getattr(program, name))
    if name == "demo":
        return parser_of(read_page_arguments)  # Streamlit runs the script when it is imported
    main = program.load(ROOT / "scripts" / f"{shipped.SCRIPTS[name]}.py").main
    return parser_of(main, *(words[:1] if name == "figures" else []))


NAMES = {f"scripts/{script}.py": name for name, script in shipped.SCRIPTS.items()}
NAMES |= {"main.py": "train"} | {f"taming {name}": name for name in program.OWN}


def of_scripts() -> Iterator[tuple[str, list[str]]]:
    """Subcommand and arguments of every command in documents that is one."""
    for _, command, _ in everything():
        text = as_script(command).removeprefix("python ")
        name = next((name for start, name in NAMES.items() if text.startswith(f"{start} ")), None)
        if name is not None and "..." not in text:
            start = next(start for start in NAMES if text.startswith(f"{start} "))
            yield name, shlex.split(re.sub(r"<[^>]*>", "RUN", text[len(start) :]))


def test_commands_have_flags_of_their_parsers() -> None:
    parsers: dict[tuple[str, ...], Parser | None] = {}
    seen = 0
    for name, words in of_scripts():
        key = (name, words[0]) if name == "figures" else (name,)
        if key not in parsers:
            parsers[key] = parser_for(name, words)
        parser = parsers[key]
        words = words[: words.index("--")] if "--" in words else words
        for word in words:
            if not word.startswith("-") or is_override(word) or re.match(r"-\d", word):
                continue
            known = parser is None or word in parser._option_string_actions
            assert known or (name == "train" and word[2:] in trainer_options()), (name, word)
            seen += 1
    assert seen > 100


def test_scripts_take_the_flags_that_the_readme_says_of_all_of_them() -> None:
    _, text = (ROOT / "README.md").read_text().split("The scripts of the next three paragraphs")
    flags = re.findall(r"`(--?\w+)`", text.partition(";")[0])
    scripts = list(dict.fromkeys(re.findall(r"^python scripts/(\w+)\.py", text, re.MULTILINE)))[:3]
    assert len(flags) == 11 and scripts == ["make_samples", "make_scene_samples", "complete"]
    for script in scripts:
        parser = parser_for(shipped.subcommand_of(script), [])
        assert parser is not None and set(flags) <= set(parser.flags()), script


@pytest.mark.parametrize("name", [*program.OWN, *shipped.SCRIPTS])
def test_flags_of_several_values_may_be_given_again(name: str) -> None:
    for action in vars(parser_for(name, ["likelihood"]) or Parser())["_actions"]:
        alone = not action.option_strings or action.nargs not in ("*", "+")
        assert alone or isinstance(action, Extend), action.option_strings


def test_every_command_has_a_page_with_its_options() -> None:
    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages.keys() == {"index", *program.OWN, *shipped.SCRIPTS}
    for name, text in pages.items():
        assert name == "index" or f"<!-- options: {name}" in text, name
        assert name == "index" or f"]({name}.md)" in pages["index"], name


# ---------------------------------------------------------------- the site


class Assets(HTMLParser):
    """What a page loads, in contrast to what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        relations = (values.get("rel") or "").split()
        loaded = tag != "a" and (tag != "link" or not {"canonical", "alternate"} & {*relations})
        if loaded:
            self.found += [values[name] or "" for name in ("src", "href") if name in values]


def assets_of(page: Path) -> list[str]:
    parser = Assets()
    parser.feed(page.read_text())
    return parser.found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, without network access: what another host gives would be missing."""
    pytest.importorskip("material", reason="needs the extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    made = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **proxies}, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_and_asks_no_other_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 200
    for page in pages:
        for asset in assets_of(page):
            assert not re.match(r"(https?:)?//", asset), f"{page}: {asset}"
            place = page.parent / asset.partition("#")[0].partition("?")[0]
            assert asset.startswith(("data:", "#", "/")) or place.exists(), f"{page}: {asset}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_pages_have_what_was_generated(site: Path) -> None:
    sample = (site / "commands" / "sample.html").read_text()
    assert "--guidance_schedule" in sample and "options: sample" not in sample
    config = (site / "configs" / "custom_vqgan.html").read_text()
    assert "entries in the codebook" in config and "model.params.n_embed" in config
    vqgan = (site / "reference" / "python" / "taming.models.vqgan.html").read_text()
    assert "VQModel" in vqgan and "revive_after" in vqgan
    assert "hooks" not in {path.name for path in site.iterdir()}
    assert not list(site.rglob("*.py"))
    notebook = (site / "notebooks" / "taming-transformers.html").read_text()
    assert "from an image to codes" in notebook


@pytest.mark.slow
def test_links_to_files_of_the_repository_lead_to_their_pages(site: Path) -> None:
    for page, link in (
        ("concepts/orders.html", "../reference/python/taming.modules.transformer.orders.html"),
        ("tutorials/first-stage.html", "../project/security.html"),
        ("faq.html", "project/security.html"),
        ("tutorials/scenes.html", "../notebooks/scenes.html"),
        ("commands/configs.html", "../configs/index.html"),
    ):
        assert f'href="{link}"' in (site / page).read_text(), page


def test_nothing_of_another_host_is_configured() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert SITE["theme"]["font"] is False and SITE["strict"] is True and "://" not in text
