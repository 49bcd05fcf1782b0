"""How the images of a reference, and of samples of another size, are brought to one size.

By default as arXiv 2012.09841 did for its references: the largest centered square of each file,
resized by Pillow with anti-aliasing to the size of the samples. Runs and folders of samples are
taken as they are; a dataset's config holds real images on either side.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taming.command_line import add_flags, flag, from_flags
from taming.errors import UserError
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import ImageSource
from taming.evaluation.sources.resize import (
    CENTER,
    CROPS,
    NONE,
    PAPER_SIDE,
    PILLOW,
    RESIZES,
    Resizing,
    Size,
    require_name,
)
from taming.evaluation.tasks.fidelity import ImageSet

ROLES = (SAMPLES, REFERENCE) = ("samples", "reference")
PAPER_SIZE = (PAPER_SIDE, PAPER_SIDE)
RESIZES_TEXT, CROPS_TEXT = (
    ", ".join(names[:-1]) + f" or {names[-1]}" for names in (RESIZES, CROPS)
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What the flags of a set say; None where they say nothing.

    Raises UserError for unknown names, a size below 1, and a size beside `none`.
    """

    role: str
    resize: str | None = None
    crop: str | None = None
    side: int | None = None  # in pixels

    def __post_init__(self) -> None:
        for name, value, known in (("resize", self.resize, RESIZES), ("crop", self.crop, CROPS)):
            if value is not None:
                require_name(f"--{self.role}_{name}", value, known)
        if self.side is not None and self.side < 1:
            raise UserError(f"--{self.role}_size must be at least 1, not {self.side}")
        if self.side is not None and self.resize == NONE:
            raise UserError(
                f"--{self.role}_size {self.side} has no effect with --{self.role}_resize none; "
                "leave one of them out"
            )

    @property
    def size(self) -> Size | None:
        return None if self.side is None else (self.side, self.side)

    @property
    def names_no_filter(self) -> bool:
        return self.resize is None and self.side is None

    @property
    def says_nothing(self) -> bool:
        return self.names_no_filter and self.crop is None

    def or_else(self, other: Choice) -> Choice:
        """What this says, and `other` where it says nothing."""
        side = None if self.resize == NONE else self.side or other.side
        return Choice(self.role, self.resize or other.resize, self.crop or other.crop, side)

    def resizing(self, size: Size | None) -> Resizing:
        """To `size` if the flags name none, by the paper's filter if they name none; of no size, or
        with `none`, nothing but the crop that they name."""
        size = self.size or size
        if self.resize == NONE or size is None:
            return self.without_filter()
        return Resizing(self.resize or PILLOW, self.crop or CENTER, size)

    def without_filter(self) -> Resizing:
        return Resizing(NONE, self.crop or NONE)


@dataclass(frozen=True, kw_only=True)
class ResizeArguments:
    """How a reference is resized, and cropped before."""

    reference_resize: str | None = flag(
        None, f"{RESIZES_TEXT}, as it is (default: {PILLOW} for folders and configs)"
    )
    reference_crop: str | None = flag(
        None, f"{CROPS_TEXT} (default: {CENTER}, the largest square, if it is resized)"
    )
    reference_size: int | None = flag(
        None, f"pixels a side (default: the samples' size, else {PAPER_SIDE})"
    )

    def choice(self) -> Choice:
        """What these flags ask for."""
        return Choice(REFERENCE, self.reference_resize, self.reference_crop, self.reference_size)


@dataclass(frozen=True, kw_only=True)
class SamplesResizeArguments:
    """The same for samples."""

    samples_resize: str | None = flag(
        None, f"{RESIZES_TEXT} (default: {NONE}; for configs as the reference)"
    )
    samples_crop: str | None = flag(None, f"{CROPS_TEXT} (default: {CENTER}, if they are resized)")
    samples_size: int | None = flag(
        None, f"pixels a side (default: the reference's size, else {PAPER_SIDE})"
    )

    def choice(self) -> Choice:
        """What these flags ask for."""
        return Choice(SAMPLES, self.samples_resize, self.samples_crop, self.samples_size)


SizeFlags = type[ResizeArguments] | type[SamplesResizeArguments]
SIZE_FLAGS: dict[str, SizeFlags] = {SAMPLES: SamplesResizeArguments, REFERENCE: ResizeArguments}


