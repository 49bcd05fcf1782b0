"""The commands of the published README run word for word: on example data, with tiny models.

`RUN` stands for a run's folder. Only what would take hours is cut short, by arguments at the end.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from taming.config import load_config, without_checkpoint_paths
from tests.documents import ROOT
from tests.support import GOLDEN, write_run
from tests.test_configs import nodes, prepare, set_if_there, shrink
from tests.workplace import Workplace, run_script


def slow(*values: str | int) -> Any:
    """Parameters that differ little from those which are always tried."""
    return pytest.param(*values, marks=pytest.mark.slow)


PUBLISHED = json.loads((GOLDEN / "published_configs.json").read_text())
PAGE = "streamlit run scripts/sample_conditional.py -- "
TWIN = "python scripts/make_samples.py --outdir path_to_write_samples_to "
EXAMPLES = (
    '-r RUN --ignore_base_data data="{target: main.DataModuleFromConfig, params: {batch_size: 1, '
    'validation: {target: taming.data.%s}}}"'
)
CLASSES = "python scripts/sample_fast.py -r RUN -n 50 -k 600 -t 1.0 -p 0.92 --batch_size 25"
FIND = 'find $(pwd)/your_folder -name "*.jpg" > %s.txt'
TRAIN = "python main.py --base configs/%s.yaml -t True --gpus 0,"
FIRST = "model.params.first_stage_config.params.ckpt_path=STAGES/first_stage_config.ckpt"
CONDITION = "model.params.cond_stage_config.params.ckpt_path=STAGES/cond_stage_config.ckpt"

# Arguments of the demo, and of its twin without a browser, by the run that they are for.
DEMOS = [
    ("drin_transformer", EXAMPLES % "imagenet.DRINExamples"),
    ("coco_transformer", EXAMPLES % "coco.Examples"),
    slow("ade20k_transformer", EXAMPLES % "ade20k.Examples"),
    slow("sflckr_transformer", "-r RUN"),
    slow("faceshq_transformer", "-r RUN"),
    slow("drin_transformer", "-r RUN"),
]
# The run, the command, what cuts it short, and how many samples there are then.
SAMPLING = [
    ("cin_transformer", CLASSES, "-n 1 model.params.cond_stage_config.params.n_classes=8", 8),
    ("cin_transformer", f"{CLASSES} --classes 9,232,901", "-n 2", 6),
    ("ffhq_transformer", "python scripts/sample_fast.py -r RUN", "-n 3", 3),
    slow("celebahq_transformer", "python scripts/sample_fast.py -r RUN", "-n 3", 3),
]
SCENES = ["coco_scene_images_transformer", "open_images_scene_images_transformer"]
# Configs that are trained, and what has to be given besides.
TRAINING = [
    ("faceshq_vqgan", ""),
    ("faceshq_transformer", FIRST),
    ("imagenet_vqgan", ""),
    ("imagenetdepth_vqgan", ""),
    ("drin_transformer", f"{FIRST} {CONDITION}"),
    *((name, FIRST) for name in SCENES),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def surroundings(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace.root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace.root / "cache"))


def folder_of(workplace: Workplace, name: str) -> str:
    """A run with the project YAML of that name, but for its networks: 64 pixels are a token.

    The published YAML, if it is among those that are kept as data; its data section is untouched.
    """
    folder = workplace.root / "logs" / f"2020-11-20T12-54-32_{name}"
    if not folder.is_dir():
        own = load_config([ROOT / "configs" / f"{name}.yaml"])
        whole = OmegaConf.create(PUBLISHED[name]) if name in PUBLISHED else own
        data = OmegaConf.to_container(whole.data)
        model = shrink(OmegaConf.merge({"lightning": own.lightning}, whole)).model
        for node in nodes(model):
            set_if_there(node, ch_mult=[1] * 7, down_factor=64, attn_resolutions=[])
            set_if_there(
                node, resolution=128 if name.startswith(("cin", "ffhq", "celeba")) else 256
            )
        plain = without_checkpoint_paths(model)
        write_run(folder, plain)
        project = {"model": plain, "data": data}
        OmegaConf.save(project, folder / "configs" / "2021-project.yaml")
    return str(folder.relative_to(workplace.root))


def run(workplace: Workplace, command: str, config: str, *more: str) -> None:
    """A command, for the run of a config."""
    program, script, *argv = shlex.split(command.replace("RUN", folder_of(workplace, config)))
    assert program == "python"
    run_script(script, [*argv, "--device", "cpu", *more])


@pytest.mark.parametrize(("config", "arguments"), DEMOS)
def test_demo(
    workplace: Workplace, config: str, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    testing = pytest.importorskip("streamlit.testing.v1", reason="needs the extra 'demo'")
    options = pytest.importorskip("streamlit.config")
    words = shlex.split((PAGE + arguments).replace("RUN", f"{folder_of(workplace, config)}/"))
    assert words[:2] == ["streamlit", "run"] and words[3] == "--"
    monkeypatch.setattr("sys.argv", [*words[2:3], *words[4:], "--device", "cpu"])
    before = options.get_option("server.address")
    options.set_option("server.address", "localhost")
    page = testing.AppTest.from_file(str(Path(words[2]).resolve()), default_timeout=60).run()
    options.set_option("server.address", before)
    assert not page.exception and not page.error
    assert page.radio(key="source").options[:2] == ["an example", "an upload"]


@pytest.mark.parametrize(("config", "arguments"), DEMOS)
def test_demo_without_a_browser(workplace: Workplace, config: str, arguments: str) -> None:
    run(workplace, TWIN + arguments, config, "-n", "1")
    written = workplace.root / "path_to_write_samples_to"
    names = {path.parent.name for path in written.rglob("000000.png")}
    assert names >= {"originals", "reconstructions", "samples"}
    written.rename(workplace.root / f"samples_{len(list(workplace.root.glob('samples_*')))}")


@pytest.mark.parametrize(("config", "command", "shortened", "count"), SAMPLING)
def test_sampling(
    workplace: Workplace, config: str, command: str, shortened: str, count: int
) -> None:
    run(workplace, command, config, *shortened.split(), "-o", f"out_{count}_{config}")
    assert len(list((workplace.root / f"out_{count}_{config}").rglob("*.png"))) == count


@pytest.mark.parametrize("config", [SCENES[0], slow(SCENES[1])])
def test_scenes_are_sampled(workplace: Workplace, config: str) -> None:
    command = "python scripts/make_scene_samples.py --outdir=some/outdir -r RUN"
    command = command.replace("some", config) + " --resolution=512,512"
    run(workplace, command, config, "-N", "1", "-n", "1")
    (sample,) = (workplace.root / config / "outdir").glob("*/samples/*/*.png")
    assert Image.open(sample).size == (512, 512)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "stages"), TRAINING)
def test_training(workplace: Workplace, config: str, stages: str) -> None:
    """In the default suite, tests/test_configs.py trains every config."""
    stages_folder = workplace.root / "stages" / config
    stages_folder.mkdir(parents=True)
    prepare(config, stages_folder)
    command = f"{TRAIN % config} {stages}".replace("STAGES", str(stages_folder))
    workplace.run(command, "--max_steps", "1", "-f", "_trained")
    (folder,) = (workplace.root / "logs").glob(f"*_{config}_trained")
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_own_data(workplace: Workplace) -> None:
    (workplace.root / "your_folder").symlink_to(workplace.root / "data" / "own" / "images")
    for name in ("train", "test"):
        command = FIND.replace("your_folder", "your_folder/") % name  # a link is not followed
        subprocess.run(["bash", "-c", command], check=True)
    path = workplace.root / "configs" / "custom_vqgan.yaml"
    config: Any = yaml.safe_load(path.read_text())
    data = config["data"]["params"]
    data["train"]["params"]["training_images_list_file"] = "train.txt"
    data["validation"]["params"]["test_images_list_file"] = "test.txt"
    path.write_text(yaml.safe_dump(config))
    for gpus in ("0,1", "0,"):
        command = TRAIN.replace("0,", gpus) % "custom_vqgan"
        workplace.run(command, "--max_steps", "1", "-n", f"own_{len(gpus)}", "--devices", "1")
        (folder,) = (workplace.root / "logs").glob(f"*_own_{len(gpus)}")
        assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_environment() -> None:
    """`conda env create -f environment.yaml`, `conda activate taming`, `pip install -e .`."""
    assert yaml.safe_load((ROOT / "environment.yaml").read_text())["name"] == "taming"
    assert (ROOT / "setup.py").is_file() and (ROOT / "pyproject.toml").is_file()
