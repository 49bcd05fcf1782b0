"""Where the images of an LSUN category are: databases as published, or exported folders and lists.

Below a root, of the split `train` or `val` of the category `tower`, the first that there is:

- `tower_train_lmdb/data.mdb`: the published database, a record per image;
- `tower_train.txt`: names of images, relative to `tower/` or to the root;
- `tower_train/`, `tower/train/`, `train/tower/`: images, at any depth;
- `tower/`: images or a database without splits (as LSUN's objects have none), or the root itself,
  if it has nothing but images. These are divided: 300 are for validation, as of the published ones,
  or what a list of the other split does not name.

`towers` does as well as `tower` in all of these.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from taming.config import did_you_mean
from taming.data.columns import StringTable
from taming.data.files.find import find_images, split_off
from taming.data.files.list_files import read_names
from taming.data.files.lmdb_records import FILE, record_paths
from taming.data.options import OnError
from taming.errors import UserError, absence

SCENES: tuple[str, ...] = (
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
)
SCENES += ("kitchen", "living_room", "restaurant", "tower")
# What they are also called.
NAMES: dict[str, tuple[str, ...]] = {scene: (scene, f"{scene}s") for scene in SCENES}
NAMES |= {"church_outdoor": ("church_outdoor", "church", "churches")}
SPLITS = {True: ("train",), False: ("val", "validation")}
VALIDATION_IMAGES = 300  # of each published category
LARGEST_SHARE = 0.05  # of a few images that is set aside
OF_CATEGORY = re.compile(r"(.+?)(?:_(?:train|val|validation))?(?:_lmdb)?(?:\.zip|\.txt)?")


def names_of(category: str) -> tuple[str, ...]:
    """What folders of a category may be called, the published name first."""
    for names in NAMES.values():
        if category in names:
            return names
    return category, f"{category}s"


class CategoryFiles:
    """The images of one split of a category below `root`; see the module.

    Args:
        dataset: its name, for error messages.
        on_error: "skip" leaves out listed files that do not exist.
    """

    def __init__(
        self, root: Path, category: str, training: bool, dataset: str, on_error: OnError
    ) -> None:
        self.names, self.splits = names_of(category), SPLITS[training]
        self.training, self.dataset, self.on_error = training, dataset, on_error
        self.root = self._above(root)

    def _above(self, root: Path) -> Path:
        """The root, where the folder of one of its categories was given."""
        if not root.is_dir():
            raise UserError(
                f"{self.dataset}: {absence('folder', root)}; root is the folder that has "
                f"{self.names[0]}_{self.splits[0]}_lmdb in it"
            )
        category = _category_in(root.absolute().name)
        if _categories(root) or not (category in SCENES or (root / FILE).exists()):
            return root
        if category not in self.names:
            raise UserError(
                f"{self.dataset}: {root} has images of {category}, not of {self.names[0]}; set "
                f"category={category}, or root to the folder of all categories"
            )
        return root.absolute().parent

    def paths(self) -> StringTable:
        """All images; raises `UserError` where there are none."""
        if database := self._first("{name}_{split}_lmdb"):
            return record_paths(database, self.dataset)
        if listed := self._first("{name}_{split}.txt"):
            return self._listed(listed)
        for layout in ("{name}_{split}", "{name}/{split}", "{split}/{name}"):
            if (folder := self._first(layout)) and (paths := _images_in(folder, self.dataset)):
                return paths
        for folder in (self._first("{name}"), None if _categories(self.root) else self.root):
            if folder and (paths := _images_in(folder, self.dataset)):
                return self._own_part(paths, folder)
        raise self._absent()

    def _first(self, layout: str, splits: Sequence[str] = ()) -> Path | None:
        """The first file or folder of a layout that is there."""
        places = (
            self.root / layout.format(name=name, split=split)
            for name in self.names
            for split in splits or self.splits
        )
        return next((place for place in places if place.exists()), None)

    def _listed(self, file: Path) -> StringTable:
        def choices(line: str) -> list[str]:
            return [*(os.path.join(name, line) for name in self.names), line]

        return read_names(file, self.root, self.dataset, self.on_error, choices).paths

    def _own_part(self, paths: StringTable, folder: Path) -> StringTable:
        """The part of images without splits that belongs to this one: what the other split's list
        leaves, if there is one."""
        if listed := self._first("{name}_{split}.txt", SPLITS[not self.training]):
            others = set(map(os.path.normpath, self._listed(listed)))
            return StringTable(path for path in paths if os.path.normpath(path) not in others)
        start = len(str(folder)) + 1  # wherever they lie, they are divided in the same way
        fraction = min(VALIDATION_IMAGES / len(paths), LARGEST_SHARE)
        validation = split_off((path[start:] for path in paths), fraction, seed=0)
        own = (path for path in paths if (path[start:] in validation) != self.training)
        return StringTable(own)

    def _absent(self) -> UserError:
        category, split = self.names[0], self.splits[0]
        database = f"{category}_{split}_lmdb"
        if (self.root / f"{database}.zip").is_file():
            return UserError(f"{self.dataset}: unpack {self.root / database}.zip where it is")
        found = _categories(self.root)
        if found and category not in {*SCENES, *found}:
            hint = did_you_mean(category, {*SCENES, *found})
            return UserError(f"{self.dataset}: {self.root} has no category {category!r}{hint}")
        there = f" (it has {', '.join(found)})" if found else ""
        return UserError(
            f"{self.dataset}: {self.root} has no split {split!r} of {category}{there}; put "
            f"{database} there, or images in {category}_{split}, or set root"
        )


def _categories(root: Path) -> list[str]:
    """The categories that a root has anything of."""
    named = {_category_in(name) for name in os.listdir(root)}
    databases = {_category_in(file.parent.name) for file in root.glob(f"*/{FILE}")}
    return sorted(named & set(SCENES) | databases)


def _category_in(name: str) -> str:
    """The category that a file or folder is named after."""
    match = OF_CATEGORY.fullmatch(name)
    category = match[1] if match else name
    return next((scene for scene in SCENES if category in names_of(scene)), category)


def _images_in(folder: Path, dataset: str) -> StringTable:
    """The records or the image files of a folder, of which there may be none."""
    if (folder / FILE).exists():
        return record_paths(folder, dataset)
    return StringTable(find_images(folder))
