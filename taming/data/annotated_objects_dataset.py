"""Images and the objects in them, as scenes to condition on (arXiv 2105.06458)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from typing_extensions import Unpack

from taming.config import did_you_mean
from taming.config_values import AnyPath, Count, CountOrZero, FilePath, Fraction, Pixels
from taming.data.augmentations import Augmentations
from taming.data.base import Item, of_subclasses
from taming.data.columns import StringTable
from taming.data.conditional_builder import objects_bbox, objects_center_points
from taming.data.cropped_images import CroppedImageFiles
from taming.data.files.shard_index import paths_by_name
from taming.data.helper_types import (
    WHOLE,
    Annotation,
    AnnotationList,
    Category,
    CropMethodType,
    ImageId,
    SplitType,
)
from taming.data.image_transforms import size_of
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.scene_categories import NumberedCategories
from taming.data.scene_crops import augmented
from taming.data.scene_table import Limits, SceneCollector, SceneLists, SceneTable
from taming.errors import UserError
from taming.pictures import to_uint8_array
from taming.user_files import with_home

BUILDERS = {
    "objects_bbox": objects_bbox.ObjectsBoundingBoxConditionalBuilder,
    "objects_center_points": objects_center_points.ObjectsCenterPointsConditionalBuilder,
}
Builder = objects_center_points.ObjectsCenterPointsConditionalBuilder
ENTRIES = {"image", "image_path", "file_name", "image_id", "original_size", "annotations"}
ENTRIES |= {"crop_bbox", "flipped"}


class AnnotatedObjectsDataset(NumberedCategories, CroppedImageFiles):
    """Images with objects; subclasses read the annotation files.

    The methods without an underscore may be overridden: items are made with them.

    Items hold those of these entries that `keys` names: `image` float32 (size, size, 3) in [-1, 1];
    `image_path`, `file_name`, `image_id`, `original_size` (width, height); `annotations`, an
    `AnnotationList`; `crop_bbox` (x0, y0, width, height as shares of the image), `flipped`; and the
    scene as tokens, `objects_bbox` or `objects_center_points`, int64 (embedding_dim,); or another
    key of `conditional_builders` or of `get_image_description`.

    Args:
        data_path: the dataset's folder.
        split: "train", "validation" or "test".
        keys: see above; without any, items hold all that is known without opening the image.
        target_image_size, crop_method, random_flip: see `SceneCrop`.
        min_object_area: share of the image's area; only larger objects are used.
        min_objects_per_image, max_objects_per_image: images with less or more are left out.
        no_tokens, use_group_parameter, encode_crop, use_additional_parameters: see
            `ObjectsCenterPointsConditionalBuilder`.
        category_allow_list_target: dotted path of the names (or (name, count) pairs) of the only
            categories to use.
        category_mapping_target: dotted path of a dict from category ids to those in their place.
        no_object_classes: at least the number of categories, which is the default.
        shards: folder or pattern of tars with the images (`scripts/make_shards.py`), which then
            need not be in `data_path`.
        on_error: "skip" replaces damaged images and leaves out impossible objects, instead of
            stopping at them.

    Raises:
        UserError: for files that are absent, cut short or lack columns, for objects that have no
            image or lie outside it, and for limits that leave nothing.
    """

    def __init__(
        self,
        data_path: AnyPath,
        split: SplitType,
        keys: Sequence[str] | None,
        target_image_size: Pixels,
        min_object_area: Fraction,
        min_objects_per_image: CountOrZero,
        max_objects_per_image: CountOrZero,
        crop_method: CropMethodType,
        random_flip: bool,
        no_tokens: Count,
        use_group_parameter: bool,
        encode_crop: bool,
        category_allow_list_target: str = "",
        category_mapping_target: str = "",
        no_object_classes: Count | None = None,
        use_additional_parameters: bool = False,
        on_error: OnError = "raise",
        shards: FilePath | None = None,
        exif: Exif = "apply",
        **files: Unpack[FileOptions],
    ) -> None:
        self.data_path, self.split, self.keys = with_home(Path(data_path)), split, list(keys or ())
        self._name = f"{type(self).__name__} of {data_path}"
        self.target_image_size, self.min_object_area = target_image_size, min_object_area
        self.min_objects_per_image = min_objects_per_image
        self.max_objects_per_image, self.no_tokens = max_objects_per_image, no_tokens
        self.crop_method, self.random_flip = crop_method, random_flip
        self.use_group_parameter, self.encode_crop = use_group_parameter, encode_crop
        if self.split not in get_args(SplitType):
            hint = did_you_mean(str(self.split), get_args(SplitType))
            raise UserError(f"{self._name}: there is no split {self.split!r}{hint}")
        self.structure = self.build_paths(self.data_path)
        self.transform_functions = self.setup_transform(target_image_size, crop_method, random_flip)
        self.categories_left_out: set[str] = set()  # their ids, which data may name
        listed = self.load_categories()
        self.choose_categories(listed, category_allow_list_target, category_mapping_target)
        self.categories_left_out |= {category.id for category in listed}
        if not self.category_ids:
            raise UserError(f"{self._name} has no categories; look at category_allow_list_target")
        limits = Limits(min_object_area, min_objects_per_image, max_objects_per_image)
        self._choose_objects(limits, on_error)
        described, self._augmentations = files.pop("augmentations", ()), None
        if described:
            self._augmentations = Augmentations(
                described, boxes=True, side=target_image_size, source=self._name
            )
        self._builders: dict[str, Builder] = {
            key: builder(
                no_object_classes=self._no_object_classes(no_object_classes),
                no_max_objects=max_objects_per_image,
                no_tokens=no_tokens,
                encode_crop=encode_crop,
                use_group_parameter=use_group_parameter,
                use_additional_parameters=use_additional_parameters,
            )
            for key, builder in BUILDERS.items()
        }
        self._check_keys()
        self._in_shards = shards is not None
        paths = self._image_paths() if shards is None else paths_by_name(shards, self.file_names)
        # SceneCrop resizes and crops, as it has to say where: the transform is left without effect.
        options = ImageOptions(on_error=on_error, exif=exif, source=self._name, **files)
        super().__init__(paths, options)
        self.item_sizes.clear()  # all have `target_image_size`

    scenes: SceneTable | SceneLists
    _numbers: dict[str, int] | None = None  # of images by id
    flags_known: tuple[str, ...] = ()
    flag_type: type[int] = bool  # of the flags of annotations

    # ------------------------------------------------------------------ files

    def get_path_structure(self) -> dict[str, str]:
        """The files and folders of the split, relative to `data_path`; "files" has the images."""
        raise of_subclasses(self, "get_path_structure")

    def build_paths(self, top_level: str | Path) -> dict[str, Path]:
        """Where the files and folders of `get_path_structure` are."""
        return {name: Path(top_level, path) for name, path in self.get_path_structure().items()}

    def _image_paths(self) -> StringTable:
        if type(self).get_image_path is not AnnotatedObjectsDataset.get_image_path:
            ids = (self.get_image_id(number) for number in range(len(self.image_ids)))
            return StringTable(str(self.get_image_path(image_id)) for image_id in ids)
        folder = str(self.structure["files"])
        return StringTable(os.path.join(folder, name) for name in self.file_names)

    # ------------------------------------------------------------------ objects

    def load_categories(self) -> list[Category]:
        """All categories of the data."""
        raise of_subclasses(self, "load_categories")

    def collect(
        self, collector: SceneCollector, categories: Mapping[str, int]
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Add all objects of `categories`, numbers by category id, to `collector`.

        Returns the images' file names and ids; the objects' `images` are indices of these.
        """
        raise of_subclasses(self, "collect")

    def _choose_objects(self, limits: Limits, on_error: OnError) -> None:
        base = AnnotatedObjectsDataset
        own = type(self).filter_object_number is not base.filter_object_number
        applied = Limits(-1.0, 0, sys.maxsize) if own else limits
        collector = SceneCollector(applied, self.flags_known, on_error, self._name)
        collector.flag_type, collector.left_out = self.flag_type, self.categories_left_out
        names, ids = self.collect(collector, self.numbers_with_replaced())
        self.scenes, self._places = collector.table(len(names))
        self.file_names = StringTable(names[place] for place in self._places)
        self._known_ids = StringTable(ids[place] for place in self._places)
        self.image_ids: Sequence[str] = self._known_ids
        if own:
            self._filter_in_memory(limits)
        self.clean_up_annotations_and_image_descriptions()
        base.clean_up_annotations_and_image_descriptions(self)  # after one that only sets the ids
        if not len(self.file_names):
            raise UserError(
                f"{self._name}: none of the {len(names)} {self.split} images has "
                f"{limits.min_objects_per_image} to {limits.max_objects_per_image} objects with an "
                f"area above {limits.min_object_area}; widen these limits"
            )

    @staticmethod
    def filter_object_number(
        all_annotations: dict[str, list[Annotation]],
        min_object_area: float,
        min_objects_per_image: int,
        max_objects_per_image: int,
    ) -> dict[str, list[Annotation]]:
        """Large enough objects, by the id of their image, of images that have enough of these.

        Called if it is overridden; otherwise the collector counts, which takes less memory.
        """
        least, most = min_objects_per_image, max_objects_per_image
        large = {
            image_id: [one for one in annotations if one.area > min_object_area]
            for image_id, annotations in all_annotations.items()
        }
        return {image_id: kept for image_id, kept in large.items() if least <= len(kept) <= most}

    def _filter_in_memory(self, limits: Limits) -> None:
        objects = {text: list(self._annotations(i)) for i, text in enumerate(self._known_ids)}
        chosen = self.filter_object_number(
            {image_id: annotations for image_id, annotations in objects.items() if annotations},
            limits.min_object_area,
            limits.min_objects_per_image,
            limits.max_objects_per_image,
        )
        self._keep([self._number_of(image_id) for image_id in chosen], list(chosen.values()))

    def _number_of(self, image_id: str) -> int:
        if isinstance(image_id, ImageId):
            return image_id.number
        if self._numbers is None:  # only if somebody asks by ids of their own
            self._numbers = {text: number for number, text in enumerate(self._known_ids)}
        return self._numbers[image_id]

    def clean_up_annotations_and_image_descriptions(self) -> None:
        """Drop what belongs to images that are not in `image_ids`, which may be set to fewer."""
        if self.image_ids is not self._known_ids:
            numbers = [self._number_of(image_id) for image_id in self.image_ids]
            self._keep(numbers, [self._annotations(number) for number in numbers])

    def _keep(self, numbers: list[int], objects: Sequence[Sequence[Annotation]]) -> None:
        """Leave the images of these numbers, with these objects."""
        self._places = self._places[numbers]
        self.file_names = StringTable(self.file_names[number] for number in numbers)
        self.image_ids = self._known_ids = StringTable(
            self._known_ids[number] for number in numbers
        )
        self.scenes, self._numbers = SceneLists(objects), None

    def _no_object_classes(self, wanted: int | None) -> int:
        count = self.no_classes
        if wanted is not None and wanted < count:
            raise UserError(
                f"{self._name} has {count} categories, but no_object_classes is {wanted}; make it "
                f"{count}"
            )
        return wanted or count

    # ------------------------------------------------------------------ items

    @property
    def conditional_builders(self) -> dict[str, Builder]:
        """What makes tokens of scenes, by key."""
        return self._builders

    def _check_keys(self) -> None:
        known = {*ENTRIES, *self.conditional_builders}
        for key in self.keys:
            if key not in known and key not in self.get_image_description(self.get_image_id(0)):
                raise UserError(f"{self._name} has no key {key!r}{did_you_mean(key, known)}")

    def get_image_id(self, no: int) -> str:
        """The id of the image of item `no`."""
        return ImageId(self.image_ids[no], no)

    def get_annotation(self, image_id: str) -> list[Annotation]:
        """The objects of an image."""
        return self._annotations(self._number_of(image_id))

    def _annotations(self, number: int) -> AnnotationList:
        return self.scenes.annotations(number, self._known_ids[number], self.category_ids)

    def place_of(self, image_id: str) -> int:
        """The image's number among all those that `collect` has returned."""
        return int(self._places[self._number_of(image_id)])

    def get_image_path(self, image_id: str) -> Path:
        """The file of an image."""
        return self.structure["files"] / self.file_names[self._number_of(image_id)]

    def get_image_description(self, image_id: str) -> dict[str, Any]:
        """What is known of an image; `keys` may name it."""
        return {"file_name": self.file_names[self._number_of(image_id)]}

    def annotations(self, index: int) -> AnnotationList:
        """The objects of item `index`."""
        return AnnotationList(self.get_annotation(self.get_image_id(index)))

    def metadata(self, index: int) -> Item:
        return super().metadata(index) | {"file_name": self.file_names[index]}

    def _item(self, index: int) -> Item:
        image_id = self.get_image_id(index)
        path = self.paths[index] if self._in_shards else str(self.get_image_path(image_id))
        sample = self.get_image_description(image_id) | {"image_id": str(image_id)}
        sample |= {"image_path": path, "annotations": AnnotationList(self.get_annotation(image_id))}
        if not self.keys:
            return sample
        picture = self.picture(path)
        crop, flipped, image = self.image_transform(picture)
        values = self.values_of(image)
        if self._augmentations is not None:
            view = to_uint8_array(values), sample["annotations"], crop, bool(flipped)
            pixels, sample["annotations"] = augmented(*view, self._augmentations)
            values = self.finish_image(pixels)
        sample |= {"original_size": size_of(picture), "image": values}
        sample |= {"crop_bbox": crop or WHOLE, "flipped": bool(flipped)}
        builders = self.conditional_builders
        for key in self.keys:
            if key in builders:
                sample[key] = builders[key].build(sample["annotations"], crop, bool(flipped))
        return {key: sample[key] for key in self.keys}
