"""A scratch folder in which the commands of the documents run as they are written.

It has the repository's scripts, its configs (shrunken), rendered data in the formats of all
datasets, and, made when a command first needs them, runs that stand in for trained ones.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import torch
from omegaconf import OmegaConf
from PIL import Image

from taming.checkpoint import expand_stages, save_atomic
from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.data.examples import write_all
from taming.data.examples.rendering import render
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.program import OWN
from taming.program import main as program_main
from taming.published_models import published_models
from taming.shipped import SCRIPTS, config_names
from taming.training.arguments import parse_arguments
from tests.documents import ROOT
from tests.kit.tokenizers import foreign_file
from tests.test_configs import prepare, shrink

CLASSES = "data/classes"  # a folder per class
IMAGES = "data/own/images"

# Appended to a command: what would take hours is cut short, what a GPU or the network would do is
# done by what is here. The flags of the document still have to be understood.
EXTRA: dict[str, Sequence[str]] = {
    "scripts/sample_fast.py": ("-n", "2"),
    "scripts/make_samples.py": ("-n", "1"),
    "scripts/make_scene_samples.py": ("--samples_per_layout", "1"),
    "scripts/complete.py": ("-n", "1"),
    "scripts/guide.py": ("-n", "1", "--steps", "2", "--cutouts", "1"),
    "scripts/evaluate_fid.py": (
        *("--extractor", "tests.kit.extractor:TinyExtractor", "-n", "1"),
        *("--prc_extractor", "tests.kit.extractor:TinyExtractor"),
        *("--isc_splits", "1", "--kid_subsets", "2", "--kid_subset_size", "2"),
    ),
    "scripts/evaluate_first_stage.py": ("--extractor", "tests.kit.extractor:TinyExtractor"),
    "scripts/evaluate_scenes.py": (
        *("--extractor", "tests.kit.extractor:TinyExtractor", "--isc_splits", "1"),
    ),
    "scripts/compute_statistics.py": ("--extractor", "tests.kit.extractor:TinyExtractor"),
    "benchmarks/sampling.py": ("--size", "small", "--rounds", "1", "--no_results"),
}

# What `logs/<run>` stands for: the run of a config that the script can do something with.
RUN_FOR = {
    "scripts/sample_fast.py": "class_transformer",
    "scripts/make_samples.py": "paired_segmentation_transformer",
    "scripts/make_scene_samples.py": "coco_scene_images_transformer",
    "scripts/complete.py": "class_transformer",
    "scripts/reconstruct.py": "custom_vqgan",
    "scripts/guide.py": "custom_vqgan",
    "scripts/evaluate_fid.py": "class_transformer",
    "scripts/evaluate_first_stage.py": "custom_vqgan",
    "scripts/evaluate_transformer.py": "class_transformer",
    "scripts/evaluate_scenes.py": "coco_scene_images_transformer",
    "scripts/linear_probe.py": "custom_vqgan",
    "scripts/report.py": "digits_transformer",
    "scripts/sample_conditional.py": "class_transformer",
    "scripts/extract_submodel.py": "class_transformer",
}
DIGITS = ("digits_transformer", "digits_any_order_transformer", "digits_masked_transformer")
FIRST_STAGE_FOR = dict.fromkeys(DIGITS, "digits_vqgan")  # custom_vqgan for all others
STAND_INS = {"vqgan_imagenet_f16_16384": "finetune_vqgan", "cin_transformer": "cin_transformer"}
STAND_INS["var_vae"] = "imagenet_multi_scale_vqgan"
FINETUNED = tuple(STAND_INS)
IMAGES_OF = ("ffhq", "celebahq", "ade20k", "coco", "faceshq", "sflckr", "drin")
STAND_INS |= {f"{name}_transformer": f"{name}_transformer" for name in IMAGES_OF}
STAND_INS |= dict.fromkeys(("oi_scene_1b", "oi_scene_125m"), "open_images_scene_images_transformer")
STAND_INS |= {"coco_scene_60": "coco_scene_images_transformer"}
STAND_INS |= dict.fromkeys(("vqgan_imagenet_f16_1024", "vq_f8_n256", "vq_f8"), "imagenet_vqgan")
STAND_INS |= dict.fromkeys(("vqgan_gumbel_f8", "dalle_dvae"), "imagenet_gumbel_vqgan")


class Workplace:
    """The folder, which has to be the current one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = 0
        write_all(root)
        for name in ("main.py", "scripts", "benchmarks", "docs", ".streamlit"):
            (root / name).symlink_to(ROOT / name)
        for path in (ROOT / "configs").rglob("*.yaml"):
            own = root / path.relative_to(ROOT)
            own.parent.mkdir(parents=True, exist_ok=True)
            config = load_config([path])
            # What is merged over a recipe has none of its own.
            OmegaConf.save(shrink(config) if "data" in config else config, own)
        Image.fromarray(render(0, 256, 256).image).save(root / "photo.png")
        Image.linear_gradient("L").point(lambda value: 255 * (value > 127)).save(root / "mask.png")
        (root / "street.yaml").write_text("- {class: cup, box: [0.1, 0.2, 0.3, 0.7]}\n")

    def run_of(self, config: str) -> str:
        """The newest run of a config, made if there is none, as a path below the folder."""
        runs = sorted((self.root / "logs").glob(f"*_{config}"))
        return f"logs/{runs[-1].name}" if runs else self.stand_in(config)

    def stand_in(self, config: str, name: str = "") -> str:
        """A run of a shrunken config with random weights, as training leaves it."""
        self._made += 1
        day = datetime(2021, 1, 1) + timedelta(seconds=self._made)
        folder = self.root / "logs" / (name or f"{day:%Y-%m-%dT%H-%M-%S}_{config}")
        stages = self.root / "stages" / folder.name
        stages.mkdir(parents=True)
        whole = load_config([prepare(config, stages)])
        expand_stages(whole)
        torch.manual_seed(0)
        model = instantiate_from_config(without_checkpoint_paths(whole.model))
        for part in ("checkpoints", "configs"):
            (folder / part).mkdir(parents=True)
        state = {"state_dict": model.state_dict(), "global_step": 7}
        save_atomic(state, folder / "checkpoints" / "last.ckpt")
        OmegaConf.save(whole, folder / "configs" / "2021-01-01T00-00-00-project.yaml")
        return f"logs/{folder.name}"

    def larger_classes(self) -> str:
        """The folder per class with six images in each, as folds of a probe need some."""
        for path in sorted((self.root / CLASSES).glob("*/*.png")):
            for copy in range(6):
                target = self.root / "data" / "larger" / path.parent.name / f"{copy}{path.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return "data/larger"

    def trained(self) -> str:
        """A run that was trained here for two steps, with what it has logged."""
        name = "trained_here"
        if not list(self.root.glob(f"logs/*_{name}")):
            flags = f"-n {name} -t True --max_steps 2 --log_every_n_steps 1"
            self.run(f"python main.py --base configs/small/vqgan.yaml {flags}")
        return self.run_of(name)

    def published(self, name: str) -> None:
        """What stands in for a published model is where its download would be."""
        folder = Path(published_models()[name].folder)
        if not (self.root / folder).is_dir():
            self.stand_in(STAND_INS[name], folder.name)

    def diffusers_folder(self) -> str:
        """A first stage in diffusers' format."""
        if not (self.root / "exported").is_dir():
            run_script("scripts/export.py", ["diffusers", self.run_of("custom_vqgan"), "exported"])
        return "exported"

    def classifier(self) -> str:
        """A classifier as scripts/report.py leaves one, with random weights."""
        SmallClassifier(10, 16, 8).save(self.root / "classifier.pt")
        return "classifier.pt"

    def resnet(self) -> str:
        """A ResNet18 of torchvision's with random weights."""
        if not (path := self.root / "resnet18.pth").is_file():
            from torchvision.models import get_model

            torch.save(get_model("resnet18", num_classes=10).state_dict(), path)
        return path.name

    def filled_in(self, text: str) -> str:
        """A command or code with what its placeholders stand for."""
        script = next((word for word in text.split() if word.endswith(".py")), "")
        config = next(iter(re.findall(r"configs/(\w+)\.yaml", text)), "")
        first_stage = FIRST_STAGE_FOR.get(config, "custom_vqgan")
        run = RUN_FOR.get(script, "class_transformer")
        if script == "scripts/complete.py" and "--condition" not in text:
            run = "custom_transformer"
        values = {
            "logs/<run of the VQGAN>": lambda: self.run_of(first_stage),
            "logs/<run of the transformer>": lambda: self.run_of("digits_transformer"),
            "logs/<run>": lambda: (
                self.trained() if script == "scripts/plot_curves.py" else self.run_of(run)
            ),
            "from_diffusers FOLDER logs/<name>": lambda: (
                f"from_diffusers {self.diffusers_folder()} logs/imported"
            ),
            "configs/x.yaml": lambda: "configs/custom_vqgan.yaml",  # any config
            "logs/<trained run>": self.trained,
            "logs/<another>": lambda: self.stand_in("custom_vqgan"),
            "configs/<data>.yaml": lambda: "configs/class_transformer.yaml",
            "<number of subfolders>": lambda: str(len(list((self.root / CLASSES).iterdir()))),
            "FOLDER_OF_SAMPLES": lambda: "data/pairs/images",
            "FOLDER_OF_IMAGES": lambda: IMAGES,
            "RESNET_WEIGHTS": self.resnet,
            "small:CLASSIFIER": lambda: f"small:{self.classifier()}",
            "FOLDER_OF_CLASSES": self.larger_classes,
            "FOLDER_OF_CLASS_FOLDERS": self.larger_classes,
            " SAMPLES REFERENCE": lambda: f" {IMAGES} {IMAGES}",
            " SOURCE OUT.npz": lambda: f" {IMAGES} out.npz",
            " ANOTHER": lambda: f" {CLASSES}",
            "vq_ds16_c2i.pt": lambda: str(foreign_file("llamagen", self.root)),
            "=FOLDER": lambda: f"={CLASSES}",
            "FOLDER": lambda: IMAGES,
        }
        for name in STAND_INS:
            finetuned = "finetune" in text and name in FINETUNED
            if finetuned or re.search(rf"(\d_|[/\"]| -r ){name}\b(?!\.yaml)", text):
                self.published(name)
        text = re.sub(r"logs/<run of (\w+)>", lambda named: self.run_of(named[1]), text)
        for placeholder, value in values.items():
            if placeholder in text:
                text = text.replace(placeholder, value())
        assert not re.search(r"<[^>]*>", text), f"a placeholder that the test does not know: {text}"
        return text

    def run(self, command: str, *more: str) -> None:
        """Run a `python` command in this process, by the script's own entry point.

        Args:
            more: further arguments of main.py.

        Raises:
            SystemExit: if the command ends with an error.
        """
        words = shlex.split(self.filled_in(as_script(command)).replace("$PWD", os.getcwd()))
        if words[0] == "cd":
            return os.chdir(words[1])
        variables = {}
        while "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
        program, script, *argv = words
        if words[1:2] == ["-c"]:
            return exec(words[2], {})
        if script == "taming":
            return program_main(argv)
        assert program == "python" and script.endswith(".py"), f"no way to run {command}"
        known_as = script.removeprefix("../")
        if known_as == "main.py":
            argv = without_gpus([*argv, *more])
        if known_as == "scripts/report.py" and not list((self.root / argv[1]).glob("samples/*")):
            self.run(f"python scripts/sample_fast.py -r {argv[1]}")
        run_script(script, [*argv, *EXTRA.get(known_as, ())], variables)


