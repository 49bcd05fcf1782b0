"""The extractors that there are, their layers, and where the files with their weights are."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from taming.downloads import Patience, fetch, file_hash
from taming.errors import UserError, absence
from taming.user_files import with_home

INCEPTION = "inception-v3-compat"
SPATIAL = "spatial"  # Inception's layer for sFID
WEIGHTS_VARIABLE = "TAMING_EXTRACTOR_WEIGHTS"
TORCH_FIDELITY_METRICS = ("fid", "isc", "kid", "prc")  # for which extractors have default layers

# Networks of torch-fidelity with more layers or another way to their weights, under their names.
OWN_CLASSES = {
    INCEPTION: "taming.evaluation.metrics.inception:Inception",
    **{
        f"dinov2-vit-{size}-14": "taming.evaluation.metrics.dinov2:DinoV2"
        for size in ("s", "b", "l")
    },
    **{
        f"clip-{network}": "taming.evaluation.metrics.clip:Clip"
        for network in (
            *("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64"),
            *("vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336px"),
        )
    },
}
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/{0}/{0}_pretrain.pth"


def extractor_class(name: str) -> Any:
    """The class of that name, ours or of torch-fidelity's registry; UserError if there is none."""
    if name in OWN_CLASSES:
        module, _, entry = OWN_CLASSES[name].partition(":")
        return vars(importlib.import_module(module))[entry]
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if name not in FEATURE_EXTRACTORS_REGISTRY:
        raise UserError(
            f"there is no feature extractor {name}; there are "
            f"{', '.join(sorted(FEATURE_EXTRACTORS_REGISTRY))}"
        )
    return FEATURE_EXTRACTORS_REGISTRY[name]


def default_layer(name: str, metric: str) -> str:
    """The layer that the extractor itself has for "fid", "isc", "kid", "prc" or another metric.

    Raises UserError if it has none.
    """
    try:
        return extractor_class(name).get_default_feature_layer_for_metric(metric)
    except KeyError:
        raise UserError(
            f"the extractor {name} has no layer for {metric}; name one by --layer {metric}=LAYER, "
            "or leave the metric out"
        ) from None


def default_layers(name: str, metrics: Sequence[str] = TORCH_FIDELITY_METRICS) -> tuple[str, ...]:
    """Those of several metrics, each once."""
    return tuple(dict.fromkeys(default_layer(name, metric) for metric in metrics))


def _published(name: str) -> tuple[str, str] | None:
    """Where an extractor's published weights are, and their file's name in the cache."""
    if name == INCEPTION:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return URL_INCEPTION_V3, URL_INCEPTION_V3.rpartition("/")[2]
    if name == "vgg16":
        from torchvision.models import VGG16_Weights

        url = VGG16_Weights.IMAGENET1K_V1.url
        return url, url.rpartition("/")[2]
    if OWN_CLASSES.get(name, "").endswith(":DinoV2"):
        url = DINOV2_URL.format(f"dinov2_vit{name.split('-')[2]}14")
        return url, url.rpartition("/")[2]
    if name.startswith("clip-"):
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

        if name in MODEL_URLS:
            return MODEL_URLS[name], f"{name}-{MODEL_METADATA[name]['hash']}.pt"
    return None


def weights_file(name: str, explicit: str | Path | None = None) -> Path | None:
    """The file with an extractor's weights; None for an extractor without weights of its own.

    It is `explicit`, else what TAMING_EXTRACTOR_WEIGHTS names (the file, or a folder with files of
    the published names), else the published file in torch's cache (`$TORCH_HOME/hub/checkpoints`),
    which a download fills. The variable is for extractors that have published weights. A file of
    the published name has to have the hash in that name. Raises UserError.
    """
    extractor_class(name)
    published = _published(name)
    named = explicit or (os.environ.get(WEIGHTS_VARIABLE) if published else None)
    if named is not None:
        path = with_home(Path(named))
        path = path / published[1] if published and path.is_dir() else path
    elif published is not None:
        path = _cached(name, *published)
    else:
        return None
    if not path.is_file():
        source = "" if explicit else f"{WEIGHTS_VARIABLE}: "
        raise UserError(f"{source}{absence('file', path)}; give the weights of {name}")
    if published and path.name == published[1]:
        _check_hash(path)
    return path


def _check_hash(path: Path) -> None:
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if match and not file_hash(path).startswith(match[1]):
        raise UserError(
            f"{path} is damaged (its SHA-256 does not start with {match[1]}, as its name says); "
            "delete it to have it downloaded again, or give another file by --weights"
        )


def _cached(name: str, url: str, file: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    try:
        return fetch(url, path, patience=Patience(tries=2))
    except UserError as error:
        raise UserError(
            f"the extractor {name} needs the file {file}, which could not be downloaded; put it "
            f"at {path}, or name it by --weights or {WEIGHTS_VARIABLE} ({error})"
        ) from None
