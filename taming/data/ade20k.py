"""ADE20K scene parsing (the 2016 challenge's 150 classes; label 0 is unknown)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from taming.data.base import of_subclasses
from taming.data.columns import StringTable
from taming.data.condition_maps import Labels
from taming.data.files.find import JPEG_AND_PNG
from taming.data.files.list_files import ListPair, read_pairs
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.segmentation import SegmentationExamples, Segmented
from taming.errors import UserError

N_LABELS = 151
ROOT = "data/ade20k_root"
IMAGES = f"{ROOT}/images"
SCENES = f"{ROOT}/sceneCategories.txt"
LISTS = ListPair(
    "data/ade20k_train.txt", "data/ade20k_test.txt", IMAGES, JPEG_AND_PNG, val_folder="validation"
)


class Examples(SegmentationExamples):
    """`data/ade20k_examples.txt`: 151 labels."""

    name = "ade20k"
    labels_and_shift = (N_LABELS, False)


def _categories(names: Iterable[str]) -> Iterator[str]:
    """Of each image, from lines `ADE_train_00000001 airport_terminal` of `SCENES`."""
    try:
        scenes = read_pairs(Path(SCENES), "image category")
    except OSError as error:
        raise UserError(f"{SCENES}, of ADE20K, cannot be read ({error}); put it there") from None
    for name in names:
        stem = Path(name).stem
        if stem not in scenes:
            raise UserError(f"{SCENES} lacks {stem}; use the file that belongs to the images")
        yield scenes[stem]


class ADE20kBase(Segmented):
    """Images and annotations of `data/ade20k_root`: items of `Segmented` with `scene_category`.

    Nothing is read in `config`, which published configs have. The other arguments are those of
    `ImageOptions`; crops are random in training by default.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        size: int | None = None,
        random_crop: bool | None = None,
        interpolation: str = "bicubic",
        crop_size: int | None = None,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        training = self.get_split() == "train"
        random_crop = training if random_crop is None else random_crop
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            interpolation,
            on_error=on_error,
            exif=exif,
            **files,
        )
        folder = "training" if training else "validation"

        def choices(line: str) -> tuple[str, ...]:
            """Lines may start at the root, at its images, or at this split."""
            return line, line.removeprefix("images/"), f"{folder}/{line}"

        listed = LISTS.read(training, type(self).__name__, on_error, choices=choices)
        extra = {"scene_category": StringTable(_categories(listed.names))}
        super().__init__(listed, f"{ROOT}/annotations", Labels(N_LABELS), options, extra)

    def get_split(self) -> str:
        """Whose images: "train" or "validation"."""
        raise of_subclasses(self, "get_split")


class ADE20kTrain(ADE20kBase):
    """The training images."""

    def get_split(self) -> str:
        return "train"


class ADE20kValidation(ADE20kBase):
    """The validation images, cropped at the center."""

    def get_split(self) -> str:
        return "validation"
