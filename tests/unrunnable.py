"""Commands of the documents that no test runs as they are written: why, and what is done instead.

A command that is neither here nor one that `Workplace.run` understands fails the documents' tests.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from taming.gallery.pictures import PICTURES
from taming.published_models import published_models
from tests.documents import PROJECT, ROOT
from tests.workplace import Workplace, run_script


def nothing_to_check(workplace: Workplace, command: str) -> None:
    """For commands of other programs that name nothing of the project's."""


def check_extras(workplace: Workplace, command: str) -> None:
    (extra,) = re.findall(r"(?:\.|taming-transformers)\[([\w,]+)\]", command)
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
    script = "streamlit run scripts/sample_conditional.py --"
    words = shlex.split(workplace.filled_in(command.replace("taming demo", script)))
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
PROCESSES = "several processes"
CANNOT_RUN: dict[str, tuple[str, Check]] = {
    "git clone <this repository> taming-transformers": (NETWORK, nothing_to_check),
    "cd taming-transformers": (ENVIRONMENT, nothing_to_check),
    "python3 -m venv .venv": (ENVIRONMENT, nothing_to_check),
    "source .venv/bin/activate": (ENVIRONMENT, nothing_to_check),
    "pip install -e '.[data]'": (ENVIRONMENT, check_extras),
    "pip install -e '.[demo]'": (ENVIRONMENT, check_extras),
    "pip install -e '.[lsun]'": (ENVIRONMENT, check_extras),
    "pip install -e '.[guide]'": (ENVIRONMENT, check_extras),
    "pip install 'taming-transformers[data] @ git+<this repository>'": (ENVIRONMENT, check_extras),
    "pip wheel --no-deps .": (ENVIRONMENT, nothing_to_check),
    "conda env create -f environment.yaml": (ENVIRONMENT, check_environment),
    "conda activate taming": (ENVIRONMENT, check_environment),
    "make demo": ("takes minutes; tests/test_demo.py runs its commands", check_target),
    "make test": ("runs this test", check_target),
    "make docs": ("installs; tests/test_site.py builds the site", check_target),
    "make gallery": ("takes an hour; tests/scripts/test_gallery.py makes it small", check_target),
    **{
        f"python scripts/gallery.py --only {name}": ("trains for minutes", check_flags)
        for name in PICTURES
    },
    "python scripts/compare_quantizers.py": ("trains for hours", check_flags),
    "python scripts/compare_quantizers.py --recipe quantizers/photographs --seeds 2": (
        "trains for hours",
        check_flags,
    ),
    "taming compare-quantizers --quantizers digits_vq digits_fsq --seeds 2": (
        "trains for many minutes",
        nothing_to_check,
    ),
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
    'python scripts/guide.py -r logs/<run> --clip ViT-B-32 --prompt "a fox:1.0" '
    '--prompt "blurry:-0.3"': (
        "needs CLIP's weights; tests/guidance/test_clip.py has a small one",
        check_flags,
    ),
    "python scripts/guide.py -r logs/<run> --features lpips --image_prompt photo.png "
    "--init photo.png": ("needs VGG16's weights, half a gigabyte", check_flags),
    "torchrun --nproc_per_node 4 scripts/sample_fast.py ...": ("several processes", check_share),
    "streamlit run scripts/sample_conditional.py -- -r logs/<run>": (
        "a server that does not end",
        check_page,
    ),
    "taming demo -r logs/<run of the transformer>": ("a server that does not end", check_page),
    "pip install -e .": (ENVIRONMENT, nothing_to_check),
    "source FILE": ("a line of a shell's own file", nothing_to_check),
    "make faults": ("takes minutes", check_target),
    "taming push logs/<run> owner/name --license mit": (NETWORK, nothing_to_check),
    "taming download dalle_dvae": (NETWORK, nothing_to_check),
    "python scripts/download_models.py var_vae": (NETWORK, check_models),
    "python scripts/download_models.py NAME": (NETWORK, nothing_to_check),
    "torchrun --standalone --nproc_per_node 4 scripts/...": (PROCESSES, nothing_to_check),
    "python benchmarks/evaluation.py --memory": ("takes minutes", nothing_to_check),
    "python benchmarks/training.py --stage paper --size 128 --fast": (
        "takes minutes",
        nothing_to_check,
    ),
}

# Of these, what is executed all the same: by the check above, or by the test in this file.
EXECUTED = {
    **dict.fromkeys(
        [
            "git clone <this repository> taming-transformers",
            "cd taming-transformers",
            "python3 -m venv .venv",
            "source .venv/bin/activate",
            "pip install -e '.[data]'",
            "pip install -e '.[demo]'",
            "pip install -e '.[lsun]'",
            "pip install -e '.[guide]'",
            "pip install -e .",
        ],
        "tests/test_commands_elsewhere.py",
    ),
    "taming demo -r logs/<run of the transformer>": "tests/unrunnable.py",
    'python scripts/guide.py -r logs/<run> --clip ViT-B-32 --prompt "a fox:1.0" '
    '--prompt "blurry:-0.3"': "tests/scripts/test_guide.py",  # with a stand-in for CLIP
    "python scripts/download_models.py cin_transformer": "tests/test_pretrained.py",
    "python scripts/download_models.py vqgan_imagenet_f16_16384": "tests/test_pretrained.py",
    "python scripts/download_models.py var_vae": "tests/test_pretrained.py",
    "python scripts/download_models.py NAME": "tests/test_pretrained.py",
    "taming download dalle_dvae": "tests/test_pretrained.py",
    "taming push logs/<run> owner/name --license mit": "tests/scripts/test_push.py",
    "pip wheel --no-deps .": "tests/test_program.py",
    "source FILE": "tests/test_program.py",
    "make test": ".github/workflows/tests.yml",
    "make docs": "tests/test_site.py",
    "make gallery": "tests/scripts/test_gallery.py",
    **{
        f"python scripts/gallery.py --only {name}": "tests/scripts/test_gallery.py"
        for name in PICTURES
    },
    **dict.fromkeys(
        [
            "python scripts/compare_quantizers.py",
            "python scripts/compare_quantizers.py --recipe quantizers/photographs --seeds 2",
            "taming compare-quantizers --quantizers digits_vq digits_fsq --seeds 2",
        ],
        "tests/scripts/test_compare_quantizers.py",
    ),
    "make demo": "tests/test_demo.py",
    "kill -USR1 <pid>": "tests/training/test_cli.py",
    "torchrun --nproc_per_node 4 scripts/sample_fast.py ...": "tests/unrunnable.py",
    "streamlit run scripts/sample_conditional.py -- -r logs/<run>": "tests/unrunnable.py",
    "tensorboard --logdir logs": "tests/unrunnable.py",
    "python scripts/extract_depth.py": "tests/scripts/test_extract.py",
    "python scripts/extract_depth.py --images data/pairs/images --outdir data/pairs/depth": (
        "tests/scripts/test_extract.py"
    ),
    "python scripts/extract_segmentation.py data/pairs/segmentation --images data/pairs/images": (
        "tests/scripts/test_extract.py"
    ),
}


def run(workplace: Workplace, command: str) -> None:
    """A command of a document, or what is checked of it instead."""
    if command in CANNOT_RUN:
        CANNOT_RUN[command][1](workplace, command)
    else:
        workplace.run(command)
