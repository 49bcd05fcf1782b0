"""What comes with the package beside its code: the scripts, and the configs, by name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from taming.errors import UserError, absence
from taming.user_files import YAMLS


def shipped(folder: str) -> Path:
    """The folder `scripts` or `configs`: within an installed package, or beside it in a clone."""
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


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
    path = Path(path)
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
