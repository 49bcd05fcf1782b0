"""Code that users bring: what it raises is said in one sentence, with the line it comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from taming.errors import REFUSALS, Stopped, UserError, described, is_users_file, line_of


def is_ours(kind: Any) -> bool:
    """Whether a class or function is one of this project, not a subclass of the user's."""
    return str(kind.__module__).partition(".")[0] == "taming"


def is_users(kind: Any) -> bool:
    """Whether a class or function is of the user's own files, not of an installed package."""
    module = sys.modules.get(str(kind.__module__))
    file = vars(module).get("__file__") if module is not None else None
    return is_users_file(str(file)) if file else kind.__module__ == "__main__"


def name_of(kind: Any) -> str:
    """The dotted name of a class or function, as in configs."""
    return f"{kind.__module__}.{kind.__qualname__}"


def kind_of(value: Any) -> str:
    """`(a tensor [2, 3] of float32, None)`: what a value is, in a sentence about it."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(kind_of, value))})"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(repr, value)) or 'nothing'}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, ModuleType):
        return "a module"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def wrong_result(name: str, expected: str, result: Any) -> UserError:
    """What to raise where something of the user's, `name`, did not return what is expected."""
    return UserError(f"{name} must return {expected}; it returned {kind_of(result)}")


@contextmanager
def calling(target: Any, name: str) -> Iterator[None]:
    """A block that calls `target`; what code of the user's raises is a `UserError` about `name`.

    What has a sentence of its own stays, and so does the end of the process by a signal; likewise
    errors on whose way there is nothing but this project and what it uses.
    """
    try:
        yield
    except (UserError, Stopped):
        raise
    except (Exception, SystemExit) as error:
        refused = isinstance(error, OSError) and error.errno in REFUSALS and error.filename
        if refused or (is_ours(target) and line_of(error) is None):
            raise
        raise UserError(f"{name} raises {described(error)}") from error
