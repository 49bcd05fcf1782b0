"""A look at a class-conditional or unconditional run: numbers in JSON and one picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from taming.errors import UserError
from taming.evaluation.metrics.likelihood import score_transformer
from taming.evaluation.metrics.neighbours import Labelled, neighbour_accuracy
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.tasks.models import score_first_stage
from taming.evaluation.tasks.own_classifier import Judgement, judge

PER_CLASS = 10  # samples of a class in the picture, and as many real images


def newest_samples(run_folder: Path) -> Path:
    """The folder of the latest samples that scripts/sample_fast.py wrote for a run."""
    images = list((run_folder / "samples").glob("*/*/**/*.png"))
    if not images:
        raise UserError(f"{run_folder} has no samples yet; draw some with scripts/sample_fast.py")
    newest = max(images, key=lambda path: path.stat().st_mtime)
    return run_folder / "samples" / Path(*newest.relative_to(run_folder / "samples").parts[:2])


def read_labelled(source: ImageSource, what: str) -> Labelled:
    """Images uint8 [N, H, W, 3] and labels [N] (-1 where there are none), in the source's order.

    Raises:
        UserError: for images of several sizes.
    """
    with tqdm(total=len(source), desc=what, unit="image", leave=False) as bar:
        pictures = []
        for batch in source.batches(64):
            pictures += batch
            bar.update(len(batch))
    if len({picture.pixels.shape for picture in pictures}) > 1:
        raise UserError(f"the {what} have several sizes; a report is of images of one size")
    pictures.sort(key=lambda picture: picture.index)
    images = [picture.pixels.permute(1, 2, 0).numpy() for picture in pictures]
    labels = [-1 if picture.label is None else picture.label for picture in pictures]
    return np.stack(images), np.array(labels)


def class_grid(real: Labelled, samples: Labelled, scale: int = 2) -> Image.Image:
    """A row per class: its samples on the left, real images of it on the right."""
    classes = sorted(set(samples[1].tolist()))
    height, width = (side * scale for side in samples[0].shape[1:3])
    gap, head = width // 2, 24
    left = PER_CLASS * width
    grid = Image.new("RGB", (2 * left + gap, head + len(classes) * height), "white")
    font = ImageFont.load_default(size=14)
    for text, x in (("drawn by the transformer", 0), ("real images", left + gap)):
        ImageDraw.Draw(grid).text((x + 4, 4), text, fill="black", font=font)
    for row, label in enumerate(classes):
        for (images, labels), x in ((samples, 0), (real, left + gap)):
            chosen = images[labels == label][:PER_CLASS]
            for column, pixels in enumerate(chosen):
                picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
                grid.paste(picture, (x + column * width, head + row * height))
    return grid


@dataclass(frozen=True)
class ReportSets:
    """The images that a report is about."""

    samples: ImageSource
    training: ImageSource
    validation: ImageSource


def make_report(model: Any, data: Any, sets: ReportSets, outdir: Path) -> dict[str, Any]:
    """Evaluate both stages on the validation data and the samples against the training data.

    `data` is a set-up `DataModuleFromConfig`. Writes `samples.png` and the classifier's weights in
    `outdir`. The dict has `metrics`, `protocol` and `sets` for a result, and `by_class`.
    """
    batches = tqdm(data.val_dataloader(), desc="validation data", leave=False)
    stage, image_key = model.first_stage_model, model.first_stage_key
    metrics: dict[str, Any] = {
        "first_stage": asdict(score_first_stage(stage, batches, image_key)),
        "transformer": asdict(score_transformer(model, data.val_dataloader())),
    }
    real, samples = (
        read_labelled(sets.training, "training images"),
        read_labelled(sets.samples, "samples"),
    )
    about = metrics["samples"] = {"images": len(samples[0])}
    if (samples[1] >= 0).all() and (real[1] >= 0).all():
        about["named_right_by_5_neighbours"] = neighbour_accuracy(real, samples)
    outdir.mkdir(parents=True, exist_ok=True)
    class_grid(real, samples).save(outdir / "samples.png")
    judged = {"samples": sets.samples, "validation_images": sets.validation}
    found = judge(judged, sets.training, real, outdir) or Judgement()
    if found.metrics:
        metrics["by_own_classifier"] = found.metrics
    protocol = {"by_own_classifier": found.protocol}
    return {
        "metrics": metrics,
        "protocol": protocol if found.protocol else {},
        "sets": found.sets or _described(sets),
        "by_class": found.classes,
    }


def _described(sets: ReportSets) -> dict[str, Any]:
    return {"samples": sets.samples.describe(), "reference": sets.training.describe()}
