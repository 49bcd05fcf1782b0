from __future__ import annotations

from typing import Any

import pytest

from taming.data.options import ImageOptions
from taming.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 16, "crop_size": 17}, "crop_size 17 is larger than size 16"),
        ({"size": -2}, "size -2 is no number of pixels"),
        ({"size": 25.6}, "size 25.6 is no number of pixels"),
        ({"crop_size": True}, "crop_size True is no number of pixels"),
        ({"size": 10**9}, "size is 1000000000; images may have 32,768 pixels a side"),
        ({"on_error": "ignore"}, "on_error 'ignore' is not known; use raise or skip"),
        ({"size": 16, "interpolation": "cubic"}, "interpolation 'cubic' is not known"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageOptions(**arguments)
