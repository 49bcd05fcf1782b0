"""COCO 2017 with captions and COCO-Stuff's segmentations."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import Unpack

from taming.data.base import Item
from taming.data.columns import StringTable
from taming.data.condition_maps import ImageMap, Labels, MapKind
from taming.data.files.annotations import all_fields, identity_of, read_json
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.segmentation import SegmentationExamples
from taming.errors import UserError

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
        return self._texts[random.randrange(*self._ends[index : index + 2].tolist())]


class CocoImagesAndCaptionsTrain(ImagesWithMaps):
    """Images of `data/coco/train2017` that have captions.

    Items: `image` float32 (H, W, 3) in [-1, 1]; `caption`, one of the image's at random;
    `segmentation`, one-hot (H, W, 183) or RGB in [-1, 1]; `img_path`, `seg_path`, `filename_`,
    `file_path_`.

    Args:
        onehot_segmentation: one-hot of the labels + 1, so that 255, unlabeled, is 0; otherwise the
            file as an image.
        use_stuffthing: take `data/cocostuffthings/train2017/*.png` (things and stuff), otherwise
            `data/coco/annotations/stuff_train2017_pixelmaps`.
        force_no_crop: do not crop.
        given_files: names of the only images to use.
        (size, crop_size, random_flip, on_error: see `ImageOptions`; crops are random in training)
    """

    split: ClassVar[str] = "train2017"

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
        crop_size = 0 if force_no_crop else crop_size
        random_crop = self.split.startswith("train")
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            "bicubic",
            on_error=on_error,
            exif=exif,
            **files,
        )
        names, groups = self._captioned(given_files, on_error)
        self._captions = Captions(groups)
        images = StringTable(f"data/coco/{self.split}/{name}" for name in names)
        stuff = f"data/coco/annotations/stuff_{self.split}_pixelmaps"
        folder = f"data/cocostuffthings/{self.split}" if use_stuffthing else stuff
        segmentations = StringTable(f"{folder}/{Path(name).stem}.png" for name in names)
        kind: MapKind = Labels(N_LABELS, shift=True) if onehot_segmentation else ImageMap(False)
        labels = {"img_path": images, "seg_path": segmentations, "filename_": names}
        super().__init__(images, {"segmentation": MapFiles(segmentations, kind)}, options, labels)

    def _captioned(
        self, given_files: Sequence[str] | None, on_error: OnError
    ) -> tuple[StringTable, list[list[str]]]:
        """Names of the images that have captions (or are given), and their captions."""
        file = f"data/coco/annotations/captions_{self.split}.json"
        dataset = type(self).__name__
        content = read_json(file, ("images", "annotations"), dataset)
        images = all_fields(content["images"], ("id", "file_name"), file, "images")
        names = {identity_of(identity): name for identity, name in images}
        captions = _captions_by_image(content["annotations"], names, file, on_error)
        if given_files is not None:
            identities = {names[identity]: identity for identity in captions}
            if unknown := [name for name in given_files if name not in identities]:
                problem = f"given_files has {unknown[0]}, which has no captions in {file}"
                raise UserError(f"{dataset}: {problem}")
            captions = {identities[name]: captions[identities[name]] for name in given_files}
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
        raise UserError(f"{file}: {unknown[0]}; repair it, or set on_error: skip")
    if unknown:
        message = "%s: left out %d captions, the first because %s"
        log.warning(message, file, len(unknown), unknown[0])
    return {identity: captions[identity] for identity in names if identity in captions}


class CocoImagesAndCaptionsValidation(CocoImagesAndCaptionsTrain):
    """The same of `data/coco/val2017`, cropped at the center."""

    split = "val2017"
