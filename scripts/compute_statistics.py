"""The mean and covariance of a set's features, as a small file that FID can be computed against.

    python scripts/compute_statistics.py SOURCE OUT.npz

SOURCE is a folder of images, a dataset's config (YAML), or a run (its samples).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taming.devices import choose_device
from taming.distributed import own_share
from taming.errors import UserError, command
from taming.evaluation.arguments import (
    add_extractor,
    add_sources,
    drawing_from,
    extractors_from,
    layers_from,
    make_parser,
    parse_sets,
    reading_from,
    source_for,
)
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.results import versions
from taming.evaluation.metrics.base import FeatureRequest
from taming.evaluation.tasks.fidelity import describe
from taming.evaluation.metrics.fidelity import FidelitySettings


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(
        "Compute the mean and covariance of the features of SOURCE, for fid: a folder of images, a "
        "dataset's YAML, or a run."
    )
    parser.usage = "%(prog)s SOURCE OUT.npz [flags]"
    add_extractor(parser)
    add_sources(parser)
    args, names, overrides = parse_sets(parser, argv, most=2)
    if len(names) != 2:
        raise UserError("give SOURCE (a folder of images, a run or a config) and OUT.npz")
    device = choose_device(args.device)
    drawing = drawing_from(args, overrides, device)
    options = (drawing, args.split, args.image_key, args.deep, args.workers)
    source = source_for(names[0], *options)
    if isinstance(source, Statistics):
        raise UserError(f"{names[0]} holds statistics already; give the images")
    protocol = FidelitySettings(("fid",), layers_from(args))
    extractor, _ = extractors_from(args, protocol, device)
    need = FeatureRequest("moments", extractor, extractor.layers[0])
    reading = reading_from(args)
    gathered = reading.gather(source, [need], "images")
    reading.finish()
    if own_share()[0] > 0:
        return
    moments, content = gathered.parts[need], gathered.content
    about = {"extractor": extractor.describe(), "versions": versions()}
    statistics = Statistics(
        extractor.name,
        need.layer,
        extractor.weights_hash,
        moments.mean,
        moments.covariance,
        moments.count,
        content.fingerprint(),
        about | {"images": describe(source, gathered)},
    )
    path = statistics.save(Path(names[1]))
    print(f"the statistics of {moments.count} images are in {path}")


if __name__ == "__main__":
    main()
