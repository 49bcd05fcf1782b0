"""A report on a class-conditional or unconditional run: numbers in JSON and one picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from taming.errors import UserError
from taming.evaluation.metrics.accuracy import LabeledImages, neighbor_accuracy
from taming.evaluation.metrics.likelihood import measure_likelihood
from taming.evaluation.sources.images import (
    ImageSource,
    SourceImage,
    indices_and_labels,
    stack_pixels,
)
from taming.evaluation.tasks.own_classifier import evaluate_by_own_classifier
from taming.evaluation.tasks.reconstruction import score_first_stage
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import grid

PER_CLASS = 10  # samples of a class in the picture, and as many real images


def newest_samples(run_folder: Path) -> Path:
    """The folder of the latest samples that scripts/sample_fast.py wrote for a run."""
    images = list((run_folder / "samples").glob("*/*/**/*.png"))
    if not images:
        raise UserError(f"{run_folder} has no samples yet; make some with scripts/sample_fast.py")
    newest = max(images, key=lambda path: path.stat().st_mtime)
    return run_folder / "samples" / Path(*newest.relative_to(run_folder / "samples").parts[:2])


def read_labeled(source: ImageSource, what: str) -> LabeledImages:
    """All images in the source's order, and their labels (`NO_LABEL` for none).

    Raises UserError for images of several sizes.
    """
    images: list[SourceImage] = []
    with tqdm(total=len(source), desc=what, unit="image", leave=False) as bar:
        for batch in source.batches(64):
            images += batch
            bar.update(len(batch))
    if len({image.pixels.shape for image in images}) > 1:
        raise UserError(f"the {what} have several sizes; a report is of images of one size")
    images.sort(key=lambda image: image.index)
    _, labels = indices_and_labels(images)
    return stack_pixels(images).permute(0, 2, 3, 1).numpy(), labels.numpy()


def class_grid(real: LabeledImages, samples: LabeledImages, scale: int = 2) -> Image.Image:
    """A row per class: its samples on the left, real images of it on the right."""
    rows = [
        [*_of_class(samples, label), None, *_of_class(real, label)]
        for label in sorted(set(samples[1].tolist()))
    ]
    titles = {0: "samples of the transformer", PER_CLASS + 1: "real images"}
    return grid(rows, titles, side=scale * max(samples[0].shape[1:3]), gap=2)


def _of_class(images: LabeledImages, label: int) -> list[np.ndarray | None]:
    """The first images of a class, and None for those that are missing."""
    chosen = list(images[0][images[1] == label][:PER_CLASS])
    return [*chosen, *[None] * (PER_CLASS - len(chosen))]


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
    `protocol` and `sets` for a result, and `by_class`.

    Args:
        validation_batches: starts a pass over the validation data, batches as the models read them.
    """
    batches = tqdm(validation_batches(), desc="validation data", leave=False)
    images = (model.get_input(model.first_stage_key, batch) for batch in batches)
    metrics: dict[str, Any] = {
        "first_stage": score_first_stage(model.first_stage_model, images),
        "transformer": asdict(measure_likelihood(model, validation_batches()).compute()),
    }
    real = read_labeled(sets.training, "training images")
    samples = read_labeled(sets.samples, "samples")
    about = metrics["samples"] = {"images": len(samples[0])}
    if (samples[1] >= 0).all() and (real[1] >= 0).all():
        about["named_right_by_5_neighbours"] = neighbor_accuracy(real, samples)
    outdir.mkdir(parents=True, exist_ok=True)
    class_grid(real, samples).save(outdir / "samples.png")
    evaluated = {"samples": sets.samples, "validation_images": sets.validation}
    own = evaluate_by_own_classifier(evaluated, sets.training, real, outdir)
    reference = sets.training.describe()
    if own.metrics:
        metrics["by_own_classifier"] = own.metrics
    return {
        "metrics": metrics,
        "protocol": {"by_own_classifier": own.protocol} if own.protocol else {},
        "sets": own.sets or {"samples": sets.samples.describe(), "reference": reference},
        "by_class": own.classes,
    }
