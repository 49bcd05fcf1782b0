"""Signatures of functions, whatever their annotations name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """`inspect.signature`, also of functions whose annotations name what is not there.

    Python 3.14 evaluates annotations when they are asked for, which fails (NameError) for names
    that are imported for type checkers only.

    Raises:
        TypeError, ValueError: as `inspect.signature`, of what has none.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)
