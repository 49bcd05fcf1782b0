"""A report on a class-conditional or unconditional run: numbers in JSON and one picture.

Samples are also evaluated by a classifier of the run's own training data: of its classes, or of
groups of similar images if it has none. Its distances have the names of Inception's, and nothing
else in common with them: they compare samples of this dataset with one another. The same numbers of
real images that the classifier has not seen stand beside them: they are the best that samples can
reach.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from taming.atomic_files import atomic_path
from taming.data.files.images import BadImage, image_mode_and_size
from taming.errors import UserError
from taming.evaluation.cache import Cache
from taming.evaluation.checkpoints import OwnWeights, made_with
from taming.evaluation.metrics.accuracy import ClassifiedImages, LabeledImages, neighbor_accuracy
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.likelihood import measure_likelihood
from taming.evaluation.metrics.set_metrics import metric_settings
from taming.evaluation.metrics.small_classifier import (
    SmallClassifier,
    register_small_classifier,
    train_small_classifier,
)
from taming.evaluation.plots import spread
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import ImageSource, indices_and_labels, stack_pixels
from taming.evaluation.tasks.fidelity import FidelityEvaluator, FidelitySettings
from taming.evaluation.tasks.reconstruction import score_first_stage
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.kmeans import KMeans
from taming.pictures import grid, to_values
from taming.shipped import script

BY = "a small classifier of this run's own training data: comparable within this dataset alone"
BY_GROUPS = "a small classifier of groups of similar training images: comparable within this report"
SEED = 0
WEIGHTS = "classifier.pt"
ACCURACY_BATCH = 64
# Where scripts put a run's samples.
SAMPLES_OF = {
    "sample_fast": "samples/*/*",
    "make_samples": "samples_of_data/*/samples",
    "make_scene_samples": "scenes/*/samples",
}
VALIDATION = "validation_images"  # the set of real images that stands beside the samples
OF_VALIDATION = ("first_stage", "transformer")  # groups of metrics that are of these images
FEWEST = 8  # images of a set for precision and recall, and for two halves of a kernel distance
PER_CLASS = 10  # samples of a class in the picture, and as many real images
ROWS = 4  # of these, if there are no classes
GROUPS, THUMBNAIL = 10, 8  # groups of similar images, by their pixels at 8 x 8

log = logging.getLogger(__name__)


def newest_samples(run_folder: Path, name: str, size: tuple[int, int], weights: OwnWeights) -> Path:
    """The folder of a run's samples that a report is about.

    It is the newest one of those that the script `name` (see `sampling_script`) writes, if there is
    a choice of those that these `weights` made, then of those that do not say which did, with
    images of the training's `size` (height, width), and with enough of them.

    Raises:
        UserError: if there is none.
    """
    folders = {
        folder: images
        for folder in run_folder.glob(SAMPLES_OF[name])
        if (images := list(folder.rglob("*.png")))
    }
    if not folders:
        raise UserError(f"{run_folder} has no samples yet; make some with {script(name)}")

    def rank(folder: Path) -> tuple[int, bool, bool, float]:
        images = folders[folder]
        with suppress(BadImage):  # it is named when it is read
            fits = image_mode_and_size(str(min(images)))[1] == size
            made = made_with([str(min(images))])
            own = 2 if weights.made(made) else 0 if made else 1
            return own, fits, len(images) >= FEWEST, max(one.stat().st_mtime for one in images)
        return 0, False, False, 0.0

    return max(folders, key=rank)


def read_labeled(source: ImageSource, what: str) -> LabeledImages:
    """All images of a set in order, and their labels; UserError if they differ in size.

    Damaged ones are left out of the set, see `ImageSource.damaged`.
    """
    images = []
    source.pass_over_damage()
    with tqdm(total=len(source), desc=what, unit="image", leave=False) as bar:
        for batch in source.batches(64):
            images.extend(batch)
            bar.update(len(batch))
    if len({image.pixels.shape for image in images}) > 1:
        raise UserError(f"the {what} have several sizes; a report is of images of one size")
    images.sort(key=lambda image: image.index)
    _, labels = indices_and_labels(images)
    return stack_pixels(images).permute(0, 2, 3, 1).numpy(), labels.numpy()


def class_grid(real: LabeledImages, samples: LabeledImages, scale: int = 2) -> Image.Image:
    """A row per class, or a few rows without classes: samples on the left, real images beside them.

    They are spread over their sets, as neighbors may be parts of one photograph.
    """
    rows = []
    for label in sorted(set(samples[1].tolist())):
        pairs = zip(_of_class(samples, label), _of_class(real, label), strict=False)
        rows += [[*sampled, None, *originals] for sampled, originals in pairs]
    titles = {0: "samples of the transformer", PER_CLASS + 1: "real images"}
    return grid(rows, titles, side=scale * max(samples[0].shape[1:3]), gap=2)


def _of_class(images: LabeledImages, label: int) -> list[list[np.ndarray | None]]:
    """Rows of images of a class, with None for those that are missing."""
    members, wanted = images[0][images[1] == label], PER_CLASS * (1 if label >= 0 else ROWS)
    chosen = [members[place] for place in spread(len(members), wanted)] if len(members) else []
    cells = [*chosen, *[None] * (-len(chosen) % PER_CLASS or PER_CLASS * (not chosen))]
    return [cells[start : start + PER_CLASS] for start in range(0, len(cells), PER_CLASS)]


@dataclass(frozen=True)
class ReportSets:
    """The images that a report is about."""

    samples: ImageSource
    training: ImageSource
    validation: ImageSource


def make_report(
    model: Net2NetTransformer,
    validation_batches: Callable[[], Iterable[Mapping[str, Any]]],
    sets: ReportSets,
    outdir: Path,
) -> dict[str, Any]:
    """Evaluate both stages on the validation data and the samples against the training data.

    Writes `samples.png` and the classifier's weights in `outdir`. The dict has `metrics`,
    `protocol` and `sets` for a result, `by_class`, and `left_out`, a sentence for each damaged
    image. `validation_batches` starts a pass over the validation data, in batches as models read
    them.
    """
    batches = tqdm(validation_batches(), desc="validation data", leave=False)
    images = (model.get_input(model.first_stage_key, batch) for batch in batches)
    metrics: dict[str, Any] = {
        "first_stage": score_first_stage(model.first_stage_model, images),
    }
    if not model.masked:  # which has no likelihood
        likelihood = measure_likelihood(model, validation_batches())
        metrics["transformer"] = asdict(likelihood.compute())
    real = read_labeled(sets.training, "training images")
    samples = read_labeled(sets.samples, "samples")
    left_out = sets.training.leave_out_damaged() + sets.samples.leave_out_damaged()
    _check_sizes(real, samples)
    about = metrics["samples"] = {"images": len(samples[0])}
    if (real[1] < 0).any():  # folders of samples are then of layouts, not of classes
        samples = samples[0], np.full_like(samples[1], -1)
    elif (samples[1] >= 0).all():
        about["named_right_by_5_neighbours"] = neighbor_accuracy(real, samples)
    picture = class_grid(real, samples)
    with atomic_path(outdir / "samples.png") as partial:
        picture.save(partial, format="PNG")
    evaluated = {"samples": sets.samples, VALIDATION: sets.validation}
    own = evaluate_by_own_classifier(evaluated, sets.training, real, outdir)
    reference = sets.training.describe()
    if own.metrics:
        metrics[own.name] = own.metrics
    return {
        "metrics": metrics,
        "protocol": {own.name: own.protocol} if own.protocol else {},
        "sets": own.sets
        or {name: source.describe() for name, source in evaluated.items()}
        | {"reference": reference},
        "by_class": own.classes,
        "left_out": left_out,
    }


def _check_sizes(real: LabeledImages, samples: LabeledImages) -> None:
    (height, width), (rows, columns) = (images[0].shape[1:3] for images in (real, samples))
    if (height, width) != (rows, columns):
        raise UserError(
            f"the samples have {columns} x {rows} pixels, and the training images {width} x "
            f"{height}: a report is of samples of that size"
        )


@dataclass
class ClassifierReport:
    """The numbers by the classifier, as JSON values; `name` says of what."""

    name: str = "by_own_classifier"
    metrics: dict[str, Any] = field(default_factory=dict)  # of every set
    protocol: dict[str, Any] = field(default_factory=dict)  # how they were made
    sets: dict[str, Any] = field(default_factory=dict)  # descriptions, with the reference's
    classes: dict[int, dict[str, Any]] = field(default_factory=dict)  # accuracies of the samples


def evaluate_by_own_classifier(
    sets: Mapping[str, ImageSource], training: ImageSource, labeled: LabeledImages, folder: Path
) -> ClassifierReport:
    """Train a classifier, keep its weights in `folder`, and evaluate the sets against `training`.

    Args:
        sets: "samples", and others to compare them with.
        labeled: the training images and their classes (-1 for none). Without classes it is one of
            groups of similar images; with too few images the report is empty, with a warning.
    """
    counts = {name: len(source) for name, source in (*sets.items(), ("training images", training))}
    scarcest = min(counts, key=counts.__getitem__)
    smallest = counts[scarcest]
    images, labels = map(torch.from_numpy, labeled)
    images = images.permute(0, 3, 1, 2).contiguous()
    report = ClassifierReport(metrics={"by": BY})
    if len(labels.unique()) < 2 or labels.min() < 0:
        labels = similar_groups(images)
        report = ClassifierReport("by_groups_of_images", {"by": BY_GROUPS})
    if smallest < FEWEST or len(labels.unique()) < 2:
        reason = f"there are {smallest} {scarcest.replace('_', ' ')}, and {FEWEST} are needed"
        if smallest >= FEWEST:
            reason, advice = "all training images are alike", "train on images that differ"
        elif scarcest == "samples":
            advice = "make more with the script that made them"
        else:
            advice = "add images to the run's data"
        log.warning(
            "the report is without distances (FID, KID, IS, precision, recall), for which a "
            "classifier of the run's own is trained: %s; %s",
            *(reason, advice),
        )
        return ClassifierReport()
    report.protocol = {"trained_on": "reference", "training_seed": SEED}
    classifier = train_small_classifier(images, labels.long(), SEED)
    classifier.save(folder / WEIGHTS)
    extractor = Extractor(register_small_classifier(), weights=folder / WEIGHTS)
    # Weights are new with every report: what is cached of them would not be found again.
    runner = Runner(cache=Cache(enabled=False))
    evaluator = FidelityEvaluator(training, extractor, _settings(smallest), runner=runner)
    for name, source in sets.items():
        evaluation = evaluator(source)
        assert evaluation is not None  # there is one process
        grouped = report.name != ClassifierReport.name
        accuracy = None if grouped else _accuracy(classifier, source)
        if accuracy is not None and name == "samples":
            report.classes = accuracy.by_class()
        top = {} if accuracy is None else accuracy.compute()
        top.pop("images", None)
        report.metrics[name] = _flat(evaluation.metrics) | top
        report.protocol |= evaluation.protocol
        report.sets[name] = evaluation.sets["samples"]
        report.sets["reference"] = evaluation.sets["reference"]
    return report


def similar_groups(images: Tensor) -> Tensor:
    """Groups of uint8 images [N, 3, H, W] that look alike from afar: int64 [N], the same each time.

    They are clusters of the pixels at 8 x 8.
    """
    small = torch.cat([_thumbnails(part) for part in images.split(ACCURACY_BATCH)])
    groups = KMeans(min(GROUPS, max(1, len(small) // 4)), small.shape[1])
    groups.initialize(small, torch.Generator().manual_seed(SEED))
    return torch.cdist(small, groups.C).argmin(1)


def _thumbnails(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] as float [B, 3 * 8 * 8]."""
    size = (THUMBNAIL, THUMBNAIL)
    return F.interpolate(to_values(images), size, mode="bilinear", antialias=True).flatten(1)


def _settings(smallest: int) -> FidelitySettings:
    of_metrics = metric_settings(
        isc_splits=10 if smallest >= 100 else 1, kid_subset_size=min(1000, smallest // 2)
    )
    return FidelitySettings(("fid", "isc", "kid", "prc"), of_metrics=of_metrics)


def _accuracy(classifier: SmallClassifier, images: ImageSource) -> ClassifiedImages | None:
    """None, with a warning, for images of no class, or of one that the training data lack."""
    runner = Runner(ACCURACY_BATCH, Cache(enabled=False))
    make = partial(ClassifiedImages, classifier.probabilities)
    try:
        return runner.run(images, make, "accuracy", "images")[1]
    except UserError as error:
        log.warning("%s", error)
        return None


def _flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Precision and recall beside the others, as in tables."""
    precision = metrics["prc"]
    rest = {name: value for name, value in metrics.items() if name != "prc"}
    return rest | {name: precision[name] for name in ("precision", "recall")}
