"""The mean and covariance of a set's features, as a small file that FID can be computed against.

    python scripts/compute_statistics.py SOURCE OUT.npz

SOURCE is a folder of images, a dataset's config (YAML), or a run (its samples).
"""

from __future__ import annotations

from collections.abc import Sequence

from taming.command_line import add_flags, from_flags
from taming.devices import choose_device, own_share
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import (
    EvaluationArguments,
    ExtractorArguments,
    RunSetArguments,
    add_set_flags,
    make_parser,
    open_sets,
    parse_sets,
)
from taming.evaluation.metrics.fid import Moments
from taming.evaluation.metrics.statistics_file import Statistics, npz_path
from taming.evaluation.results import versions
from taming.evaluation.tasks.fidelity import FidelitySettings, describe_set
from taming.words import counted


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(
        "Compute the mean and covariance of the features of SOURCE, for fid: a folder of images, a "
        "dataset's YAML, or a run.",
        EvaluationArguments,
    )
    parser.usage = "%(prog)s SOURCE OUT.npz [flags]"
    add_flags(parser, ExtractorArguments)
    add_set_flags(parser)
    args, names, overrides = parse_sets(parser, argv, most=2)
    if len(names) != 2:
        raise UserError("give SOURCE (a folder of images, a run or a config) and OUT.npz")
    output = npz_path(names[1])
    common, extraction = from_flags(EvaluationArguments, args), from_flags(ExtractorArguments, args)
    device = choose_device(common.device)
    runner = common.cache.runner(from_flags(RunSetArguments, args).batch_size)
    (source,) = open_sets(names[:1], args, overrides, device)
    if isinstance(source, Statistics):
        raise UserError(f"{names[0]} holds statistics already; give the images")
    settings = FidelitySettings(("fid",), dict(extraction.layer))
    extractor = extraction.build(settings, device, common.precision, common.compile)
    request = settings.request("fid", extractor)
    features = runner.features(source, [request], "images")
    runner.finish()
    if own_share()[0] > 0:
        return
    moments = features.parts[request]
    assert isinstance(moments, Moments)
    described = extractor.describe() | {"layers": list(extractor.layers)}
    about = {"extractor": described, "versions": versions()}
    statistics = Statistics(
        extractor=extractor.name,
        layer=request.layer,
        weights_hash=extractor.weights_hash,
        mean=moments.mean,
        covariance=moments.covariance,
        count=moments.count,
        fingerprint=features.manifest.fingerprint(),
        protocol=about | {"images": describe_set(source, features)},
    )
    path = statistics.save(output)
    print(f"the statistics of {counted(moments.count, 'image')} are in {path}")
    end_with_damaged(runner.left_out)


if __name__ == "__main__":
    main()
