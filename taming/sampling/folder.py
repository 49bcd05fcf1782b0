"""Samples as PNG files: a folder that can be continued."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from taming.atomic_files import atomic_path, check_place, sole_user
from taming.distributed import gather_objects, is_first_process
from taming.downloads import file_hash
from taming.errors import UserError, interruptible, reason_of
from taming.models.transformer_checks import trained_shape
from taming.pictures import to_pillow
from taming.sampling.bars import ImageBar, TokenBar
from taming.sampling.engine import Sample, rounds_by_batch
from taming.sampling.plan import Finished, SamplingJob
from taming.sampling.pools import ScoreFiles
from taming.sampling.settings import SampleSettings
from taming.user_files import with_home

# The text entry of a PNG that says how it was sampled, as JSON.
RECORD = "sampling"
# What to do if a file cannot be written: see `atomic_path`.
ADVICE = "finished samples stay, and the same command goes on with the rest"
FILES = "files"  # in a record: the hashes of the files that flags name, by these
# Of these their hashes alone count, not how their paths are written.
PATHS = ("image", "keep", "condition", "init", "mask", "image_prompt")
# What differs if hashes do.
OTHER = {
    "weights": "other weights (another checkpoint, or others of its weights)",
    "config": "another config of the model (by --base or overrides)",
    "picture": "another picture of the image (reduced, cut or resized otherwise)",
    "kept": "another part kept",
    "condition_hash": "another condition (what it comes from has changed)",
}
_NUMBERED = re.compile(r"[0-9]{6,}\.png")


def make_record(
    seed: int,
    global_step: int,
    dtype: torch.dtype,
    settings: SampleSettings,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """What decides samples of every kind, for the text of their PNGs.

    `hashes` are those of `taming.checkpoint.model_hashes`.
    """
    decided = {"seed": seed, "global_step": global_step, "dtype": str(dtype)}
    return {**decided, **settings.describe(), **hashes}


def file_hashes(**named: str | Path | None) -> dict[str, dict[str, str]]:
    """For a record: SHA-256 of those values that name a file, whose content may change.

    What is no file, as a box or a class, stands in records for itself.
    """
    paths = {name: with_home(Path(value)) for name, value in named.items() if value is not None}
    return {FILES: {name: file_hash(path) for name, path in paths.items() if path.is_file()}}


def png_info(record: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    """The text of a PNG, for Pillow's `save(pnginfo=...)`."""
    info = PngImagePlugin.PngInfo()
    info.add_text(RECORD, json.dumps(record))
    return info


def save_png(image: Tensor, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write an image (C, H, W) in [-1, 1], with a record of how it was made; see `atomic_path`."""
    picture = to_pillow(image)
    info = PngImagePlugin.PngInfo() if record is None else png_info(record)
    with atomic_path(path, advice=ADVICE) as partial:
        picture.save(partial, format="PNG", pnginfo=info)


class SampleFolder:
    """Samples at `root/[class/]NNNNNN.png`, each with the settings that made it.

    `root` is made when the first sample is written; `record` has the settings as JSON values.
    """

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root, self.record = root, dict(record)

    def make(self) -> None:
        """Make the folder, if it does not exist.

        Raises:
            UserError: if it cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.root} ({reason_of(error)}); {ADVICE}") from None

    def path(self, label: int | None, number: int) -> Path:
        """Where a sample is, or will be."""
        return self._folder_of(label) / f"{number:06}.png"

    def _folder_of(self, label: int | None) -> Path:
        return self.root if label is None else self.root / str(label)

    def _samples(self, label: int | None) -> list[Path]:
        """The files of a label's samples, by number; not those that others have put there."""
        paths = self._folder_of(label).glob("*.png")
        return sorted(path for path in paths if _NUMBERED.fullmatch(path.name))

    def numbers(self, label: int | None) -> set[int]:
        """Of a label's samples that are here, however they were made."""
        return {int(path.stem) for path in self._samples(label)}

    def finished(self, label: int | None) -> set[int]:
        """Numbers of a label's samples that are already here.

        Raises:
            UserError: if they were sampled with other settings, or no more can be written.
        """
        check_place(self.root, "choose another --outdir")
        paths = self._samples(label)
        if paths:
            _check_record(paths[0], self.record)
        return {int(path.stem) for path in paths}

    def goes_on_with(self, job: SamplingJob) -> SamplingJob:
        """`job` with the batch size of the samples that are here, see `batch_size_for`."""
        if not job.rounds_by_batch:
            return job
        dtype, size = job.plan.dtype, job.batch_size
        return replace(job, batch_size=self.batch_size_for(dtype, size, size, labels=job.labels))

    def batch_size_for(
        self,
        dtype: torch.dtype,
        wanted: int,
        most: int,
        *,
        labels: Sequence[int | None] = (None,),
    ) -> int:
        """The batch size for `most` samples, of which some may be here.

        Where samples depend on it (`rounds_by_batch`), it is that of those that are here, or else
        the one that is `wanted`, but no more than there are samples, and it is recorded; elsewhere
        it is `wanted`.
        """
        if not rounds_by_batch(dtype):
            return wanted
        first = next((path for label in labels for path in self._samples(label)), None)
        before = {} if first is None else record_of(first)
        size: int = before.get("batch_size", min(wanted, most))
        self.record["batch_size"] = size
        return size

    def scores(self) -> ScoreFiles:
        """Of candidates that are compared with many others, until their best are samples."""
        text = json.dumps(self.record, sort_keys=True)
        return ScoreFiles(self.root, hashlib.sha256(text.encode()).hexdigest()[:16])

    def require(self, label: int | None, number: int, **own: Any) -> None:
        """Refuse (`UserError`) a sample that is here if its own record says something else."""
        _check_record(self.path(label, number), own)

    def save(self, sample: Sample, **own: Any) -> None:
        """Write a sample, with what its record has beside the folder's; see `save_png`."""
        record = {**self.record, **own, "class": sample.label, "number": sample.number}
        if sample.candidate is not None:
            record |= {"candidate": sample.candidate, "score": sample.score}
        if sample.top_k is not None:
            record["own_top_k"] = sample.top_k
        save_png(sample.image, self.path(sample.label, sample.number), record)