def as_script(command: str) -> str:
    """`taming sample ...` as `python scripts/sample_fast.py ...`; other commands as they are."""
    program, *words = command.split(" ")
    if program != "taming":
        return command
    if words[0] in OWN:
        script = "main.py" if words[0] == "train" else f"taming {words[0]}"
    else:
        script = f"scripts/{SCRIPTS[words[0]]}.py"
    names = set(config_names())
    files = [  # what follows -r is a run or a published model
        f"configs/{word}.yaml" if word in names and before != "-r" else word
        for before, word in pairwise(words)
    ]
    return " ".join(["python", script, *(words[1:] if words[0] == "configs" else files)])


def without_gpus(argv: Sequence[str]) -> list[str]:
    """main.py's arguments, which have to be understood, less `--gpus`, if there is no GPU."""
    parse_arguments(argv)
    argv = list(argv)
    if "--gpus" in argv and not torch.cuda.is_available():
        place = argv.index("--gpus")
        del argv[place : place + 2]
    return argv


def run_script(
    script: str, argv: Sequence[str], variables: Mapping[str, str] | None = None
) -> None:
    """A script of the current folder, as `python script argv` runs it."""
    before = sys.argv, list(sys.path), dict(os.environ)
    try:
        sys.argv = [script, *argv]
        sys.path.insert(0, str(Path(script).resolve().parent))
        os.environ.update(variables or {})
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before[:2]
        os.environ.clear()
        os.environ.update(before[2])
