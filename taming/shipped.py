"""What comes with the package beside its code: the scripts, and the configs, by name."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from taming.errors import UserError, absence
from taming.user_files import YAMLS, with_home

TRAIN, MAIN = "train", "main"  # the subcommand that is main.py
# The scripts by their subcommands, in the order in which they are needed.
SCRIPTS = {
    "digits": "digits",
    "gallery": "gallery",
    "list": "make_image_list",
    "preview": "preview_data",
    "shards": "make_shards",
    "examples": "make_example_data",
    "depth": "extract_depth",
    "segmentation": "extract_segmentation",
    "encode": "encode_dataset",
    "curves": "plot_curves",
    "sample": "sample_fast",
    "sample-data": "make_samples",
    "scenes": "make_scene_samples",
    "complete": "complete",
    "guide": "guide",
    "reconstruct": "reconstruct",
    "demo": "sample_conditional",
    "report": "report",
    "evaluate": "evaluate_fid",
    "evaluate-first-stage": "evaluate_first_stage",
    "compare-quantizers": "compare_quantizers",
    "evaluate-transformer": "evaluate_transformer",
    "evaluate-scenes": "evaluate_scenes",
    "evaluate-classes": "evaluate_classes",
    "reproduce": "reproduce",
    "probe": "linear_probe",
    "figures": "figures",
    "statistics": "compute_statistics",
    "download": "download_models",
    "export": "export",
    "push": "push",
    "submodel": "extract_submodel",
    "consolidate": "consolidate",
}


def shipped(folder: str) -> Path:
    """The folder `scripts` or `configs`: within an installed package, or beside it in a clone."""
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def is_installed() -> bool:
    """Whether the scripts are within the package, where they are subcommands alone."""
    return shipped("scripts").parent == Path(__file__).parent


def in_clone() -> bool:
    """Whether the current folder is a clone's, so that its files are called by their names."""
    with suppress(OSError):  # of a folder that is gone
        return not is_installed() and os.path.samefile(os.curdir, shipped("scripts").parent)
    return False


def has_commands() -> bool:
    """Whether messages call subcommands of `taming`: in an installation, also one of a clone whose
    folder is not the current one."""
    if is_installed():
        return True
    beside = shutil.which("taming", path=os.path.dirname(sys.executable))
    return not in_clone() and (beside or shutil.which("taming")) is not None


def script(name: str) -> str:
    """How messages call a script, so that it can be typed where they are read: in the folder of a
    clone `scripts/sample_fast.py`, elsewhere `taming sample`, or the file's whole path where there
    is no such command. "main" is main.py."""
    if has_commands():
        return f"taming {subcommand_of(name)}"
    file = "main.py" if name == MAIN else f"scripts/{name}.py"
    return file if in_clone() else shlex.quote((shipped("scripts").parent / file).as_posix())


def subcommand_of(name: str) -> str:
    """The subcommand of `taming` that is a script, or main.py."""
    return next((own for own, script_name in SCRIPTS.items() if script_name == name), TRAIN)


def extra(*names: str) -> str:
    """What installs extras: by the name of the package where it is installed, of which pip then
    fetches nothing else; from a clone where it is one, as indexes have another package of the
    name."""
    which = ",".join(names)
    if is_installed():
        return f"pip install 'taming-transformers[{which}]'"
    place = "." if in_clone() else shipped("scripts").parent.as_posix()
    return f"pip install -e {shlex.quote(f'{place}[{which}]')}"


def run_script(name: str) -> str:
    """`script` as the words with which it is run."""
    text = script(name)
    return text if text.startswith("taming ") else f"python {text}"


def script_of(line: Sequence[str]) -> tuple[str, list[str]]:
    """The name of a script and its arguments, of a line that begins with what `script` says, here
    or elsewhere: `["scripts/sample_fast.py", "-r", "x"]`, `["taming", "sample", "-r", "x"]`."""
    first, *rest = line
    if first == "taming" and rest:
        return SCRIPTS.get(rest[0], rest[0]), rest[1:]
    return Path(first).stem, rest


def runnable(line: Sequence[str]) -> list[str]:
    """Such a line as it is run here."""
    name, words = script_of(line)
    return [*shlex.split(run_script(name)), *words]


_CALL = re.compile(r"(torchrun [^`]*?)?(?:python |streamlit run )?scripts/(\w+)\.py")


def as_called(text: str) -> str:
    """A text, such as a help, with the subcommands in place of the scripts' files that it names,
    where these are what is called."""
    if not has_commands():
        return text
    text = _CALL.sub(lambda m: f"{m[1]}-m {script(m[2])}" if m[1] else script(m[2]), text)
    return re.sub(r"(?:python )?\bmain\.py", script(MAIN), text)


def config_names() -> list[str]:
    """The names of the shipped configs: `digits_vqgan`, `small/vqgan`."""
    root = shipped("configs")
    return sorted(
        path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")
    )


def find_config(path: str | Path) -> Path:
    """A config file of the user's, else the shipped one of that name.

    `digits_vqgan`, `digits_vqgan.yaml` and `configs/digits_vqgan.yaml` are such names.
    Raises UserError if there is neither.
    """
    path = with_home(Path(path))
    if os.path.isfile(path):  # False of impossible names, too
        return path
    name = path.as_posix().removeprefix("configs/")
    if path.suffix in YAMLS:
        name = name.removesuffix(path.suffix)
    if name in config_names():
        return shipped("configs") / f"{name}.yaml"
    hint = "" if os.path.isdir(path) else _nearest(name)
    raise UserError(f"{absence('config file', path)}{hint}")


def _nearest(name: str) -> str:
    """`"; did you mean 'digits_vqgan'?"` for the shipped config of which the name, or the last part
    of it, is the most like this one."""
    names = {Path(known).name: known for known in config_names()}
    names |= {known: known for known in config_names()}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"; did you mean '{names[close[0]]}'?" if close else ""
