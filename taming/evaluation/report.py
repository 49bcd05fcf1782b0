"""A look at a class-conditional or unconditional run: numbers in JSON and one picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from taming.errors import UserError
from taming.evaluation.labels import Labelled, neighbour_accuracy
from taming.evaluation.likelihood import score_transformer
from taming.evaluation.models import score_first_stage

PER_CLASS = 10  # samples of a class in the picture, and as many real images


def newest_samples(run_folder: Path) -> Path:
    """The folder of the latest samples that scripts/sample_fast.py wrote for a run."""
    images = list((run_folder / "samples").glob("*/*/**/*.png"))
    if not images:
        raise UserError(f"{run_folder} has no samples yet; draw some with scripts/sample_fast.py")
    newest = max(images, key=lambda path: path.stat().st_mtime)
    return run_folder / "samples" / Path(*newest.relative_to(run_folder / "samples").parts[:2])


def read_samples(folder: Path) -> Labelled:
    """Images uint8 [N, H, W, 3] and labels [N] of `<class>/NNNNNN.png` (label -1 without class)."""
    paths = sorted(folder.glob("**/*.png"))
    labels = [int(path.parent.name) if path.parent != folder else -1 for path in paths]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return np.stack(pictures), np.array(labels)


def read_labelled(batches: Iterable[Mapping[str, Any]], image_key: str, label_key: str) -> Labelled:
    """Images uint8 [N, H, W, 3] and labels [N] (-1 where the data has none) of a loader."""
    images, labels = [], []
    for batch in batches:
        pixels = ((batch[image_key] + 1) * 127.5).round().clamp(0, 255)
        images.append(pixels.byte().expand(-1, -1, -1, 3).numpy())
        count = len(pixels)
        labels.append(batch[label_key].numpy() if label_key in batch else np.full(count, -1))
    return np.concatenate(images), np.concatenate(labels)


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


def write_report(model: Any, data: Any, samples_folder: Path, outdir: Path) -> dict[str, Any]:
    """Evaluate both stages on the validation data and the samples against the training data.

    `data` is a set-up `DataModuleFromConfig`. Writes `report.json` and `samples.png` in `outdir`
    and returns what the JSON holds.
    """
    validation = tqdm(data.val_dataloader(), desc="validation data", leave=False)
    stage, image_key = model.first_stage_model, model.first_stage_key
    report: dict[str, Any] = {
        "first_stage": asdict(score_first_stage(stage, validation, image_key)),
        "transformer": asdict(score_transformer(model, data.val_dataloader())),
    }
    training = tqdm(data.train_dataloader(), desc="training data", leave=False)
    real = read_labelled(training, image_key, "class_label")
    samples = read_samples(samples_folder)
    report["samples"] = {"images": len(samples[0]), "folder": str(samples_folder)}
    if (samples[1] >= 0).all():
        report["samples"]["named_right_by_5_neighbours"] = neighbour_accuracy(real, samples)
    outdir.mkdir(parents=True, exist_ok=True)
    (outdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    class_grid(real, samples).save(outdir / "samples.png")
    return report
