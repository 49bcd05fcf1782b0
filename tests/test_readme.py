"""README.md and docs/: every command and block of code runs, at small size, in a scratch folder.

What cannot run here is in `CANNOT_RUN`, with the reason and what is checked instead. A command that
is neither there nor a Python script, or code in another language, fails the test.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from scripts.gallery import PICTURES
from taming.config import get_obj_from_str
from taming.published_models import published_models
from taming.training.trainer_options import trainer_options
from tests.documents import (
    PROJECT,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    commands_in,
    inline_commands,
    links_of,
    spans_of,
)
from tests.workplace import Workplace, run_script

README = ROOT / "README.md"
DOCUMENTS = [README, *(ROOT / "docs" / f"{n}.md" for n in ("data", "fine-tuning", "gallery"))]
SLOW = [ROOT / "docs" / "first-hours.md"]  # whose commands are much like the README's
LINKED = [*DOCUMENTS, *SLOW, ROOT / "docs" / "evaluation.md", ROOT / "CONTRIBUTING.md"]


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
        if block.language in languages
    ]


def every_command() -> list[str]:
    blocks = [block for path in DOCUMENTS for block in blocks_of(path)]
    in_blocks = [c for block in blocks if block.language == "bash" for c in commands_in(block.text)]
    return in_blocks + [c for path in DOCUMENTS for c in inline_commands(path)]


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


# ---------------------------------------------------------------- what cannot run here


def nothing_to_check(workplace: Workplace, command: str) -> None:
    """For commands of other programs that name nothing of the project's."""


def check_extras(workplace: Workplace, command: str) -> None:
    (extra,) = re.findall(r"\.\[([\w,]+)\]", command)
    assert set(extra.split(",")) <= PROJECT["optional-dependencies"].keys()


