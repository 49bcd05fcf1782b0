"""The networks of LPIPS for evaluation, as far as their files exist."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.metrics.reconstruction import PAIR_METRICS
from taming.modules.losses.lpips import BACKBONES, LPIPS, backbone_file

log = logging.getLogger(__name__)


@dataclass
class Networks:
    """LPIPS by backbone ("vgg", "alex")."""

    ready: dict[str, LPIPS] = field(default_factory=dict)  # prepared networks
    hashes: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files of their backbones
    left_out: dict[str, str] = field(default_factory=dict)  # metrics without one, with reasons


def load_networks(
    metrics: Iterable[str] = PAIR_METRICS,
    device: str | torch.device = "cpu",
    files: Mapping[str, str | Path | None] | None = None,
) -> Networks:
    """The networks that `metrics` need; one without a file is left out, with a warning.

    Args:
        files: of the backbones "vgg" and "alex"; by default see `backbone_file`.

    Raises UserError for a file in `files` that is missing or is something else.
    """
    networks = Networks()
    for metric in metrics:
        net = PAIR_METRICS[metric].backbone
        if net is None:
            continue
        explicit = (files or {}).get(net)
        network = LPIPS(net)
        try:
            file = backbone_file(net, str(explicit) if explicit else None)
            network.prepare(str(file))
        except UserError as error:
            if explicit:
                raise
            networks.left_out[metric] = str(error)
            name = BACKBONES[net].name
            log.warning("LPIPS by %s is left out, everything else is computed: %s", name, error)
            continue
        networks.ready[net] = network.to(device)
        networks.hashes[net] = file_hash(file)
    return networks
