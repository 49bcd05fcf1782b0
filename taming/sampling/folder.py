"""Samples as PNG files: a folder that can be continued."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

from taming.errors import UserError
from taming.sampling.engine import Request, Sample, sample_images
from taming.sampling.rejection import Score, best_of, candidates, group_of
from taming.sampling.requests import requests_for
from taming.sampling.settings import SampleSettings
from taming.sampling.token_sampler import OnStep, Progress

# The text entry of a PNG that says how it was drawn, as JSON.
RECORD = "sampling"
_NUMBERED = re.compile(r"[0-9]{6,}\.png")


def to_pillow(image: Tensor) -> Image.Image:
    """A float image (C, H, W) in [-1, 1], C = 1 (grey), 3 or 4, as a Pillow image.

    Raises:
        UserError: for any other number of channels.
    """
    if image.shape[0] not in (1, 3, 4):
        raise UserError(f"the model draws {image.shape[0]} channels; a PNG has 1, 3 or 4 of them")
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).cpu().numpy()
    pixels = pixels.astype(np.uint8)  # (H, W, C)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def save_png(image: Tensor, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write an image (C, H, W) in [-1, 1], with a record of how it was made.

    A file is either complete or not there.

    Raises:
        UserError: where it cannot be written, as on a full disk.
    """
    info = PngImagePlugin.PngInfo()
    if record is not None:
        info.add_text(RECORD, json.dumps(record))
    picture = to_pillow(image)
    save_whole(path, lambda partial: picture.save(partial, format="PNG", pnginfo=info))


def save_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file, which then appears at `path`: complete, or not at all.

    Raises:
        UserError: where it cannot be written, as on a full disk.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); finished samples stay, and the "
            "same command goes on with the rest"
        ) from None


class Finished(Protocol):
    """Knows which samples need not be drawn."""

    def finished(self, label: int | None) -> set[int]:
        """Numbers of a label's samples that are there."""


def check_place(folder: Path) -> None:
    """Before work begins: whether files can go to a folder, which need not exist yet.

    Raises:
        UserError: where they cannot.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(
            f"nothing can be written to {folder}, as {there} is no folder or write-protected; "
            "choose another --outdir"
        )


class SampleFolder:
    """Samples at `root/[class/]NNNNNN.png`, each with the settings that made it.

    Args:
        root: made when the first sample is written.
        record: the settings; JSON values.
    """

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root, self.record = root, dict(record)

    def path(self, label: int | None, number: int) -> Path:
        """Where a sample is, or will be."""
        return self._of(label) / f"{number:06}.png"

    def _of(self, label: int | None) -> Path:
        return self.root if label is None else self.root / str(label)

    def finished(self, label: int | None) -> set[int]:
        """Numbers of a label's samples that are already here.

        Raises:
            UserError: if they were drawn with other settings, or no more can be written.
        """
        check_place(self.root)
        paths = [p for p in self._of(label).glob("*.png") if _NUMBERED.fullmatch(p.name)]
        if paths:
            self._check_settings(min(paths))
        return {int(path.stem) for path in paths}

    def _check_settings(self, path: Path) -> None:
        try:
            with Image.open(path) as image:
                found = json.loads(image.info.get(RECORD, "{}"))
        except (OSError, ValueError):
            raise UserError(f"{path} is no intact PNG; remove it and try again") from None
        for key, value in self.record.items():
            if found.get(key, value) != value:
                raise UserError(
                    f"{path} was drawn with {key} {found[key]}, not {value}: choose another "
                    "--outdir, or remove the old samples"
                )

    def save(self, sample: Sample) -> None:
        """Write a sample; a file is either complete or not there.

        Raises:
            UserError: where it cannot be written, as on a full disk.
        """
        named = {**self.record, "class": sample.label, "number": sample.number}
        if sample.candidate is not None:
            named |= {"candidate": sample.candidate, "score": sample.score}
        save_png(sample.image, self.path(sample.label, sample.number), named)


class FolderWriter:
    """Saves samples in threads; leaving the context waits for all of them.

    Raises:
        UserError: as `SampleFolder.save` does, with one of the next samples or at the end.
    """

    def __init__(self, folder: SampleFolder, threads: int = 4) -> None:
        self.folder, self.waiting = folder, 4 * threads
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> FolderWriter:
        return self

    def save(self, sample: Sample) -> None:
        """Write a sample soon; waits where too many are waiting."""
        self._pending.append(self._pool.submit(self.folder.save, sample))
        if len(self._pending) > self.waiting:
            self._pending.popleft().result()

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for pending in self._pending:
                pending.result()


@dataclass(frozen=True)
class Job:
    """What to draw into a folder: `num_samples` of every label, in tokens of `shape`.

    Attributes:
        shape: height and width in tokens; None: the training's.
        share: (n, processes): this is the n-th of several processes that fill the folder.
        compiled: see `sample_images`.
        ratio, score: with a score (see `best_of`), the share of candidates that is kept.
    """

    labels: Sequence[int | None]
    num_samples: int
    settings: SampleSettings
    batch_size: int = 25
    seed: int = 0
    shape: tuple[int, int] | None = None
    share: tuple[int, int] = (0, 1)
    compiled: bool = False
    ratio: float = 1.0
    score: Score | None = None

    def missing(self, model: Any, folder: Finished) -> Iterator[Request]:
        """What this process is to draw and has not, group by group where there is rejection."""
        kept = group_of(self.ratio)[0] if self.score else 1
        requests = requests_for(
            model, self.labels, self.num_samples, folder.finished, self.shape, self.share, kept
        )
        return candidates(requests, self.ratio) if self.score else requests

    def samples(
        self, model: Any, folder: Finished, on_step: OnStep | None = None
    ) -> Iterator[Sample]:
        """The samples that `folder` lacks."""
        requests = self.missing(model, folder)
        samples = sample_images(
            model,
            requests,
            self.settings,
            self.batch_size,
            self.seed,
            on_step=on_step,
            shape=self.shape,
            compiled=self.compiled,
        )
        if self.score is None:
            return samples
        chosen = best_of(samples, self.score, self.ratio)
        return (sample for sample in chosen if sample.number < self.num_samples)


def fill_folder(folder: SampleFolder, model: Any, job: Job) -> int:
    """Draw what `folder` lacks of a job, with a progress bar; returns how many images were drawn.

    Raises:
        UserError: as `SampleFolder` and `sample_images` do.
    """
    rank, processes = job.share
    wanted = len(job.labels) * job.num_samples
    present = sum(n < job.num_samples for label in job.labels for n in folder.finished(label))
    own = -(-(wanted - present) // processes)
    drawn = 0
    with tqdm(total=own, unit="image", miniters=0, disable=rank > 0) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(f"token {progress.drawn}/{progress.total}", refresh=False)
            bar.update(0)

        with FolderWriter(folder) as writer:
            for sample in job.samples(model, folder, show):
                writer.save(sample)
                drawn += 1
                bar.update()
    return drawn
