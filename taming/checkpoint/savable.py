"""What cannot be written into a checkpoint is found, and named, before a file is begun."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taming.errors import UserError


def check_savable(content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with an entry that cannot be pickled; tensors are not looked at.

    Raises:
        UserError: naming the callback whose state it is, or the entry.
    """
    for key, value in content.items():
        named = value if key == "callbacks" and isinstance(value, Mapping) else {"": value}
        for name, state in named.items():
            if (reason := _refusal(state)) is not None:
                what = f"the state of the callback {name}" if name else f"its entry '{key}'"
                raise UserError(
                    f"no checkpoint can be saved with {what}: {reason}; keep tensors, numbers, "
                    "texts, lists and dicts alone in it"
                )


def _refusal(state: Any) -> str | None:
    """Why an object cannot be pickled; None if it can."""
    try:
        _Trial(io.BytesIO()).dump(state)
    except Exception as error:  # objects may do anything when they are pickled
        return f"{type(error).__name__}: {error}"
    return None


class _Trial(pickle.Pickler):
    """Leaves tensors out, so that it takes neither time nor memory."""

    def persistent_id(self, obj: Any) -> str | None:
        return "tensor" if isinstance(obj, Tensor) else None
