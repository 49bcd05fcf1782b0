"""Lists of file names relative to a folder, and their making where nobody has put them yet."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from taming.data.columns import StringTable
from taming.data.files.find import OnError, find_images, read_image_list, split_off
from taming.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """Files of a list: their names as listed, and where they are."""

    names: StringTable
    paths: StringTable


def write_atomically(file: str | Path, lines: Iterable[str]) -> None:
    """Write a text file that is either complete or not there, however this process ends."""
    file = Path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error}); make its folder writable") from None
    with os.fdopen(handle, "wb") as raw:
        raw.writelines(os.fsencode(f"{line}\n") for line in lines)
    os.chmod(temporary, 0o644)
    os.replace(temporary, file)


def read_names(
    list_file: str | Path, root: str | Path, dataset: str, on_error: OnError = "raise"
) -> Listed:
    """The files of a list whose lines are relative to `root`.

    Raises `UserError` if the list is missing or empty, or names a file that `root` has not (with
    `on_error` "skip" these are logged and left out).
    """

    def locate(name: str) -> str | None:
        return name if os.path.isfile(os.path.join(root, name)) else None

    names = read_image_list(list_file, f"{dataset} with files below {root}", locate, on_error)
    return Listed(names, StringTable(os.path.join(root, name) for name in names))


@dataclass(frozen=True)
class ListPair:
    """The two list files of a dataset, made from the files in `root` where they are absent.

    Those in the subfolder `validation_folder` are for validation, or a fixed `validation_fraction`.
    """

    train: str
    validation: str
    root: str
    extensions: tuple[str, ...]
    validation_fraction: float = 0.0
    validation_folder: str = ""

    def read(self, training: bool, dataset: str, on_error: OnError = "raise") -> Listed:
        """The list of one split; see `read_names`."""
        self.make_missing(dataset)
        list_file = self.train if training else self.validation
        return read_names(list_file, self.root, dataset, on_error)

    def make_missing(self, dataset: str) -> None:
        """Write the lists that are absent, and say so; raises `UserError` if there are no files."""
        files = {True: Path(self.train), False: Path(self.validation)}
        absent = [training for training, file in files.items() if not file.is_file()]
        if not absent:
            return
        names = self._names(dataset)
        if len(absent) == 2:
            validation = self._divide(names)
        else:  # the other list gets what this one does not name
            listed = set(read_image_list(files[not absent[0]], dataset, lambda line: line))
            validation = listed if absent[0] else set(names) - listed
        for training in absent:
            chosen = [name for name in names if (name in validation) != training]
            write_atomically(files[training], chosen)
            log.warning(
                "%s: made %s, %d of the %d files in %s; a published list, if put there, is used "
                "instead",
                dataset,
                files[training],
                len(chosen),
                len(names),
                self.root,
            )

    def _names(self, dataset: str) -> list[str]:
        if not Path(self.root).is_dir():
            raise UserError(
                f"{dataset}: the folder {self.root} does not exist; put the images there, or a "
                "symbolic link to their folder"
            )
        names = [
            os.path.relpath(path, self.root) for path in find_images(self.root, self.extensions)
        ]
        if not names:
            raise UserError(
                f"{dataset}: {self.root} has no files ending in {', '.join(self.extensions)}; put "
                "the images there"
            )
        return names

    def _divide(self, names: list[str]) -> set[str]:
        if self.validation_folder:
            return {name for name in names if Path(name).parts[0] == self.validation_folder}
        return split_off(names, self.validation_fraction, seed=0)
