"""A name in a config becomes a class, and what is wrong with it is said with its place.

This is the only place where a name from a config is resolved.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from taming.errors import Stopped, UserError, described, own_code, shorten
from taming.trust import PACKAGES, canonical_name, in_program, is_dotted, is_listed, trusted_names
from taming.user_code import kind_of, name_of

# What a place in a config expects: a subclass of the class at a dotted path, or a class with one
# of these methods.
KINDS: Mapping[str, str | tuple[str, ...]] = {
    "callback": "pytorch_lightning.Callback",
    "data module": "pytorch_lightning.LightningDataModule",
    "dataset": ("__getitem__", "__iter__"),
    "logger": "pytorch_lightning.loggers.Logger",
    "module": "torch.nn.Module",
    "schedule": ("__call__",),
}

# The config key under construction, so that an error deep in a model can name where it comes from.
_path: ContextVar[str] = ContextVar("config_path", default="")


@contextmanager
def inside(key: str) -> Iterator[None]:
    """A block whose `config_error`s are about what lies at `key` within the key before."""
    token = _path.set(f"{_path.get()}.{key}".strip("."))
    try:
        yield
    finally:
        _path.reset(token)


def current_key() -> str:
    """Where `inside` is."""
    return _path.get()


def config_error(message: str) -> UserError:
    """An error about the key that `inside` is at."""
    where = _path.get().strip(".")
    return UserError(f"{where}: {message}" if where else message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or what there is to choose from."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 20 else ""


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The object at a dotted path such as `taming.models.vqgan.VQModel`."""
    if not isinstance(string, str) or not is_dotted(string):
        example = "taming.models.vqgan.VQModel"
        raise config_error(f"the target {shorten(string)} is not a dotted path such as {example}")
    module_name, _, name = canonical_name(string).rpartition(".")
    module = _import(module_name, string)
    if reload:
        module = importlib.reload(module)
    try:
        return getattr(module, name)
    except AttributeError:
        home = _home_near(module_name, name)
        hint = f"; it is in {home}" if home else did_you_mean(name, _names_of(module))
        raise config_error(f"there is no '{name}' in {module_name}{hint}") from None


def _names_of(module: ModuleType) -> list[str]:
    """What a module has to name: its own classes and functions; of one without any, all names."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    own = [name for name, value in public.items() if _is_own(module, value)]
    return own or list(public)


def _is_own(module: ModuleType, value: object) -> bool:
    made = inspect.isclass(value) or inspect.isfunction(value)
    return made and value.__module__ == module.__name__


def _home_near(module_name: str, name: str) -> str | None:
    """The module of ours beside the one of that name that has the class or function `name`."""
    package = sys.modules.get(module_name.rpartition(".")[0])
    if package is None or not is_listed(module_name, ("taming",)):
        return None
    found = (each.name for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}."))
    for near in found:
        if near.endswith(".__main__"):  # a program
            continue
        with suppress(ImportError):  # a package that is not installed
            module = importlib.import_module(near)
            if _is_own(module, vars(module).get(name)):
                return near
    return None


def _import(module_name: str, target: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise config_error(f"{target} needs the package '{error.name}': install it") from error
        hint = did_you_mean(module_name, _modules_near(module_name))
        raise config_error(f"there is no module '{module_name}'{hint}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, Stopped | UserError) or is_listed(module_name, ("taming",)):
            raise
        raise config_error(f"the import of {module_name} raises {described(error)}") from error


def _modules_near(module_name: str) -> list[str]:
    """All modules of the package that `module_name` starts with (of ours, if there is none)."""
    package = module_name.partition(".")[0]
    spec = importlib.util.find_spec(package) or importlib.util.find_spec("taming")
    if spec is None or not spec.submodule_search_locations:
        return [package]
    walk = pkgutil.walk_packages(spec.submodule_search_locations, f"{spec.name}.")
    return [module.name for module in walk]


def is_installed(target: Any) -> bool:
    """Whether there is the package that a name in a config starts with, if it is a name at all."""
    if not isinstance(target, str) or not is_dotted(target):
        return True
    return importlib.util.find_spec(canonical_name(target).partition(".")[0]) is not None


def target_of(node: Any, expects: str | None) -> Any:
    """The class that a config, `target` and `params`, names; `expects` is one of `KINDS`.

    Raises:
        UserError: if it is no such config, or names something else.
    """
    if not isinstance(node, Mapping) or "target" not in node:
        based = isinstance(node, Mapping) and "base" in node
        hint = ", read by taming.config.load_config" if based else ""
        raise config_error(f"expected a 'target' and its 'params' here{hint}")
    for name in map(str, node):
        if name != "params" and difflib.get_close_matches(name, ["params"], cutoff=0.8):
            raise config_error(f"unknown key '{name}'; did you mean 'params'?")
    target = get_obj_from_str(node["target"])
    if not callable(target):
        raise config_error(f"{node['target']} is {kind_of(target)}, not a class")
    if expects is not None:
        _check_kind(target, node["target"], expects)
    return target


def note_own_code(target: Any) -> None:
    """Remember, for what a command says of errors, that it makes something of a user's class."""
    names = own_code.get()
    if names is not None and not is_listed(str(target.__module__), PACKAGES):
        names[name_of(target)] = None


def params_of(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters in a config: names and their values, or UserError."""
    own = node.get("params") or {}
    check_are_names(own)
    return own


def check_are_names(params: Any) -> None:
    """Refuse (`UserError`) what is no mapping of names."""
    if not isinstance(params, Mapping):
        raise config_error(f"names and their values are expected here, not {shorten(params)}")
    for name in params:
        if not isinstance(name, str):
            raise config_error(
                f"{shorten(name)} is no name of a parameter; a list is written [1, 1, 1], in "
                "brackets"
            )


def _check_kind(target: Any, name: str, kind: str) -> None:
    if kind == "schedule" and inspect.isclass(target) and _is_of_torch(target):
        raise config_error(
            f"{name} changes an optimizer; a schedule here is a function of the step, such as "
            "taming.lr_scheduler.CosineSchedule (docs/training.md lists them)"
        )
    if inspect.isclass(target) and _is_kind(target, kind):
        return
    home, package = str(getattr(target, "__module__", "")), name.partition(".")[0]
    if not is_listed(canonical_name(name), PACKAGES) and home.partition(".")[0] == package:
        names = trusted_names()
        if inspect.isclass(target) or name in names:
            return
        if inspect.isfunction(target) and not is_listed(name, names) and not in_program():
            return
    raise config_error(
        f"{name} is no class of the kind that is expected here, a {kind}; a function of your own "
        f"that makes one can be allowed with --trust {name}"
    )


def _is_of_torch(target: type) -> bool:
    return issubclass(target, get_obj_from_str("torch.optim.lr_scheduler.LRScheduler"))


def _is_kind(target: type, kind: str) -> bool:
    wanted = KINDS[kind]
    if isinstance(wanted, tuple):
        return any(callable(getattr(target, method, None)) for method in wanted)
    base: type = get_obj_from_str(wanted)
    return issubclass(target, base)
