"""The command `taming`, from a clone and from a wheel."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from taming import __version__
from taming import shipped as shipped_files
from taming.command_line import Parser
from taming.config import load_config
from taming.errors import UserError
from taming.evaluation.presets import PRESETS, command_of
from taming.evaluation.presets.listing import listing
from taming.evaluation.results import command_line
from taming.program import DEMO, OWN, become, demo_words, load, main, overview
from taming.shipped import (
    SCRIPTS,
    as_called,
    config_names,
    extra,
    find_config,
    in_clone,
    run_script,
    runnable,
    script,
    script_of,
    shipped,
)
from tests.support import ROOT


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parser, "program", None)


def run(*words: str) -> None:
    main.__wrapped__(list(words))  # type: ignore[attr-defined]  # errors as exceptions


def test_every_script_is_a_command_with_a_summary() -> None:
    assert {f"{name}.py" for name in SCRIPTS.values()} == {
        path.name for path in (ROOT / "scripts").glob("*.py")
    }
    lines = [line.split(maxsplit=1) for line in overview().splitlines()[2:]]
    assert [line[0] for line in lines] == [*OWN, *SCRIPTS]
    assert all(text[0].isupper() and text.endswith(".") for _, text in lines)


def test_what_is_asked_of_the_program_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["-h"], ["--help"]):
        run(*words)
        assert capsys.readouterr().out == overview() + "\n"
    run("--version")
    assert capsys.readouterr().out == f"taming {__version__}\n"
    with pytest.raises(UserError, match="there is no command smaple; did you mean sample"):
        run("smaple")
    with pytest.raises(UserError, match=r"there is no command \? \(see taming --help\)"):
        run("?")


def test_commands_are_the_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run("list", "--help")
    assert capsys.readouterr().out.startswith("usage: taming list [-h]")
    with pytest.raises(SystemExit) as caught:
        run("list", "gone")
    assert (caught.value.code, capsys.readouterr().err) == (2, "error: there is no folder gone\n")
    with pytest.raises(SystemExit):
        run("train", "--base", "digits_vqgann")
    assert capsys.readouterr().err == (
        "error: there is no config file digits_vqgann; did you mean 'digits_vqgan'?\n"
    )


def test_configs_are_listed_copied_and_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("configs", "--list")
    names = capsys.readouterr().out.split()
    assert names == config_names() and {"digits_vqgan", "small/vqgan"} <= set(names)
    run("configs", "--copy", "digits_vqgan", "small/vqgan", "-o", "own")
    said = capsys.readouterr().out
    assert said == "digits_vqgan is in own/digits_vqgan.yaml\nsmall/vqgan is in own/vqgan.yaml\n"
    shipped_text = (shipped("configs") / "digits_vqgan.yaml").read_text()
    assert Path("own/digits_vqgan.yaml").read_text() == shipped_text
    with pytest.raises(UserError, match="own/vqgan.yaml exists; delete it"):
        run("configs", "--copy", "small/vqgan", "-o", "own")
    for names in (["digits_vqgan", "nothing"], ["small/class_transformer", "class_transformer"]):
        with pytest.raises(UserError, match="no config file nothing|would both be two/class_tr"):
            run("configs", "--copy", *names, "-o", "two")
    assert not Path("two").exists()
    Path("file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match="file is a file, not a folder; give another --out"):
            run("configs", "--copy", "digits_vqgan", "-o", place)
    for name in ("digits_vqgan", "digits_vqgan.yaml", "configs/digits_vqgan.yaml"):
        assert find_config(name) == shipped("configs") / "digits_vqgan.yaml"
    Path("digits_vqgan").write_text("model: {target: own.Model}")
    assert find_config("digits_vqgan") == Path("digits_vqgan")  # the user's comes first
    assert load_config(["digits_vqgan.yaml"]).model.params.n_embed == 64


def pretend_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(shipped_files.__file__).parent
    monkeypatch.setattr(shipped_files, "shipped", lambda folder: package / folder)


def test_messages_name_the_commands_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [script("sample_fast"), run_script("sample_fast"), run_script("main")] == [
        "scripts/sample_fast.py",
        "python scripts/sample_fast.py",
        "python main.py",
    ]
    assert extra("data", "eval") == "pip install -e '.[data,eval]'"
    pretend_a_wheel(monkeypatch)
    assert extra("guide") == "pip install 'taming-transformers[guide]'"
    assert [script("main"), run_script("download_models")] == ["taming train", "taming download"]
    assert {run_script(name) for name in SCRIPTS.values()} == {f"taming {own}" for own in SCRIPTS}


def test_messages_name_what_is_where_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable installation has no scripts in other folders than its own."""
    monkeypatch.setattr(shipped_files, "in_clone", in_clone)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/bin/taming")
    helped = "`python scripts/digits.py`, or main.py"
    monkeypatch.chdir(ROOT)
    assert [run_script("digits"), as_called(helped)] == ["python scripts/digits.py", helped]
    assert extra("demo") == "pip install -e '.[demo]'"
    monkeypatch.chdir(tmp_path)
    assert [script("sample_fast"), run_script("main")] == ["taming sample", "taming train"]
    assert as_called(helped) == "`taming digits`, or taming train"
    assert shlex.split(extra("demo")) == ["pip", "install", "-e", f"{ROOT.as_posix()}[demo]"]
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)  # a clone that is not installed
    python, path = shlex.split(run_script("digits"))
    assert python == "python" and Path(path) == ROOT / "scripts/digits.py"
    assert as_called(helped) == helped
    assert runnable(["taming", "digits", "-n", "1"]) == [python, path, "-n", "1"]
    assert script_of([script("main"), "-t"]) == ("main", ["-t"])
    tmp_path.rmdir()
    assert not in_clone()


