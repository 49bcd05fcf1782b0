"""What texts and mappings of the Trainer's options mean: durations, and lists of devices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from taming.errors import UserError, shorten

_DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")


def duration(value: Any) -> Any:
    """A `max_time` as the Trainer takes it: `DD:HH:MM:SS`, or units with their numbers.

    Raises:
        UserError: for anything else.
    """
    if value is None or (isinstance(value, str) and _DURATION.fullmatch(value)):
        return value
    if isinstance(value, Mapping) and value:
        with suppress(TypeError, OverflowError, ValueError):
            if (time := timedelta(**value)) >= timedelta(0):
                return time
    raise UserError(
        f"--max_time is {shorten(value)}; write '00:01:00:00' for days, hours, minutes and "
        "seconds, or in YAML {hours: 1}"
    )


def listed_devices(gpus: Any, flag: str) -> int | list[int]:
    """The number or the numbers of devices that `flag` names; raises `UserError` for others."""
    if isinstance(gpus, list | tuple):
        gpus = ",".join(map(str, gpus))
    text = str(gpus).strip()
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise UserError(
            f"{flag} {text}: write '0,' for the first GPU, '0,1' for two, '2' for any two, or "
            "'-1' for all"
        ) from None
