"""The table of the published models, `pretrained.tsv`: `taming.pretrained` downloads them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from taming.shipped import run_script


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


def how_to_fetch(path: Path) -> str:
    """`"; fetch it with ..."`, if a `path` that does not exist is of a published model, or ""."""
    parts = set(path.parts)
    for name, model in published_models().items():
        if parts & {name, Path(model.folder).name}:
            return f"; fetch it with {run_script('download_models')} {name}"
    return ""