def test_an_installation_is_told_of_no_files_of_a_clone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_a_wheel(monkeypatch)
    monkeypatch.setattr("taming.data.examples.write_all", lambda *_: 9)
    texts = [listing(), *(shlex.join(command_of(entry)) for entry in PRESETS.values())]
    texts.append(shlex.join(command_line(["A", "B"], "evaluate_fid")))
    for name, words in (
        *((name, ["--help"]) for name in ("digits", "plot_curves", "figures", "preview_data")),
        ("make_example_data", []),
    ):
        with suppress(SystemExit):
            load(ROOT / "scripts" / f"{name}.py").main(words)
        texts.append(capsys.readouterr().out)
    said = "\n".join(texts)
    assert not re.findall(r"scripts/\w*|\bmain\.py|make demo", said)
    for called in (
        *("taming evaluate logs/", "taming evaluate A B", "\n    taming digits\n"),
        *("    taming train --base faceshq_vqgan -t True", "taming curves -r logs/<run>"),
        "`taming figures NAME --help`",
    ):
        assert called in said, called
    # What is evaluated there may be reproduced here, and the other way round.
    line = ["scripts/evaluate_fid.py", "A", "B"]
    assert script_of(command_line(["A", "B"], "evaluate_fid")) == ("evaluate_fid", ["A", "B"])
    assert script_of(line) == ("evaluate_fid", ["A", "B"])
    assert runnable(line) == ["taming", "evaluate", "A", "B"]
    shared = as_called("`torchrun --nproc_per_node 4\nscripts/evaluate_fid.py ...` shares")
    assert shared == "`torchrun --nproc_per_node 4\n-m taming evaluate ...` shares"
    assert as_called("streamlit run scripts/sample_conditional.py -- -r x") == "taming demo -- -r x"


def build(folder: Path, what: str) -> None:
    """The sources' archive or the wheel of a folder, in it."""
    code = f"from setuptools import build_meta; build_meta.build_{what}('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
