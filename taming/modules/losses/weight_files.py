"""Files of torchvision's weights: named by the user, or in the cache that downloads fill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from taming.downloads import file_hash
from taming.errors import UserError, absence


class WeightFile(NamedTuple):
    """A network's ImageNet weights in torchvision.

    `digest` is the start of the file's SHA-256: another network spoils training silently. The file
    may be named by the parameter `key`, or the environment's `variable`.
    """

    network: str
    digest: str
    variable: str
    key: str
    wanted_by: str


def find_weights(wanted: WeightFile, path: str | None = None) -> Path:
    """The checked file: that at `path`, else that of the variable, else the one in the cache.

    Raises:
        UserError: if it is missing, and cannot be downloaded, or is not of that network.
    """
    chosen = path or os.environ.get(wanted.variable)
    file = Path(chosen) if chosen else _cached(wanted)
    if not file.is_file():
        source = wanted.key if path else wanted.variable
        raise UserError(
            f"{source}: {absence('file', file)}; give torchvision's {wanted.network} weights"
        )
    if not file_hash(file).startswith(wanted.digest):
        raise UserError(
            f"{file} is not torchvision's {wanted.network} (its SHA-256 does not start with "
            f"{wanted.digest}); delete it to have it downloaded again, or give the right file by "
            f"{wanted.key}"
        )
    return file


@contextmanager
def or_without() -> Iterator[None]:
    """A block whose errors say how to train without a perceptual loss, too."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error}, or train without, by model.params.lossconfig.params.perceptual_weight=0"
        ) from error


def _cached(wanted: WeightFile) -> Path:
    from torchvision.models import get_model_weights  # slow to import, rarely needed

    url = str(get_model_weights(wanted.network.lower())["IMAGENET1K_V1"].url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=wanted.digest)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{wanted.wanted_by} needs {wanted.network}'s weights and they could not be downloaded "
            f"({error}); put the file at {path}, or name one by {wanted.key} or {wanted.variable}"
        ) from error
    return path
