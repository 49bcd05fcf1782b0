"""Numbers that say how they were made: one JSON file, and a Markdown table beside it."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import taming
from taming.atomic_files import write_text
from taming.devices import available_cpus
from taming.errors import UserError, reason_of
from taming.evaluation.sources.images import key_of
from taming.evaluation.tasks.fidelity import flattened
from taming.shipped import script as called
from taming.user_files import read_text

Result = dict[str, Any]
PACKAGES = ("torchvision", "torch-fidelity", "lpips", "numpy", "pillow")
SECTIONS = ("metrics", "protocol", "sets", "versions", "hardware", "command")


def make_result(
    metrics: Mapping[str, Any],
    protocol: Mapping[str, Any],
    sets: Mapping[str, Mapping[str, Any]],
    *,
    seconds: float,
    device: torch.device,
    command: Sequence[str],
) -> Result:
    """A result, of JSON values.

    Args:
        metrics: names to numbers, or to groups of them ({"fid": 9.6, "kid": {"mean": ...}}).
        protocol: what decides the numbers beside the images.
        sets: descriptions of image sets by name, with their `fingerprint`.
    """
    return {
        "metrics": dict(metrics),
        "protocol": dict(protocol),
        "sets": {name: dict(description) for name, description in sets.items()},
        "versions": versions(),
        "hardware": hardware(device),
        "seconds": round(seconds, 1),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
    }


def short_hash(result: Result, **more: Any) -> str:
    """The beginning of a SHA-256 of what was measured, and of `more` JSON values: in a file's name,
    so that results of other sets or by another protocol do not take its place."""
    return key_of(protocol=result["protocol"], sets=result["sets"], **more)[:8]


def versions() -> dict[str, str]:
    """Of Python, of this package and of those that decide numbers."""
    known = {"python": platform.python_version(), "taming": taming.__version__}
    known["torch"] = torch.__version__
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    return known


def hardware(device: torch.device) -> dict[str, Any]:
    """The device, the CPUs and the number of processes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "name": name,
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def command_line(argv: Sequence[str] | None, script: str) -> list[str]:
    """What a result's `command` is: how the script of that name is called here, and the arguments
    of its `main`."""
    return [*shlex.split(called(script)), *(sys.argv[1:] if argv is None else argv)]


def write_result(result: Result, path: Path, tables: Sequence[str] = ()) -> Path:
    """Write `path` (.json) and its Markdown (.md), which begins with `tables`; returns `path`.

    Raises UserError if they cannot be written.
    """
    write_text(path, json.dumps(_plain(result), indent=2, allow_nan=False) + "\n")
    write_text(path.with_suffix(".md"), "\n\n".join([*tables, _markdown(result)]) + "\n")
    return path


def _plain(value: Any) -> Any:
    """JSON values: infinities (the PSNR of equal images) and NaN as text, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic | torch.Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def read_result(path: str | Path) -> Result:
    """A result that `write_result` wrote; UserError if there is none."""
    try:
        result = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from None
    except ValueError:
        raise UserError(f"{path} is no JSON; give the .json of an evaluation") from None
    missing = [key for key in SECTIONS if not isinstance(result, dict) or key not in result]
    if missing:
        raise UserError(f"{path} is no result of an evaluation: it has no '{missing[0]}'")
    return result


def _markdown(result: Result) -> str:
    rows = [{"metric": name, "value": value} for name, value in flattened(result["metrics"])]
    rows = [row for row in rows if row["value"] is not None]  # such as the spread of one run
    facts: dict[str, Any] = {}
    for name, description in result["sets"].items():
        facts |= dict(flattened(description, f"{name}."))
    facts |= dict(flattened(result["protocol"])) | dict(flattened(result["versions"]))
    facts |= dict(flattened(result["hardware"], "hardware."))
    facts |= {"seconds": result["seconds"], "time": result["time"]}
    made = [{"made with": name, "": value} for name, value in facts.items() if value is not None]
    command = f"```\n{shlex.join(map(str, result['command']))}\n```"
    return "\n\n".join([markdown_table(rows), command, markdown_table(made)])


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of `rows`, with the first one's keys as columns; numbers are on the right."""
    columns = []
    for name in rows[0] if rows else ():
        cells = [_cell(row.get(name, "")) for row in rows]
        width = max(3, *map(len, (name, *cells)))
        if all(_is_number(row.get(name)) for row in rows):
            columns.append([text.rjust(width) for text in (name, "-" * (width - 1) + ":", *cells)])
        else:
            columns.append([text.ljust(width) for text in (name, "-" * width, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(_plain(value)).replace("|", "\\|")


def differences(old: Result, new: Result, tolerance: float) -> list[str]:
    """What differs, a phrase each: numbers by more than `tolerance` of the old one, and what may
    have caused it (images, protocol, versions). Empty if the numbers agree.
    """
    before, after = dict(flattened(old["metrics"])), dict(flattened(_plain(new["metrics"])))
    phrases = []
    for name in {**before, **after}:
        if not _agree(before.get(name), after.get(name), tolerance):
            was, now = (_cell(values.get(name, "not there")) for values in (before, after))
            phrases.append(f"{name} was {was} and is {now}")
    return [*phrases, *_causes(old, new)] if phrases else []


def _agree(old: Any, new: Any, tolerance: float) -> bool:
    if _is_number(old) and _is_number(new):
        # Distances of a set to itself are rounding errors around 0.
        return math.isclose(old, new, rel_tol=tolerance, abs_tol=1e-6)
    return old == new


def _causes(old: Result, new: Result) -> Iterator[str]:
    for name, description in old["sets"].items():
        fingerprint = new["sets"].get(name, {}).get("fingerprint")
        if description.get("fingerprint") != fingerprint:
            yield f"the {name} are other images"
    for section in ("protocol", "versions", "hardware"):
        before, after = dict(flattened(old[section])), dict(flattened(_plain(new[section])))
        for key in {**before, **after}:
            if before.get(key) != after.get(key):
                yield f"{key} was {before.get(key)} and is {after.get(key)}"