def check_environment(workplace: Workplace, command: str) -> None:
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    assert environment["name"] == "taming"
    (packages,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    for package in packages:
        check_extras(workplace, package)


def check_target(workplace: Workplace, command: str) -> None:
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def check_models(workplace: Workplace, command: str) -> None:
    for name in command.split()[2:]:
        assert name in published_models()
        workplace.published(name)


def check_tensorboard(workplace: Workplace, command: str) -> None:
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(argv=shlex.split(command))
    assert (workplace.root / board.flags.logdir).is_dir()


def check_share(workplace: Workplace, command: str) -> None:
    """Run the first process's share."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(shlex.split(command.removesuffix(" ..."))[1:])
    script, run = args.training_script, workplace.run_of("class_transformer")
    variables = {"RANK": "0", "WORLD_SIZE": args.nproc_per_node, "LOCAL_RANK": "0"}
    run_script(script, ["-r", run, "-n", "2", "--classes", "1"], variables)


def check_page(workplace: Workplace, command: str) -> None:
    """Run the page without a browser."""
    testing = pytest.importorskip("streamlit.testing.v1", reason="needs the extra 'demo'")
    words = shlex.split(workplace.filled_in(command))
    script, dashes, *flags = words[2:]
    assert words[:2] == ["streamlit", "run"] and dashes == "--"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [script, *flags, "--device", "cpu"])
        page = testing.AppTest.from_file(str(Path(script).resolve()), default_timeout=60).run()
    assert not page.exception and not page.error


def check_flags(workplace: Workplace, command: str) -> None:
    script, *words = shlex.split(command)[1:]
    with redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
        run_script(script, ["--help"])
    assert all(word in text.getvalue() for word in words if word.startswith("-"))


Check = Callable[[Workplace, str], None]
ENVIRONMENT = "makes or enters an environment of its own"
NETWORK = "downloads gigabytes"
CANNOT_RUN: dict[str, tuple[str, Check]] = {
    "git clone <this repository> taming-transformers": (NETWORK, nothing_to_check),
    "cd taming-transformers": (ENVIRONMENT, nothing_to_check),
    "python3 -m venv .venv": (ENVIRONMENT, nothing_to_check),
    "source .venv/bin/activate": (ENVIRONMENT, nothing_to_check),
    "pip install -e '.[data]'": (ENVIRONMENT, check_extras),
    "pip install -e '.[demo]'": (ENVIRONMENT, check_extras),
    "pip install -e '.[lsun]'": (ENVIRONMENT, check_extras),
    "conda env create -f environment.yaml": (ENVIRONMENT, check_environment),
    "conda activate taming": (ENVIRONMENT, check_environment),
    "make demo": ("takes minutes; tests/test_demo.py runs its commands", check_target),
    "make gallery": ("takes an hour; tests/scripts/test_gallery.py makes it small", check_target),
    **{
        f"python scripts/gallery.py --only {name}": ("trains for minutes", check_flags)
        for name in PICTURES
    },
    "make test": ("runs this test", check_target),
    "make gpu": ("needs a GPU", check_target),
    "tensorboard --logdir logs": ("a server that does not end", check_tensorboard),
    "kill -USR1 <pid>": ("tests/training/test_cli.py sends the signal", nothing_to_check),
    "python scripts/download_models.py cin_transformer": (NETWORK, check_models),
    "python scripts/download_models.py vqgan_imagenet_f16_16384": (NETWORK, check_models),
    "python scripts/extract_depth.py": (NETWORK, check_flags),
    "python scripts/extract_depth.py --images data/pairs/images --outdir data/pairs/depth": (
        NETWORK,
        check_flags,
    ),
    "python scripts/extract_segmentation.py data/pairs/segmentation --images data/pairs/images": (
        NETWORK,
        check_flags,
    ),
    "torchrun --nproc_per_node 4 scripts/sample_fast.py ...": ("several processes", check_share),
    "streamlit run scripts/sample_conditional.py -- -r logs/<run>": (
        "a server that does not end",
        check_page,
    ),
}


def run(workplace: Workplace, command: str) -> None:
    if command in CANNOT_RUN:
        CANNOT_RUN[command][1](workplace, command)
    else:
        workplace.run(command)


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize("block", every_block("bash"))
def test_commands_of_a_block_run_one_after_the_other(workplace: Workplace, block: Block) -> None:
    for command in commands_in(block.text):
        run(workplace, command)


IN_BLOCKS = {c for block in every_block("bash") for c in commands_in(block.values[0].text)}
INLINE = sorted({c for path in DOCUMENTS for c in inline_commands(path)} - IN_BLOCKS)


@pytest.mark.parametrize("command", INLINE)
def test_commands_in_the_text_run(workplace: Workplace, command: str) -> None:
    run(workplace, command)


@pytest.mark.parametrize("block", every_block("python"))
def test_python_runs(workplace: Workplace, block: Block) -> None:
    exec(workplace.filled_in(block.text), {})


@pytest.mark.parametrize("block", every_block("yaml"))
def test_yaml_names_what_there_is(block: Block) -> None:
    config = OmegaConf.create(block.text)
    for part in config.lightning.values():
        assert set(part) <= {"target", "params"}
        assert "target" not in part or callable(get_obj_from_str(part.target))


def test_no_block_is_in_another_language() -> None:
    known = {"bash", "python", "yaml", "text"}  # text: what programs print
    for path in DOCUMENTS:
        assert {block.language for block in blocks_of(path)} <= known, path


def test_everything_that_cannot_run_is_still_there() -> None:
    assert CANNOT_RUN.keys() <= set(every_command())


def flags_of(script: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        run_script(str(script), ["--help"])
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", capsys.readouterr().out))


def test_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = [ROOT / "main.py", *(ROOT / "scripts").glob("*.py")]
    scripts.remove(ROOT / "scripts" / "sample_conditional.py")  # its --help is a page
    known = {f"--{name}" for name in trainer_options()}
    for script in scripts:
        known |= flags_of(script, capsys)
    for path in DOCUMENTS:
        for span in (span for span in spans_of(path) if re.match(r"--?[A-Za-z]", span)):
            flags = set(re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", span))
            assert flags and flags <= known, f"{path.name}: {span}"


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in links_of(path):
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target
