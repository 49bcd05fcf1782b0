"""The table of the published models, `pretrained.tsv`: `taming.pretrained` downloads them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from taming.errors import UserError
from taming.shipped import run_script

# In each model's folder: {"complete": all files are there, "files": {path: url, size, sha256}}.
RECORD = "downloads.json"


@dataclass(frozen=True)
class Published:
    """A published model: `fid` as published, `folder` where it goes, `addresses` on the web.

    `licence` is that of the code that it was published with ("-": not known); on the weights
    themselves most projects say nothing.
    """

    name: str
    what: str
    fid: str
    folder: str
    addresses: tuple[str, ...]
    licence: str = "-"


def published_models() -> dict[str, Published]:
    """All published models by name, in the order of the table `pretrained.tsv`."""
    text = resources.files("taming").joinpath("pretrained.tsv").read_text("utf-8")
    rows = csv.reader(text.splitlines(), delimiter="\t")
    return {
        name: Published(name, what, fid, folder, tuple(addresses.split()), licence=licence)
        for name, what, fid, folder, addresses, licence in list(rows)[1:]
    }


def read_record(folder: Path) -> dict[str, Any]:
    """What is recorded of a model's download into `folder`; UserError if that is damaged."""
    path = folder / RECORD
    if not path.is_file():
        return {"complete": False, "files": {}}
    try:
        record = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        record = None
    if not _is_record(record):
        raise UserError(f"{path} is damaged; delete it to have hashes recorded anew")
    made: dict[str, Any] = record
    return made


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("complete"), bool):
        return False
    files = record.get("files")
    return isinstance(files, dict) and all(
        isinstance(known, dict) and {"size", "sha256"} <= known.keys() for known in files.values()
    )


def has_begun(folder: Path) -> bool:
    """Whether a model's download into `folder` has begun, and not come to its end."""
    return (folder / RECORD).is_file() and not read_record(folder)["complete"]


def located(path: str | Path) -> Path:
    """The folder of the published model that `path` is the name of, if it has been fetched or put
    there; `path` itself for all others, and where the user has a file of that name."""
    model = published_models().get(str(path))
    if model is None or Path(path).exists():
        return Path(path)
    folder = Path(model.folder)
    return folder if folder.is_dir() and not has_begun(folder) else Path(path)


def how_to_fetch(path: Path) -> str:
    """`"; fetch it with ..."`, if a `path` that does not exist is of a published model, or ""."""
    parts = set(path.parts)
    for name, model in published_models().items():
        if parts & {name, Path(model.folder).name}:
            return f"; fetch it with {run_script('download_models')} {name}"
    return ""
