"""What made-up input is given to: each target takes a case and runs in an empty folder of its own.

They stand for what users run; where a whole program takes long, for the part that reads the input.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from scripts import sample_fast
from taming.checkpoint import load_run, read_checkpoint
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.annotated_objects_open_images import AnnotatedObjectsOpenImages
from taming.data.base import ImagePaths, NumpyPaths
from taming.data.custom import CustomTrain
from taming.data.imagenet import ImageNetTrain
from taming.data.shards import Shards
from taming.pictures import Placed
from taming.sampling.completion import keep_mask
from taming.sampling.conditions import read_picture
from taming.sampling.scenes import read_layout
from taming.training.cli import main as train_command
from tests.faults.cases import CASES
from tests.kit.images import write_images
from tests.kit.runs import tiny_run
from tests.kit.scenes import OPTIONS, write_coco, write_open_images

# The functions without what turns errors into exit codes.
train = train_command.__wrapped__  # type: ignore[attr-defined]
sample = sample_fast.main.__wrapped__  # type: ignore[attr-defined]

SCENES: dict[str, Any] = {}


def assets() -> Path:
    """The folder that `prepare` has filled, beside those of the cases."""
    return Path.cwd().parent / "assets"


def prepare(folder: Path) -> None:
    """Write what cases refer to: `ASSETS` in strings, and copies for those who change files."""
    paths = write_images(folder / "images", 6, 32, 40)
    (folder / "images.txt").write_text("\n".join(paths))
    tiny_run(folder / "run")
    write_coco(folder / "coco")
    write_open_images(folder / "open_images")
    options = OPTIONS | {"data_path": str(folder / "coco")}
    SCENES["coco"] = AnnotatedObjectsCoco(**options)
    listed = {"size": 8, "training_images_list_file": str(folder / "images.txt")}
    images = {"target": "taming.data.custom.CustomTrain", "params": listed}
    for name in ("vqgan", "transformer"):
        content = CASES[name]()
        if name == "vqgan":
            content["data"]["params"] |= {"train": images, "validation": images}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for name in ("a", "b"):
        write_images(folder / "classes" / name, 6, 32, 40)
    options = {"root": str(folder / "classes"), "size": 8, "validation_fraction": 0.5}
    labeled = {"target": "taming.data.folder.ImageFolderValidation", "params": options}
    params = {"batch_size": 2, "validation": labeled}
    data = {"target": "main.DataModuleFromConfig", "params": params}
    (folder / "labeled.yaml").write_text(yaml.safe_dump({"data": data}))


def _filled(case: Any) -> Any:
    """`ASSETS` in strings becomes the folder."""
    if isinstance(case, str):
        return case.replace("ASSETS", str(assets()))
    if isinstance(case, list):
        return [_filled(entry) for entry in case]
    if isinstance(case, dict):
        return {_filled(key): _filled(value) for key, value in case.items()}
    return case


def config(case: dict[str, Any]) -> None:
    """Build, as `main.py --base` without -t does, all that a config names."""
    text = yaml.safe_dump(_filled(case), allow_unicode=True)
    Path("fuzz.yaml").write_text(text, encoding="utf-8")
    train(["--base", "fuzz.yaml"])


def trained(case: dict[str, Any]) -> None:
    """Two steps of training with a config, and validation."""
    text = yaml.safe_dump(_filled(case), allow_unicode=True)
    Path("fuzz.yaml").write_text(text, encoding="utf-8")
    steps = ["--max_steps", "2", "--limit_val_batches", "1", "--num_sanity_val_steps", "1"]
    train(["--base", "fuzz.yaml", "-t", "--no-test", *steps])


def yaml_text(case: str) -> None:
    """The same with a text that need not be YAML."""
    Path("fuzz.yaml").write_bytes(case.encode("latin-1"))
    train(["--base", "fuzz.yaml"])


def training_arguments(case: list[str]) -> None:
    """A command line of main.py."""
    train(_filled(case))


def sampling_arguments(case: list[str]) -> None:
    """A command line of sample_fast.py."""
    sample(["-r", str(assets() / "run"), "-o", "out", "--device", "cpu", *_filled(case)])


def script_arguments(case: list[str]) -> None:
    """A script and its command line."""
    name, *words = case
    shutil.copytree(assets() / "run", "run")  # some write into it
    main = importlib.import_module(f"scripts.{name}").main
    main.__wrapped__(_filled(words))


def stranger(case: dict[str, Any]) -> None:
    """A downloaded run with this config: sampled from, and gone on with."""
    shutil.copytree(assets() / "run" / "checkpoints", "run/checkpoints")
    Path("run/configs").mkdir()
    Path("run/configs/2026-01-01T00-00-00-project.yaml").write_text(yaml.safe_dump(case))
    load_run("run")
    train(["-r", "run"])


def list_file(case: str) -> None:
    """A list of images."""
    Path("list.txt").write_bytes(_filled(case).encode("latin-1"))
    data = CustomTrain(16, "list.txt")
    for index in islice(range(len(data)), 3):
        data[index]


def coco(case: dict[str, Any]) -> None:
    """The annotations of COCO: instances and stuff."""
    shutil.copytree(assets() / "coco", "coco", symlinks=True)
    for name, content in case.items():
        text = content if isinstance(content, str) else json.dumps(content)
        path = Path(f"coco/annotations/{name}_train2017.json")
        path.unlink()
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    _read_scenes(AnnotatedObjectsCoco(**OPTIONS | {"data_path": "coco"}))


def open_images(case: dict[str, str]) -> None:
    """The CSVs of Open Images."""
    shutil.copytree(assets() / "open_images", "open_images")
    for name, text in case.items():
        Path("open_images", name).write_bytes(text.encode("latin-1"))
    options = OPTIONS | {"data_path": "open_images", "use_additional_parameters": True}
    _read_scenes(AnnotatedObjectsOpenImages(**options))


def _read_scenes(data: Any) -> None:
    for index in islice(range(len(data)), 2):
        data[index]


def layout(case: Any) -> None:
    """A scene that a person wrote."""
    path = Path("layout.yaml")
    if isinstance(case, str):
        path.write_bytes(case.encode("latin-1"))
    else:
        path.write_text(yaml.safe_dump(case, allow_unicode=True), encoding="utf-8")
    dataset = SCENES["coco"]
    scene = read_layout(path, dataset, "objects_bbox")
    scene.tokens(dataset.conditional_builders["objects_bbox"])


def mask(case: str) -> None:
    """A file for --keep, of an image of 16 x 16 pixels with patches of 4 x 4."""
    Path("mask.png").write_bytes(case.encode("latin-1"))
    keep_mask("mask.png", Placed.whole((16, 16)), 4)


def image(case: str) -> None:
    """An image file, of a dataset and of a person's."""
    Path("image.png").write_bytes(case.encode("latin-1"))
    ImagePaths(["image.png"], size=16)[0]
    read_picture("image.png", 3)


# ---------------------------------------------------------------------- files


def checkpoint(case: str) -> None:
    """A file of weights, and the same in a run."""
    Path("x.ckpt").write_bytes(case.encode("latin-1"))
    read_checkpoint("x.ckpt")
    Path("run/checkpoints").mkdir(parents=True)
    shutil.copytree(assets() / "run" / "configs", "run/configs")
    shutil.move("x.ckpt", "run/checkpoints/last.ckpt")
    load_run("run")


def imagenet_tar(case: str) -> None:
    """The tar of ImageNet's training images."""
    os.environ["XDG_CACHE_HOME"] = os.getcwd()
    folder = Path("autoencoders/data/ILSVRC2012_train")
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(case.encode("latin-1"))
    ImageNetTrain({"size": 16})[0]


def shards(case: str) -> None:
    """A tar of images."""
    Path("shard-000000.tar").write_bytes(case.encode("latin-1"))
    Shards("shard-000000.tar", 16)[0]


def array(case: str) -> None:
    """A file of numpy."""
    Path("a.npy").write_bytes(case.encode("latin-1"))
    NumpyPaths(["a.npy"], size=16)[0]


def mischief(case: str) -> None:
    """Python code, for the tests of the sandbox itself."""
    exec(case)