def add_size_flags(parser: argparse.ArgumentParser, roles: Sequence[str] = ROLES) -> None:
    """What sets of images in these roles need."""
    group = parser.add_argument_group("sizes of images")
    for role in roles:
        add_flags(group, SIZE_FLAGS[role])


def resize_by_flags(sets: Sequence[ImageSet], args: argparse.Namespace) -> None:
    """`resize_sets` of those that there are, in the order of the roles whose flags were added."""
    roles = [role for role in ROLES if f"{role}_resize" in args]
    choices = {role: from_flags(SIZE_FLAGS[role], args).choice() for role in roles}
    by_role = dict(zip(roles, sets, strict=False))
    if REFERENCE in choices or not choices[SAMPLES].says_nothing:
        resize_sets(by_role.get(SAMPLES), by_role.get(REFERENCE), choices)


def resize_sets(
    samples: ImageSet | None, reference: ImageSet | None, choices: Mapping[str, Choice]
) -> None:
    """Set the `resizing` of two sets as the flags say, by role, and by default.

    Raises UserError for flags that a set cannot follow, and for statistics of images that were
    resized otherwise than the flags say.
    """
    of_samples = choices.get(SAMPLES) or Choice(SAMPLES)
    of_reference = choices.get(REFERENCE) or Choice(REFERENCE)
    for choice, images in ((of_samples, samples), (of_reference, reference)):
        if not choice.says_nothing:
            _require_images(choice.role, images)
    if isinstance(samples, DatasetSource):  # real images: a set against itself is at 0
        of_samples = of_samples.or_else(of_reference)
    if samples is not None and not isinstance(samples, Statistics):
        samples.resizing = _of_samples(samples, reference, of_samples, of_reference.size)
    size = None if samples is None else samples.image_size()
    if isinstance(reference, Statistics):
        any_size = size is None and of_reference.size is None
        reference.require_resizing(of_reference.resizing(size or PAPER_SIZE), any_size)
    elif reference is not None:
        alone = samples is None
        reference.resizing = _of_reference(reference, of_reference, size, alone)
    for images in (samples, reference):
        if isinstance(images, DatasetSource) and not images.resizing.changes_nothing:
            _say_if_items(images)


def _of_samples(
    samples: ImageSource, reference: ImageSet | None, choice: Choice, size: Size | None
) -> Resizing:
    if isinstance(samples, DatasetSource):
        return choice.resizing(samples.own_image_size() or PAPER_SIZE)
    if choice.names_no_filter:
        return choice.without_filter()
    if size is None and reference is not None:
        size = reference.image_size()
    return choice.resizing(size or PAPER_SIZE)


def _of_reference(
    reference: ImageSource, choice: Choice, size: Size | None, alone: bool
) -> Resizing:
    if isinstance(reference, DatasetSource):
        return choice.resizing(size or reference.own_image_size() or PAPER_SIZE)
    if choice.names_no_filter and not isinstance(reference, FolderSource):
        return choice.without_filter()  # a run's samples
    if alone:
        size = _of_prepared(reference) or PAPER_SIZE
    resizing = choice.resizing(size)
    if resizing.size is None and choice.resize != NONE:
        log.warning(
            "the samples are of several sizes, so that the reference is taken as it is; "
            "--reference_size resizes it"
        )
    return resizing


def _require_images(role: str, images: ImageSet | None) -> None:
    if images is None or (role == SAMPLES and isinstance(images, Statistics)):
        which = "there is no set" if images is None else "statistics hold no images"
        raise UserError(f"{which} to resize; leave out --{role}_resize, _crop and _size")


def _of_prepared(reference: ImageSource) -> Size | None:
    """The size of images that are resized already: all are of one, and that is not above 256."""
    size = reference.own_image_size()
    return size if size and max(size) <= PAPER_SIDE else None


def _say_if_items(images: DatasetSource) -> None:
    if not images.reads_files:
        log.warning(
            "the images of %s are no files that could be read whole%s; they are resized and "
            "cropped as training sees them, and after that as the flags say",
            images.name,
            images.changed_by and f" ({images.changed_by} may change them)",
        )
