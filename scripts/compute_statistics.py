"""The mean and covariance of a set's features, as a small file that FID can be computed against.

    python scripts/compute_statistics.py SOURCE OUT.npz
    python scripts/compute_statistics.py SOURCE OUT.npz --format adm          (also for its sFID)
    python scripts/compute_statistics.py SOURCE OUT.npz --format adm-samples  (the images in a file)

SOURCE is a folder of images, a dataset's config (YAML), an .npz of images, or a run (its samples).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taming.command_line import add_flags, flag, from_flags
from taming.devices import device_of_command, own_share
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
from taming.evaluation.metrics.evaluators import (
    ADM,
    EVALUATORS,
    TORCH_FIDELITY,
    Evaluator,
    evaluator_named,
)
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import Moments
from taming.evaluation.metrics.statistics_file import Statistics, npz_path
from taming.evaluation.reference import REFERENCE
from taming.evaluation.results import versions
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import ImageSource
from taming.evaluation.sources.npz_images import write_samples
from taming.evaluation.tasks.fidelity import FidelitySettings, describe_set
from taming.words import counted

OWN_FORMAT, ADM_FORMAT, SAMPLES_FORMAT = "taming", "adm", "adm-samples"
FORMATS = (OWN_FORMAT, ADM_FORMAT, SAMPLES_FORMAT)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script alone."""

    format: str = flag(
        OWN_FORMAT,
        f"{OWN_FORMAT}; {ADM_FORMAT}: the ADM suite's, with mu_s and sigma_s for its sFID; "
        f"{SAMPLES_FORMAT}: no statistics, the images as arr_0",
    )
    evaluator: str = flag(
        TORCH_FIDELITY.name, f"for whose FID, of {', '.join(EVALUATORS)}: its network and resize"
    )

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"--format takes {', '.join(FORMATS)}, not '{self.format}'")
        if self.format == ADM_FORMAT and self.evaluator not in (TORCH_FIDELITY.name, ADM.name):
            raise UserError(
                f"--format adm is for the evaluator adm, not {self.evaluator}; leave one out"
            )

    def chosen(self) -> Evaluator:
        """Raises UserError for an unknown name."""
        return evaluator_named(ADM.name if self.format == ADM_FORMAT else self.evaluator)


def statistics_of(
    source: ImageSource, extractor: Extractor, settings: FidelitySettings, runner: Runner
) -> Statistics | None:
    """Of one layer, or of two for the ADM suite; None in ranks above 0."""
    requests = {name: settings.request(name, extractor) for name in settings.metrics}
    features = runner.features(source, list(requests.values()), "images")
    runner.finish()
    if own_share()[0] > 0:
        return None
    parts = [features.parts[request] for request in requests.values()]
    first, *others = [part for part in parts if isinstance(part, Moments)]
    described = extractor.describe() | {"layers": list(extractor.layers)}
    about = {"extractor": described, "versions": versions()}
    return Statistics(
        extractor=extractor.name,
        layer=requests["fid"].layer,
        weights_hash=extractor.weights_hash,
        mean=first.mean,
        covariance=first.covariance,
        count=first.count,
        fingerprint=features.manifest.fingerprint(),
        protocol=about | {"images": describe_set(source, features)},
        spatial=(others[0].mean, others[0].covariance) if others else None,
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(
        "Compute the mean and covariance of the features of SOURCE, for fid: a folder of images, a "
        "dataset's YAML, an .npz of images, or a run.",
        EvaluationArguments,
    )
    parser.usage = "%(prog)s SOURCE OUT.npz [flags]"
    add_flags(parser, Arguments)
    add_flags(parser, ExtractorArguments)
    add_set_flags(parser, [REFERENCE])
    args, names, overrides = parse_sets(parser, argv, most=2)
    if len(names) != 2:
        raise UserError("give SOURCE (a folder of images, a run or a config) and OUT.npz")
    output = npz_path(names[1])
    own = from_flags(Arguments, args)
    evaluator = own.chosen()
    common, extraction = from_flags(EvaluationArguments, args), from_flags(ExtractorArguments, args)
    if extraction.extractor is not None and evaluator is not TORCH_FIDELITY:
        raise UserError(f"--extractor is of {TORCH_FIDELITY.name}; {evaluator.name} has its own")
    device = device_of_command(common.device)
    batch_size = from_flags(RunSetArguments, args).batch_size
    runner = common.cache.runner(batch_size)
    (source,) = open_sets(names[:1], args, overrides, device)
    if isinstance(source, Statistics):
        raise UserError(f"{names[0]} holds statistics already; give the images")
    if own.format == SAMPLES_FORMAT:
        return save_samples(source, output, batch_size)
    metrics = ("fid", "sfid") if own.format == ADM_FORMAT else ("fid",)
    settings = FidelitySettings(metrics, dict(extraction.layer), evaluator=evaluator)
    extractor = extraction.build(settings, device, common.precision, common.compile)
    statistics = statistics_of(source, extractor, settings, runner)
    if statistics is None:
        return
    path = statistics.save(output)
    print(f"the statistics of {counted(statistics.count or 0, 'image')} are in {path}")
    end_with_damaged(runner.left_out)


def save_samples(source: ImageSource, output: Path, batch_size: int) -> None:
    """Write the images; by rank 0 alone."""
    if own_share()[0] == 0:
        count, left_out = write_samples(source, output, batch_size)
        print(f"{counted(count, 'image')} are in {output}")
        end_with_damaged(left_out)


if __name__ == "__main__":
    main()