def test_the_wheel_has_scripts_and_configs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("taming", "scripts", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build(source, "sdist")
    (archive_of_sources,) = source.glob("*.tar.gz")
    shutil.unpack_archive(archive_of_sources, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    build(unpacked, "wheel")
    (wheel,) = unpacked.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    shutil.rmtree(source)
    shutil.rmtree(unpacked)
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()

    def taming(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "taming", *words]
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        return subprocess.run(line, cwd=elsewhere, env=environment, capture_output=True, text=True)

    assert taming("configs").stdout.split() == config_names()
    helped = taming("digits", "--help").stdout
    assert "    taming digits\n" in helped and "scripts/" not in helped
    listed = taming("reproduce", "--list").stdout
    assert "`taming evaluate logs/" in listed and "scripts/" not in listed
    assert (installed / "taming/configs/gallery/painted_map.png").is_file()
    made = taming("completion", "bash")  # which asks every script for its flags
    assert all(f"    {name}) words='-" in made.stdout for name in SCRIPTS) and not made.stderr
    made = taming("digits", "--max_steps", "2", "-n", "2")
    assert made.returncode == 0, made.stderr
    assert "FID" in made.stdout and len(list(elsewhere.glob("logs/*/samples/*/*/*/*.png"))) == 20
    assert taming("sample").stderr.startswith("error: the following arguments are required: -r")


def test_scripts_are_loaded_as_modules() -> None:
    module = load(ROOT / "scripts/make_image_list.py")
    assert module.Options.__module__ == "make_image_list"
    assert module.Options(seed=3).seed == 3


def test_the_demo_is_served_on_this_machine_alone() -> None:
    path, first = Path("demo.py"), ["-m", "taming.demo", "run", "demo.py"]
    ours = [f"--{name}={value}" for name, value in DEMO.items()]
    assert ours[0] == "--server.address=localhost"
    assert demo_words(path, ["-r", "logs/x"]) == [*first, *ours, "--", "-r", "logs/x"]
    own = ["--server.address=0.0.0.0", "--theme.base=dark"]
    assert demo_words(path, ["-r", *own, "x"]) == [*first, *ours[1:], *own, "--", "-r", "x"]


def test_windows_waits_for_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `exec` would go on in the background, and take a path with a space for two words."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("replaced"))
    with pytest.raises(SystemExit) as stop:
        become([sys.executable, "-c", "raise SystemExit(7)"])
    assert stop.value.code == 7


def test_streamlits_flags_keep_their_values() -> None:
    """One that has none would take the next flag for it: that the page stays on this machine."""
    path, first = Path("demo.py"), ["-m", "taming.demo", "run", "demo.py"]
    ours = [f"--{name}={value}" for name, value in DEMO.items()]
    own = ["--server.baseUrlPath", "demo", "--runner.fastReruns", "false", "--server.port=1"]
    assert demo_words(path, [*own, "-r", "x"]) == [
        *(*first, *ours, "--server.baseUrlPath=demo", "--runner.fastReruns=false"),
        *("--server.port=1", "--", "-r", "x"),
    ]
    # As one writes who has `streamlit run` in mind.
    for before in ([], ["--server.port=1"]):
        assert demo_words(path, [*before, "--", "-r", "x"]) == demo_words(
            path, [*before, "-r", "x"]
        )
    words = demo_words(path, ["-r", "x", "--server.address", "0.0.0.0"])
    assert words == [*first, *ours[1:], "--server.address=0.0.0.0", "--", "-r", "x"]
    for wrong in (["--server.port"], ["--server.port", "-r", "x"], ["-r", "x", "--theme.base"]):
        with pytest.raises(UserError, match=r"--\w+\.\w+ takes a value; write --\w+\.\w+=VALUE"):
            demo_words(path, wrong)


def test_the_pages_own_flags_are_refused_in_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = pytest.importorskip("taming.demo.__main__", reason="needs the extra 'demo'")
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    line = demo_words(Path("demo.py"), ["--server.port", "1", "-r", "x", "--sed", "3"])
    page.begin_page(page.words_of_page(line))
    assert codes == [2] and capsys.readouterr().err.startswith("error: unknown argument --sed")
    page.begin_page(page.words_of_page(demo_words(Path("demo.py"), ["-r", "x"])))
    assert codes == [2] and page.words_of_page(["run", "demo.py"]) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo", "usage: taming demo [-h]"),
        ("train", "usage: taming train [-h]"),
        ("encode", "folder for the codes (required)"),
        ("shards", "folder for the shards (required)"),
        ("digits", "\n\n    python scripts/digits.py\n\n"),  # a paragraph of its own
    ],
)
def test_help_names_the_command_and_what_it_needs(
    name: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parser, "program", None)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    printed = capsys.readouterr()
    assert not ended.value.code and expected in printed.out and not printed.err


def test_both_ways_to_start_the_demo_have_the_same_options() -> None:
    section, found = "", {}
    for line in (ROOT / ".streamlit/config.toml").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            found[f"{section}.{name}"] = value.strip('"')
    assert found == DEMO


def test_a_reader_that_has_enough_ends_a_command_silently() -> None:
    line = f"{sys.executable} -m taming --help; echo $? >&2"
    made = subprocess.run(
        ["bash", "-c", f"set -o pipefail; ({line}) | true"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert made.stderr in ("141\n", "0\n")  # the text may be written before the reader ends
