"""Images and the objects in them, as scenes to condition on (arXiv 2105.06458)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor
from typing_extensions import Unpack

from taming.config import did_you_mean, get_obj_from_str
from taming.data.augmentations import Augmentations
from taming.data.base import ImageFiles, Item
from taming.data.columns import StringTable
from taming.data.conditional_builder import objects_bbox, objects_center_points
from taming.data.files.shard_index import paths_by_name
from taming.data.helper_types import WHOLE, AnnotationList, Category, CropMethodType, SplitType
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.scene_crops import AugmentedView, SceneCrop, View, augmented
from taming.data.scene_table import Limits, SceneCollector
from taming.errors import UserError

BUILDERS = {
    "objects_bbox": objects_bbox.ObjectsBoundingBoxConditionalBuilder,
    "objects_center_points": objects_center_points.ObjectsCenterPointsConditionalBuilder,
}


class AnnotatedObjectsDataset(ImageFiles):
    """Images with objects; subclasses read the annotation files.

    Items hold those of these entries that `keys` names: `image` float32 (size, size, 3) in [-1, 1];
    `image_path`, `file_name`, `image_id`, `original_size` (width, height); `annotations`, an
    `AnnotationList`; `crop_bbox` (x0, y0, width, height as shares of the image), `flipped`; and the
    scene as tokens, `objects_bbox` or `objects_center_points`, int64 (embedding_dim,).

    Args:
        data_path: the dataset's folder.
        split: "train", "validation" or "test".
        keys: see above.
        target_image_size, crop_method, random_flip: see `SceneCrop`.
        min_object_area: share of the image's area; only larger objects are used.
        min_objects_per_image, max_objects_per_image: images with less or more are left out.
        no_tokens, use_group_parameter, encode_crop, use_additional_parameters: see
            `ObjectsCenterPointsConditionalBuilder`.
        category_allow_list_target: dotted path of the names (or (name, count) pairs) of the only
            categories to use.
        category_mapping_target: dotted path of a dict from category ids to the ids that replace
            them.
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
        data_path: str | Path,
        split: SplitType,
        keys: Sequence[str],
        target_image_size: int,
        min_object_area: float,
        min_objects_per_image: int,
        max_objects_per_image: int,
        crop_method: CropMethodType,
        random_flip: bool,
        no_tokens: int,
        use_group_parameter: bool,
        encode_crop: bool,
        category_allow_list_target: str = "",
        category_mapping_target: str = "",
        no_object_classes: int | None = None,
        use_additional_parameters: bool = False,
        on_error: OnError = "raise",
        shards: str | None = None,
        exif: Exif = "apply",
        **files: Unpack[FileOptions],
    ) -> None:
        self.data_path, self.split, self.keys = Path(data_path), split, list(keys)
        self._name = f"{type(self).__name__} of {data_path}"
        self._check_choices()
        limits = Limits(min_object_area, min_objects_per_image, max_objects_per_image)
        mapping = _named(category_mapping_target, Mapping) if category_mapping_target else {}
        self._number_categories(self._allowed(category_allow_list_target, mapping))
        collector = SceneCollector(limits, self.flags_known, on_error, self._name)
        names, ids = self.collect(collector, self._numbers_with(mapping))
        self.scenes, kept = collector.table(len(names))
        self.file_names = StringTable(names[number] for number in kept)
        self.image_ids = StringTable(ids[number] for number in kept)
        self._check_left(len(names), limits)
        self._crop = SceneCrop(crop_method, target_image_size, random_flip)
        described, self._augmentations = files.pop("augmentations", ()), None
        if described:
            self._augmentations = Augmentations(
                described, boxes=True, side=target_image_size, source=self._name
            )
        self.conditional_builders = {
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
        if shards is not None:
            paths = paths_by_name(shards, self.file_names)
        else:
            folder = str(self.image_folder)
            paths = StringTable(os.path.join(folder, name) for name in self.file_names)
        # SceneCrop resizes and crops, as it has to say where: the transform is left without effect.
        options = ImageOptions(on_error=on_error, exif=exif, source=self._name, **files)
        super().__init__(paths, options)

    flags_known: tuple[str, ...] = ()

    @property
    def image_folder(self) -> Path:
        """Where the images of the split are."""
        raise NotImplementedError

    def load_categories(self) -> list[Category]:
        """All categories of the data."""
        raise NotImplementedError

    def category_order(self, identity: str) -> tuple[bool, str]:
        """The key by which the ids of categories are sorted before they are numbered."""
        return False, identity

    def collect(
        self, collector: SceneCollector, categories: Mapping[str, int]
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Add all objects of `categories`, numbers by category id, to `collector`.

        Returns the images' file names and ids; the objects' `images` are indices of these.
        """
        raise NotImplementedError

    def _allowed(self, allow_list_target: str, mapping: Mapping[str, str]) -> list[Category]:
        categories = [c for c in self.load_categories() if c.id not in mapping]
        if not allow_list_target:
            return categories
        listed = _named(allow_list_target, Sequence)
        names = {entry if isinstance(entry, str) else entry[0] for entry in listed}
        return [category for category in categories if category.name in names]

    def _number_categories(self, categories: list[Category]) -> None:
        if not categories:
            raise UserError(f"{self._name} has no categories; look at category_allow_list_target")
        self.categories = {category.id: category for category in categories}
        self.category_ids = sorted(self.categories, key=self.category_order)
        self.category_numbers = {identity: i for i, identity in enumerate(self.category_ids)}

    def _numbers_with(self, mapping: Mapping[str, str]) -> dict[str, int]:
        """Numbers by category id, including the ids that `mapping` replaces."""
        numbers = self.category_numbers
        return numbers | {old: numbers[new] for old, new in mapping.items() if new in numbers}

    def _no_object_classes(self, wanted: int | None) -> int:
        count = len(self.category_ids)
        if wanted is not None and wanted < count:
            raise UserError(
                f"{self._name} has {count} categories, but no_object_classes is {wanted}; make it "
                f"{count}"
            )
        return wanted or count

    def get_textual_label(self, category_id: str) -> str:
        """The name of a category."""
        return self.categories[category_id].name

    def get_textual_label_for_category_no(self, category_no: int) -> str:
        """The name of a category by its number, as in tokens."""
        return self.categories[self.category_ids[category_no]].name

    def _check_choices(self) -> None:
        if self.split not in get_args(SplitType):
            hint = did_you_mean(str(self.split), get_args(SplitType))
            raise UserError(f"{self._name}: there is no split {self.split!r}{hint}")
        for key in self.keys:
            if key not in ENTRIES:
                raise UserError(f"{self._name} has no key {key!r}{did_you_mean(key, ENTRIES)}")

    def _check_left(self, count: int, limits: Limits) -> None:
        if not len(self.file_names):
            raise UserError(
                f"{self._name}: none of the {count} {self.split} images has "
                f"{limits.min_objects_per_image} to {limits.max_objects_per_image} objects with an "
                f"area above {limits.min_object_area}; widen these limits"
            )

    def metadata(self, index: int) -> Item:
        return super().metadata(index) | {"file_name": self.file_names[index]}

    def annotations(self, index: int) -> AnnotationList:
        """The objects of item `index`."""
        return self.scenes.annotations(index, self.image_ids[index], self.category_ids)

    def _item(self, index: int) -> Item:
        view = self._view(index)
        return {key: ENTRIES[key](self, index, view) for key in self.keys}

    def _view(self, index: int) -> View | AugmentedView:
        view = self._crop(self.pixels(index))
        if self._augmentations is None:
            return view
        return augmented(view, self.annotations(index), self._augmentations)

    def tokens(self, key: str, index: int, view: View | AugmentedView) -> Tensor:
        """The scene as tokens, int64 (embedding_dim,), by `conditional_builders[key]`."""
        builder = self.conditional_builders[key]
        return builder.build(self.seen(index, view), view.crop, view.flipped)

    def seen(self, index: int, view: View | AugmentedView) -> AnnotationList:
        """The objects of item `index`, as its view has them."""
        return view.annotations if isinstance(view, AugmentedView) else self.annotations(index)


ENTRIES: dict[str, Callable[[AnnotatedObjectsDataset, int, View | AugmentedView], Any]] = {
    "image": lambda data, index, view: data.finish_image(view.pixels),
    "image_path": lambda data, index, view: data.paths[index],
    "file_name": lambda data, index, view: data.file_names[index],
    "image_id": lambda data, index, view: data.image_ids[index],
    "original_size": lambda data, index, view: view.original_size,
    "annotations": lambda data, index, view: data.seen(index, view),
    "crop_bbox": lambda data, index, view: view.crop or WHOLE,
    "flipped": lambda data, index, view: view.flipped,
    "objects_bbox": lambda data, index, view: data.tokens("objects_bbox", index, view),
    "objects_center_points": lambda data, index, view: data.tokens(
        "objects_center_points", index, view
    ),
}


def _named(target: str, kind: type) -> Any:
    """The table that a config names by `target`."""
    table = get_obj_from_str(target)
    if not isinstance(table, kind):
        raise UserError(f"{target} is no {kind.__name__.lower()} of categories")
    return table
