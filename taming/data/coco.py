"""COCO 2017 with captions and COCO-Stuff's segmentations."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import Unpack

from taming.data.base import Item, of_subclasses
from taming.data.checks import SKIP
from taming.data.columns import StringTable
from taming.data.condition_maps import ImageMap, Labels, MapKind
from taming.data.draws import number_between
from taming.data.files.annotations import all_fields, identity_of, read_json
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.segmentation import SegmentationExamples
from taming.errors import UserError
from taming.user_files import with_home

log = logging.getLogger(__name__)
N_LABELS = 183  # 182 and, as number 0, unlabeled


class Examples(SegmentationExamples):
    """`data/coco_examples.txt`: 183 labels, of which 0 is unlabeled (255 in the files)."""

    name = "coco"
    labels_and_shift = (N_LABELS, True)


class Captions:
    """A few captions for each of many images, in flat memory."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self._ends = np.cumsum([0, *map(len, groups)])
        self._texts = StringTable(text for group in groups for text in group)

    def of(self, index: int) -> list[str]:
        """All captions of image number `index`."""
        return [self._texts[number] for number in range(*self._ends[index : index + 2].tolist())]

    def sample(self, index: int) -> str:
        """One of image `index`'s captions, by Python's global generator."""
        first, end = self._ends[index : index + 2].tolist()
        return self._texts[number_between(first, end - 1)]


class CocoBase(ImagesWithMaps):
    """Images of COCO that have captions.

    Items: `image` float32 (H, W, 3) in [-1, 1]; `caption`, one of the image's at random;
    `segmentation`, one-hot (H, W, 183) or RGB in [-1, 1]; `img_path`, `seg_path`, `filename_`,
    `file_path_`.

    Args:
        dataroot: folder of the images.
        datajson: `captions_{train,val}2017.json`.
        onehot_segmentation: one-hot of the labels + 1, so that 255, unlabeled, is 0; otherwise the
            file as an image.
        use_stuffthing: take `data/cocostuffthings/train2017/*.png` (things and stuff), otherwise
            `data/coco/annotations/stuff_train2017_pixelmaps`.
        force_no_crop: do not crop.
        given_files: names of the only images to use, or of their segmentations.
        (size, crop_size, random_flip, on_error: see `ImageOptions`; crops are random in training)
    """

    def __init__(
        self,
        size: int | None = None,
        dataroot: str = "",
        datajson: str = "",
        onehot_segmentation: bool = False,
        use_stuffthing: bool = False,
        crop_size: int | None = None,
        force_no_crop: bool = False,
        given_files: Sequence[str] | None = None,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        dataroot, datajson = with_home(dataroot), with_home(datajson)
        random_crop = self.get_split() == "train"
        crop_size = 0 if force_no_crop else crop_size
        options = ImageOptions(
            size, random_crop, random_flip, crop_size, on_error=on_error, exif=exif, **files
        )
        names, groups = self._captioned(datajson, given_files, on_error)
        self._captions = Captions(groups)
        images = StringTable(f"{dataroot}/{name}" for name in names)
        split = Path(datajson).stem.removeprefix("captions_")
        stuff = f"data/coco/annotations/stuff_{split}_pixelmaps"
        folder = f"data/cocostuffthings/{split}" if use_stuffthing else stuff
        segmentations = StringTable(f"{folder}/{Path(name).stem}.png" for name in names)
        # Labels take the nearest value: those of other ways of resizing mean something else.
        kind: MapKind = Labels(N_LABELS, shift=True) if onehot_segmentation else ImageMap(False)
        labels = {"img_path": images, "seg_path": segmentations, "filename_": names}
        super().__init__(images, {"segmentation": MapFiles(segmentations, kind)}, options, labels)

    def get_split(self) -> str:
        """How images are cropped: "train" at random, "validation" at the center."""
        raise of_subclasses(self, "get_split")

    def reads_files(self) -> bool:
        return type(self).preprocess_image is CocoBase.preprocess_image

    def preprocess_image(  # type: ignore[override]  # as published
        self, image_path: str, segmentation_path: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """`image` and `segmentation` of an item from their files; raises `BadFile`."""
        read = self.read_maps({"image": image_path, "segmentation": segmentation_path})
        finished = self.finish(self.transform(**read))
        return finished["image"], finished["segmentation"]

    def load(self, index: int) -> Item:
        segmentation_path = self.maps["segmentation"].paths[index]
        image, segmentation = self.preprocess_image(self.paths[index], segmentation_path)
        return {"image": image, "segmentation": segmentation}

    def _captioned(
        self, file: str, given_files: Sequence[str] | None, on_error: OnError
    ) -> tuple[StringTable, list[list[str]]]:
        """Names of the images that have captions (and are given), and their captions."""
        dataset = type(self).__name__
        content = read_json(file, ("images", "annotations"), dataset)
        images = all_fields(content["images"], ("id", "file_name"), file, "images")
        names = {identity_of(identity): name for identity, name in images}
        captions = _captions_by_image(content["annotations"], names, file, on_error)
        if given_files is not None:
            given = {Path(name).stem for name in given_files}
            captions = {i: texts for i, texts in captions.items() if Path(names[i]).stem in given}
            if not captions:
                example = f", such as {given_files[0]}," if given_files else ""
                raise UserError(
                    f"{dataset}: no image of given_files{example} has captions in {file}"
                )
        return StringTable(names[identity] for identity in captions), list(captions.values())

    def metadata(self, index: int) -> Item:
        return super().metadata(index) | {"caption": self._captions.of(index)}

    def _item(self, index: int) -> Item:
        return super()._item(index) | {"caption": self._captions.sample(index)}


def _captions_by_image(
    annotations: Sequence[Any], names: dict[Any, str], file: str, on_error: OnError
) -> dict[Any, list[str]]:
    """Captions by the image's id, in the order of `names`, file names by id."""
    captions: dict[Any, list[str]] = defaultdict(list)
    unknown: list[str] = []
    pairs = all_fields(annotations, ("image_id", "caption"), file, "annotations")
    for number, (value, caption) in enumerate(pairs):
        identity = identity_of(value)
        if identity in names:
            captions[identity].append(caption)
        else:
            place = f"entry {number} of annotations"
            unknown.append(f"{place} is for image {identity}, which is not among images")
    if unknown and on_error == "raise":
        raise UserError(f"{file}: {unknown[0]}; repair it, or leave it out: {SKIP}")
    if unknown:
        message = "%s: left out %d captions, the first because %s"
        log.warning(message, file, len(unknown), unknown[0])
    return {identity: captions[identity] for identity in names if identity in captions}


class CocoImagesAndCaptionsTrain(CocoBase):
    """Images of `data/coco/train2017`; see `CocoBase`."""

    folder: ClassVar[str] = "train2017"

    def __init__(
        self,
        size: int | None = None,
        onehot_segmentation: bool = False,
        use_stuffthing: bool = False,
        crop_size: int | None = None,
        force_no_crop: bool = False,
        given_files: Sequence[str] | None = None,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        super().__init__(
            size,
            f"data/coco/{self.folder}",
            f"data/coco/annotations/captions_{self.folder}.json",
            onehot_segmentation,
            use_stuffthing,
            crop_size=crop_size,
            force_no_crop=force_no_crop,
            given_files=given_files,
            random_flip=random_flip,
            on_error=on_error,
            exif=exif,
            **files,
        )

    def get_split(self) -> str:
        return "train"


class CocoImagesAndCaptionsValidation(CocoImagesAndCaptionsTrain):
    """The same of `data/coco/val2017`, cropped at the center."""

    folder = "val2017"

    def get_split(self) -> str:
        return "validation"
