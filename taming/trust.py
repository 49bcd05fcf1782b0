"""Which names configs may use: a config can say what is built, so a stranger's could run anything.

Classes of this project and listed parts of torch, torchvision and Lightning are always allowed,
and so is what the user names with `--trust` or in TAMING_TRUST. Configs of the user's own (given
with --base, or of a run that main.py made on this machine) may also name all of these packages and
the modules in the current folder, and use OmegaConf's resolvers. All other configs come from
strangers: those of a run's folder, downloaded or copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taming.atomic_files import one_at_a_time, write_text
from taming.errors import UserError, reason_of

PACKAGES = ("taming", "torch", "torchvision", "pytorch_lightning", "lightning", "albumentations")

# What strangers' configs may name, beside this project: classes that do nothing but compute, log
# to the run's folder, or watch the training. Others of these packages download, read pickles, or
# start processes when they are made.
_HARMLESS = re.compile(
    r"taming\..+"
    r"|torch\.nn\.(modules\.\w+\.)?[A-Z]\w*"
    r"|torchvision\.(ops|transforms)\.[A-Z]\w*"
    r"|(pytorch_lightning|lightning\.pytorch)\.callbacks\.(\w+\.)*[A-Z]\w*"
    r"|albumentations\.[A-Z]\w*"
    r"|(pytorch_lightning|lightning\.pytorch)\.loggers\.(CSVLogger|TensorBoardLogger)"
)
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

# Published configs name classes by modules that are scripts, or that live in another project.
_MODULE_ALIASES = {"main": "taming.training", "cutlit": "taming.training"}
_ALIASES = {
    "ldm.models.autoencoder.VQModel": "taming.models.vqgan.VQModel",
    "ldm.models.autoencoder.VQModelInterface": "taming.models.latent_diffusion.VQModelInterface",
}

log = logging.getLogger(__name__)

# What a command line, or the caller of taming.load, trusts; None outside of programs.
trusted: ContextVar[tuple[str, ...] | None] = ContextVar("trusted", default=None)


def is_dotted(name: str) -> bool:
    """Whether a text is a dotted path such as `taming.models.vqgan.VQModel`."""
    return "." in name and _NAME.fullmatch(name) is not None


def canonical_name(target: str) -> str:
    """Where the object that a config calls `target` is today."""
    module, _, name = _ALIASES.get(target, target).rpartition(".")
    return f"{_MODULE_ALIASES.get(module, module)}.{name}"


# ---------------------------------------------------------------------- what the user allows


def in_program() -> bool:
    """Whether a command line was read, rather than functions called from Python."""
    return trusted.get() is not None


@contextlib.contextmanager
def trusting(names: Sequence[str]) -> Iterator[None]:
    """Let configs name these packages, modules or objects, beside what was trusted before.

    Raises:
        UserError: for what is no dotted name.
    """
    token = trusted.set((*(trusted.get() or ()), *checked_names(names)))
    try:
        yield
    finally:
        trusted.reset(token)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """`names`; raises `UserError` for what is no dotted name."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"--trust takes the names of packages such as my_package, not '{name}'")
    return tuple(names)


def trusted_names() -> tuple[str, ...]:
    """Of `--trust` and of TAMING_TRUST."""
    listed = [name.strip() for name in os.environ.get("TAMING_TRUST", "").split(",")]
    return (*(trusted.get() or ()), *checked_names([name for name in listed if name]))


def is_listed(name: str, names: Sequence[str]) -> bool:
    """Whether a dotted name is one of `names`, or lies in a package among them."""
    return any(name == listed or name.startswith(f"{listed}.") for listed in names)


# ---------------------------------------------------------------------- trust in a config


@dataclass(frozen=True)
class Trust:
    """What one config may name.

    Attributes:
        own: whether it is the user's: whole packages, resolvers and output folders are allowed.
        all: whether it may name anything, as in Python code of the user's.
        names: packages, modules and objects.
        folders: modules directly in these are allowed.
    """

    own: bool
    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    all: bool = False

    def allows(self, name: str) -> bool:
        """Whether a config may name the object at a dotted path. Nothing is imported."""
        if self.all or is_listed(name, self.names) or _HARMLESS.fullmatch(name):
            return True
        return self.own and (is_listed(name, PACKAGES) or self._is_in_folder(name))

    def _is_in_folder(self, name: str) -> bool:
        package = name.partition(".")[0]
        find = importlib.machinery.PathFinder.find_spec
        found = [(folder, spec) for folder in self.folders if (spec := find(package, [folder]))]
        # Modules go before folders that merely have the name (namespace packages), as in imports.
        for folder, spec in sorted(found, key=lambda one: one[1].origin is None):
            elsewhere = _find(package)
            if elsewhere is not None and elsewhere.origin is None and spec.origin is not None:
                elsewhere = None
            if elsewhere is None:
                sys.path.append(folder)  # scripts do not have it, as their own folder comes first
            if elsewhere is None or _place(elsewhere) == _place(spec):
                return True
        return False


def _find(package: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(package)
    except ValueError:  # a module without a spec, such as __main__
        return None


def _place(spec: importlib.machinery.ModuleSpec) -> list[str]:
    where = spec.submodule_search_locations or [spec.origin or ""]
    return [os.path.realpath(place) for place in where]


def own_trust() -> Trust:
    """Trust in what the user gives with --base, or to functions of this package in Python."""
    python_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [os.getcwd(), *(os.path.abspath(folder) for folder in python_path if folder)]
    return Trust(True, trusted_names(), tuple(dict.fromkeys(folders)), not in_program())


def stranger() -> Trust:
    """Trust in the configs of a run's folder, wherever they are from."""
    return Trust(False, trusted_names())


def trust_in(config: Path, otherwise: Trust) -> Trust:
    """Trust in a config that main.py wrote on this machine: as in the user's own."""
    try:
        made_here = _read_state().get(_digest(config)) if os.path.isfile(config) else None
    except OSError as error:
        raise UserError(f"{config} cannot be read ({reason_of(error)})") from None
    if not isinstance(made_here, dict):
        return otherwise
    own = own_trust()
    names, folders = (
        tuple(entry for entry in made_here.get(key, ()) if isinstance(entry, str))
        for key in ("names", "folders")
    )
    return Trust(True, (*own.names, *names), (*own.folders, *folders), own.all)


# ---------------------------------------------------------------------- runs made here


def _state_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state, "taming", "trusted_runs.json")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_state() -> dict[str, Any]:
    """By the SHA-256 of configs that were written here: what they were allowed to name."""
    try:
        state = json.loads(_state_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def remember(configs: Sequence[Path]) -> None:
    """Trust configs that main.py has just written, from now on and whoever starts a script here.

    What they may name is what the configs that they were made of were allowed to. Without a folder
    to remember it in, there is a warning.
    """
    own = own_trust()
    entry = {"names": sorted(set(own.names)), "folders": list(own.folders)}
    path = _state_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.with_suffix(".lock")):
            state = _read_state() | {_digest(config): entry for config in configs}
            write_text(path, json.dumps(state, indent=1) + "\n")
    except (OSError, UserError) as error:
        log.warning("the run's configs are not remembered as trusted ones: %s", error)