def _check_record(path: Path, wanted: Mapping[str, Any]) -> None:
    record = record_of(path)
    for key, value in wanted.items():
        hashed = key in PATHS and all(_has_hash(each, key) for each in (record, wanted))
        if not hashed and record.get(key, value) != value:
            raise UserError(
                f"{path} was sampled with {_difference(key, record[key], value)}: choose another "
                "--outdir, or remove the old samples"
            )


def _has_hash(record: Mapping[str, Any], key: str) -> bool:
    """Whether a record knows the content of the file of a flag, or of the first of several."""
    return not {key, f"{key} 1"}.isdisjoint(record.get(FILES, {}))


def _difference(key: str, before: Any, now: Any) -> str:
    if key == FILES:
        name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        return f"another content of the file of --{name}"
    return OTHER.get(key) or f"{key} {before}, not {now}"


def record_of(path: str | Path) -> dict[str, Any]:
    """How an image was made, empty if it does not say; raises `UserError` for what is no PNG."""
    try:
        with Image.open(path) as image:
            record = json.loads(image.info.get(RECORD, "{}"))
            return record if isinstance(record, dict) else {}  # another program's
    except (OSError, ValueError):
        raise UserError(f"{path} is no intact PNG; remove it and try again") from None


class FolderWriter:
    """Saves samples in threads; leaving the context waits for all of them.

    Raises:
        UserError: as `SampleFolder.save` does, with one of the next samples or at the end; if
            another command is sampling into the folder.
    """

    def __init__(self, folder: SampleFolder, threads: int = 4) -> None:
        self.folder, self.most_pending = folder, 4 * threads
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future[None]] = deque()
        self._stack = ExitStack()

    def __enter__(self) -> FolderWriter:
        self.folder.make()
        if is_first_process():  # for all processes that torchrun has started
            advice = "wait for it, or choose another --outdir"
            self._stack.enter_context(sole_user(self.folder.root, advice))
        return self

    def save(self, sample: Sample, **own: Any) -> None:
        """Write a sample soon, as `SampleFolder.save` does; waits if too many are pending."""
        self._pending.append(self._pool.submit(self.folder.save, sample, **own))
        if len(self._pending) > self.most_pending:
            self._pending.popleft().result()

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True)
        self._stack.close()
        if kind is None:
            for pending in self._pending:
                pending.result()


def _bar(job: SamplingJob, finished: Finished) -> ImageBar:
    """The bar of a process: over the tokens where those of one image may take long.

    It is over candidates where many of them are compared before any is a sample.
    """
    shape, disable = job.shape, job.share[0] > 0
    images = job.sampled(finished) if job.plan.pooled else job.count(finished)
    if not images or shape is None or shape == trained_shape(job.model):
        return ImageBar(images, disable=disable)
    return TokenBar(job.sampled(finished), shape[0] * shape[1], disable=disable)


@interruptible(ADVICE)
def fill_folder(folder: SampleFolder, job: SamplingJob) -> int:
    """Sample what `folder` lacks of a job, with a progress bar; the number of new images.

    Of sizes that are not the training's, which may take long, it says before how long.
    """
    job = folder.goes_on_with(job)
    new = 0
    pooled = job.plan.pooled
    scores = folder.scores() if pooled else None
    with _bar(job, folder.finished) as bar, FolderWriter(folder) as writer:
        for sample in job.samples(folder.finished, bar, scores, bar.image):
            writer.save(sample)
            new += 1
            if not pooled:
                bar.image()
    if scores is not None:
        gather_objects(new)  # by then all processes have written what they made
        if is_first_process():
            scores.delete(job.pools(lambda label: set()))
    return new
