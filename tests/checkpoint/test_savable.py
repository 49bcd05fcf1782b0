"""What can be written into a checkpoint, and how the rest is named."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from taming.checkpoint import check_savable
from taming.errors import UserError


def test_what_can_be_pickled_is_taken_and_tensors_are_not_looked_at() -> None:
    tensor = torch.empty(2**40, device="meta")
    states = {"A": {"a": [1, "x", None, (tensor,)]}, "B": None}
    check_savable({"callbacks": states, "state_dict": {"x": tensor}, "own": 3})


@pytest.mark.parametrize("value", [lambda: 1, (i for i in ()), re])
def test_what_cannot_be_is_named(value: Any) -> None:
    states = {"A": {}, "B": {"b": [value]}}
    with pytest.raises(UserError, match=r"with the state of the callback B: \w+Error: .*; keep"):
        check_savable({"callbacks": states})
    with pytest.raises(UserError, match="with its entry 'own'"):
        check_savable({"callbacks": {}, "own": {"x": value}})
