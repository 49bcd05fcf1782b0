"""The command that shows the nearest images of a training set to some samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taming.atomic_files import check_place
from taming.command_line import flag, from_flags
from taming.devices import device_of_command, own_share
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.arguments import (
    EvaluationArguments,
    ExtractorArguments,
    RunSetArguments,
    add_set_flags,
    extractor_name,
    open_sets,
    parse_sets,
)
from taming.evaluation.figures.arguments import (
    FigureFiles,
    figure_parser,
    save_page,
)
from taming.evaluation.figures.neighbors import (
    Nearest,
    NeighborSearch,
    chosen_samples,
    neighbors_page,
)
from taming.evaluation.metrics.features import INCEPTION, Extractor
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.sources.images import Manifest
from taming.evaluation.sources.run import RunSource
from taming.evaluation.tasks.fidelity import FidelitySettings
from taming.modules.losses.lpips import LPIPS, backbone_file
from taming.sampling.arguments import require_positive

FEATURES, LPIPS_DISTANCE = "features", "lpips"


@dataclass(frozen=True, kw_only=True)
class NeighborArguments:
    """Which neighbors are looked for."""

    common: EvaluationArguments
    extraction: ExtractorArguments
    by: str = flag(LPIPS_DISTANCE, f"distance: {LPIPS_DISTANCE} or {FEATURES} of the extractor")
    neighbors: int = flag(5, "nearest images per sample")
    rows: int = flag(8, "samples in the picture")
    candidates: int | None = flag(
        None,
        "compare by LPIPS only so many images per sample, the nearest by features (default: all, "
        "each of which goes through LPIPS' network once)",
    )
    net: str = flag("vgg", "of LPIPS: vgg or alex")
    vgg_path: Path | None = flag(None, "torchvision's VGG16, for LPIPS", metavar="FILE")
    alex_path: Path | None = flag(None, "torchvision's AlexNet, for LPIPS", metavar="FILE")

    def __post_init__(self) -> None:
        require_positive(neighbors=self.neighbors, rows=self.rows, candidates=self.candidates)
        if self.by not in (FEATURES, LPIPS_DISTANCE):
            raise UserError(f"--by is {LPIPS_DISTANCE} or {FEATURES}, not '{self.by}'")
        if self.net not in ("vgg", "alex"):
            raise UserError(f"--net is vgg or alex, not '{self.net}'")
        if self.candidates is not None and self.by == FEATURES:
            raise UserError("--candidates are for --by lpips; leave one of them out")

    @property
    def needs_extractor(self) -> bool:
        return self.by == FEATURES or self.candidates is not None

    def extractor(self) -> Extractor:
        """Of the layer that FID takes."""
        settings = FidelitySettings(("fid",), dict(self.extraction.layer))
        settings.layer("fid", extractor_name(self.extraction.extractor or INCEPTION))
        device = device_of_command(self.common.device)
        return self.extraction.build(settings, device, self.common.precision, self.common.compile)

    def network(self, device: torch.device) -> tuple[LPIPS, str] | None:
        """LPIPS and the hash of its backbone's file; None by features alone.

        Raises:
            UserError: without that file.
        """
        if self.by == FEATURES:
            return None
        path = {"vgg": self.vgg_path, "alex": self.alex_path}[self.net]
        try:
            file = backbone_file(self.net, None if path is None else str(path))
        except UserError as error:
            raise UserError(f"{error}, or use --by features") from None
        network = LPIPS(self.net)
        network.prepare(str(file))
        return network.to(device), file_hash(file)

    def search(
        self, search: NeighborSearch, network: tuple[LPIPS, str] | None
    ) -> tuple[Nearest, dict[str, Any]]:
        """The neighbors, and what decides them as JSON values."""
        extractor = self.extractor() if self.needs_extractor else None
        about: dict[str, Any] = {"by": self.by, "candidates": self.candidates}
        if extractor is not None:
            about["features"] = extractor.describe() | {"layers": list(extractor.layers)}
        if network is None:
            assert extractor is not None
            return search.by_features(extractor), about
        lpips, digest = network
        about |= {"lpips": "0.1", "network": self.net, "backbone_sha256": digest}
        if extractor is None:
            return search.by_lpips(lpips, digest), about
        candidates = search.by_features(extractor, self.candidates)
        return search.by_lpips_among(candidates, lpips), about


def draw_neighbors(argv: Sequence[str]) -> None:
    """Draw what `figures.py neighbors` is asked for."""
    files = FigureFiles("neighbors", argv)
    parser = figure_parser(
        "neighbors", "Nearest images of a training set to some samples.", NeighborArguments
    )
    add_set_flags(parser)
    args, names, overrides = parse_sets(parser, argv, most=2)
    own = from_flags(NeighborArguments, args)
    if len(names) != 2:
        raise UserError("give SAMPLES and a TRAINING_SET: folders of images, runs or configs")
    device = device_of_command(own.common.device)
    samples, reference = open_sets(names, args, overrides, device)
    if isinstance(samples, Statistics) or isinstance(reference, Statistics):
        raise UserError("statistics have no images; give folders, runs or configs")
    run = samples.run.folder if isinstance(samples, RunSource) else Path()
    folder = own.common.outdir or run / "figures"
    check_place(folder, "choose another --outdir")
    runner = own.common.cache.runner(from_flags(RunSetArguments, args).batch_size)
    network = own.network(device)  # before samples are drawn
    chosen = chosen_samples(samples, own.rows)
    search = NeighborSearch(reference, chosen, own.neighbors, runner, device)
    nearest, protocol = own.search(search, network)
    runner.finish()
    if own_share()[0] > 0:
        return
    save_page(neighbors_page(chosen, reference, nearest), files.picture(folder))
    shown = Manifest(len(samples))
    shown.update(chosen)
    labels = {sample.index: sample.name for sample in chosen}
    files.write(
        folder,
        [_neighbor_row(labels[index], row) for index, row in nearest.items()],
        {"nearest": {str(index): dict(row) for index, row in nearest.items()}},
        protocol=protocol | {"neighbors": own.neighbors},
        sets={
            "samples": samples.describe() | {"shown": shown.describe()},
            "reference": reference.describe() | search.images,
        },
        device=device,
    )


def _neighbor_row(name: str, row: Sequence[tuple[int, float]]) -> dict[str, Any]:
    nearest = ", ".join(str(index) for index, _ in row)
    return {"sample": Path(name).name, "nearest images": nearest, "distance": row[0][1]}
